"""The report's pages in a real browser. Run alone: pytest tests/test_browser.py -m browser

Needs chromium (apt-get install chromium); skipped where there is none.
"""

import json
import re
import shutil
import subprocess
from html import escape
from pathlib import Path
from typing import Any

import pytest
from test_report import DEFAULTS, write_run, write_sweep

from makemore_pl.report import page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium"),
]
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--disable-extensions",
    "--host-resolver-rules=MAP * ~NOTFOUND",
]
DARK = "--blink-settings=preferredColorScheme=0"

NARROWEST = 500
"""Window that chromium opens; narrower pages go into a frame."""

PROBE = """
<script>
addEventListener("load", () => {
  const seen = {
    width: innerWidth,
    overflow: document.documentElement.scrollWidth - innerWidth,
    ground: getComputedStyle(document.body).backgroundColor,
    ink: getComputedStyle(document.body).color,
    empty: [...document.querySelectorAll("svg[role=img]")]
      .filter((svg) => svg.checkVisibility() && !svg.getBBox().width).length,
    smallest: Math.min(...[...document.querySelectorAll("svg text")].filter((text) => text.checkVisibility())
      .map((text) => parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().d).map(Math.abs)
      .filter((size) => size > 0)),
    steps: [],
    orders: [],
  };
  const visible = () => [...document.querySelectorAll(".frames")].map((frames) =>
    [...frames.querySelectorAll(".frame")].filter((each) => each.checkVisibility()).map((each) => each.dataset.step));
  seen.opening = visible();
  seen.fading = [...document.querySelectorAll(".scroll")].filter((each) => each.scrollWidth > each.clientWidth)
    .map((each) => getComputedStyle(each).backgroundAttachment);
  seen.columns = Math.max(...[...document.querySelectorAll(".pictures")].filter((each) => each.checkVisibility())
    .map((each) => getComputedStyle(each).gridTemplateColumns.split(" ").length));
  const play = document.querySelector(".play");
  if (play && play.checkVisibility()) {
    const tick = [];
    window.setInterval = (advance) => { tick.push(advance); return 1; };
    window.clearInterval = () => tick.pop();
    const label = () => play.getAttribute("aria-label");
    const slider = document.querySelector(".frames input");
    const at = slider.value;
    slider.value = 0;
    play.click();
    seen.played = [label(), slider.value];
    tick[0]();
    seen.played.push(slider.value, visible()[0][0]);
    play.click();
    seen.played.push(label());
    play.click();
    while (tick.length) tick[0]();  // to the end, where it stops by itself
    seen.played.push(label(), slider.value === slider.max);
    slider.value = at;
  }
  for (const slider of document.querySelectorAll(".frames input")) {
    slider.value = slider.max;
    slider.dispatchEvent(new Event("input"));
  }
  seen.steps = visible();
  seen.outputs = [...document.querySelectorAll("output")].map((output) => output.textContent);
  const table = document.querySelector("table.sortable");
  if (table) {
    const height = parseFloat(getComputedStyle(table).lineHeight);
    const cells = [...table.querySelectorAll("tbody .numeric")];
    seen.broken = cells.filter((each) => each.clientHeight > 2.2 * height).length;
    seen.first = table.tHead.rows[0].cells[0].textContent;
    const column = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent === "val loss");
    const head = table.tHead.rows[0].cells[column];
    for (let click = 0; click < 2; click++) {
      head.querySelector("button").click();
      seen.orders.push([head.getAttribute("aria-sort"),
        [...table.tBodies[0].rows].map((row) => parseFloat(row.cells[column].dataset.value))]);
    }
  }
  const pre = document.createElement("pre");
  pre.id = "seen";
  pre.textContent = JSON.stringify(seen);
  parent.document.body.append(pre);
});
</script>
</body>"""


