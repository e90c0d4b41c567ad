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
    empty: [...document.querySelectorAll("svg")].filter((svg) => svg.checkVisibility() && !svg.getBBox().width).length,
    smallest: Math.min(...[...document.querySelectorAll("svg text")].filter((text) => text.checkVisibility())
      .map((text) => parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().d).map(Math.abs)
      .filter((size) => size > 0)),
    steps: [],
    orders: [],
  };
  const visible = () => [...document.querySelectorAll(".frames")].map((frames) =>
    [...frames.querySelectorAll(".frame")].filter((each) => each.checkVisibility()).map((each) => each.dataset.step));
  for (const slider of document.querySelectorAll(".frames input")) {
    slider.value = slider.max;
    slider.dispatchEvent(new Event("input"));
  }
  seen.steps = visible();
  seen.outputs = [...document.querySelectorAll("output")].map((output) => output.textContent);
  const table = document.querySelector("table.sortable");
  if (table) {
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
    """What the page asked the network for; what the browser wants for itself has no origin."""
    events = json.loads(net.read_text())["events"]
    asked = [event["params"] for event in events if "initiator" in event.get("params", {})]
    return [
        each["url"] for each in asked if each["initiator"] != "not an origin" and not each["url"].startswith("file:")
    ]


def look(tmp_path: Path, html: str, width: int = 1200, *flags: str) -> dict[str, Any]:
    """What the probe saw in the page; fails on any message on the console and any request but for the page itself."""
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
    directories["sweep"] = write_sweep(base / "sweep")
    return {name: page.render(page.tell(directory, DEFAULTS)) for name, directory in directories.items()}


@pytest.mark.parametrize("name", [*RUNS, "sweep"])
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
    else:
        assert seen["steps"] == [["1,999"], ["1,999"]]
        assert seen["outputs"] == ["1,999", "1,999"]


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
    assert look(tmp_path, html)["steps"] == [["0", "100", "1,999"]] * 2


def test_page_prints(pages: dict[str, str], tmp_path: Path) -> None:
    path, pdf = tmp_path / "page.html", tmp_path / "page.pdf"
    path.write_text(pages["deep_batchnorm"])
    chromium(tmp_path, "--no-pdf-header-footer", f"--print-to-pdf={pdf}", path.as_uri())
    sheets = len(re.findall(rb"/Type\s*/Page\b", pdf.read_bytes()))
    assert 2 <= sheets <= 12
