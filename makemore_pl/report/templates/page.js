"use strict";
document.documentElement.classList.add("js");

for (const frames of document.querySelectorAll(".frames")) {
  const slider = frames.querySelector("input");
  const output = frames.querySelector("output");
  const play = frames.querySelector(".play");
  const all = frames.querySelectorAll(".frame");
  const show = () => {
    all.forEach((frame, place) => frame.classList.toggle("current", place === Number(slider.value)));
    output.textContent = all[slider.value].dataset.step;
    slider.setAttribute("aria-valuetext", "step " + output.textContent);
  };
  let playing = 0;
  const stop = () => {
    clearInterval(playing);
    playing = 0;
    play.setAttribute("aria-label", "Play");
    frames.classList.remove("playing");
  };
  const advance = () => {
    slider.value = Number(slider.value) + 1;
    show();
    if (slider.value === slider.max) stop();
  };
  play.addEventListener("click", () => {
    if (playing) return stop();
    if (slider.value === slider.max) { slider.value = 0; show(); }
    play.setAttribute("aria-label", "Pause");
    frames.classList.add("playing");
    playing = setInterval(advance, 700);
  });
  slider.addEventListener("input", () => { stop(); show(); });
  show();
}

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => row.cells[column].dataset.value;
      const missing = (text) => text === "nan" || text === "";
      const compare = (a, b) => {
        if (missing(a) || missing(b)) return missing(a) - missing(b);
        const order = a !== "" && b !== "" && isFinite(a) && isFinite(b) ? a - b : a.localeCompare(b);
        return down ? -order : order;
      };
      body.append(...[...body.rows].sort((a, b) => compare(value(a), value(b))));
    });
  });
}