def chromium(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [CHROMIUM, *QUIET, profile, "--enable-logging=stderr", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def requested(net: Path) -> list[str]:
    """The network requests of the page. Requests of the browser itself have no origin and are left out."""
    events = json.loads(net.read_text())["events"]
    asked = [event["params"] for event in events if "initiator" in event.get("params", {})]
    return [
        each["url"] for each in asked if each["initiator"] != "not an origin" and not each["url"].startswith("file:")
    ]


def look(tmp_path: Path, html: str, width: int = 1200, *flags: str) -> dict[str, Any]:
    """What the probe saw in the page. It fails on console messages and on requests other than for the page."""
    path, net = tmp_path / "page.html", tmp_path / "net.json"
    probed = html.replace("</body>", PROBE)
    if width < NARROWEST:
        probed = (
            f'<!doctype html><iframe width="{width}" height="800" style="border: 0" srcdoc="{escape(probed)}"></iframe>'
        )
    path.write_text(probed)
    done = chromium(tmp_path, f"--window-size={width},900", f"--log-net-log={net}", *flags, "--dump-dom", path.as_uri())
    assert "CONSOLE" not in done.stderr, done.stderr
    assert requested(net) == []
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stdout[-2000:]
    seen: dict[str, Any] = json.loads(found[1].replace("&gt;", ">").replace("&amp;", "&"))
    return seen


RUNS: dict[str, dict[str, Any]] = {
    "kaiming": {},
    "original": {"experiment": "original", "model__init": "normal"},
    "deep_batchnorm": {"experiment": "deep_batchnorm", "model__n_layers": 5, "model__batchnorm": "pre_output"},
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    base = tmp_path_factory.mktemp("pages")
    directories = {name: write_run(base / name, **keys) for name, keys in RUNS.items()}
    pair = page.write_pair(directories["kaiming"], directories["deep_batchnorm"], base / "pair.html").read_text()
    directories["sweep"] = write_sweep(base / "sweep")
    return {name: page.render(page.page_of(directory, DEFAULTS)) for name, directory in directories.items()} | {
        "pair": pair
    }


@pytest.mark.parametrize("name", [*RUNS, "sweep", "pair"])
@pytest.mark.parametrize("width", [1200, 390])
def test_page_opens(pages: dict[str, str], tmp_path: Path, name: str, width: int) -> None:
    seen = look(tmp_path, pages[name], width)
    assert seen["width"] == width
    assert seen["overflow"] <= 0
    assert seen["empty"] == 0
    assert seen["smallest"] > 8  # pixels
    assert seen["ground"] == "rgb(255, 255, 255)"
    if name == "sweep":
        (up, ascending), (down, descending) = seen["orders"]
        assert (up, down) == ("ascending", "descending")
        assert ascending == sorted(ascending) == descending[::-1]
        if width == 390:
            assert seen["first"] == "val loss", "a phone shows little more than the first column"
            assert seen["broken"] == 0, "of no number the digits stand below each other"
    else:
        assert seen["opening"] == [["100"]], "the last step up to 1,000"
        assert seen["steps"] == [["1,999"]], "one slider moves every picture"
        assert seen["outputs"] == ["1,999"]
        assert seen["played"] == ["Pause", "0", "1", "100", "Play", "Play", True]
    if width == 390 and name != "original":
        assert seen["fading"], "a table goes on"
        assert set(seen["fading"]) == {"local, local, scroll, scroll"}


def test_a_page_that_asks_the_network_would_be_noticed(tmp_path: Path) -> None:
    path, net = tmp_path / "page.html", tmp_path / "net.json"
    path.write_text('<img src="http://example.invalid/x.png"><script>console.log("here")</script>')
    done = chromium(tmp_path, f"--log-net-log={net}", "--dump-dom", path.as_uri())
    assert requested(net) == ["http://example.invalid/x.png"]
    assert "CONSOLE" in done.stderr


def test_dark_mode(pages: dict[str, str], tmp_path: Path) -> None:
    seen = look(tmp_path, pages["kaiming"], 1200, DARK)
    assert seen["ground"] == "rgb(21, 25, 30)"
    assert seen["ink"] == "rgb(230, 233, 237)"


def test_small_multiples_without_javascript(pages: dict[str, str], tmp_path: Path) -> None:
    html, scripts = re.subn(r"<script>.*?</script>", "", pages["kaiming"], flags=re.DOTALL)
    assert scripts == 1
    seen = look(tmp_path, html)
    assert seen["steps"] == [["0", "100", "1,999"]]
    assert seen["empty"] == 0
    assert "played" not in seen


def test_page_prints(pages: dict[str, str], tmp_path: Path) -> None:
    path, pdf = tmp_path / "page.html", tmp_path / "page.pdf"
    path.write_text(pages["deep_batchnorm"])
    chromium(tmp_path, "--no-pdf-header-footer", f"--print-to-pdf={pdf}", path.as_uri())
    sheets = len(re.findall(rb"/Type\s*/Page\b", pdf.read_bytes()))
    assert 2 <= sheets <= 12
    on_paper = pages["deep_batchnorm"].replace("@media print", "@media all").replace("@media screen", "@media speech")
    seen = look(tmp_path, on_paper)
    assert seen["columns"] == 2
    assert seen["steps"] == [["0", "100", "1,999"]]
    assert "played" not in seen
