"""Reports in a real browser: layout, sorting, hidden replies, silence. Skipped without Chromium.

A page of the test holds the report in a frame of a chosen width, does what a reader does, and
writes what it saw into itself; `--dump-dom` prints it. No driver is needed.
"""

from __future__ import annotations

import html
import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import example_run
from resect.report import build_comparison, build_report

BROWSER = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (path := shutil.which(name))
    ),
    None,
)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no browser: put Chromium on the path to test reports in it"
)

HARNESS = """<!doctype html><meta charset="utf-8"><body style="margin:0">
<iframe id="f" src="SOURCE" width="WIDTH" height="800" style="border:0"></iframe>
<pre id="out"></pre>
<script>
document.getElementById("f").addEventListener("load", () => {
  const page = document.getElementById("f").contentWindow, doc = page.document;
  const root = doc.documentElement, out = {};
  out.width = root.clientWidth; out.overflow = root.scrollWidth;
  for (const one of doc.querySelectorAll("details")) one.open = true;
  out.overflow_open = root.scrollWidth;
  out.requests = page.performance.getEntriesByType("resource").length;
  out.paper = page.getComputedStyle(doc.body).backgroundColor;
  const named = (one) => (one.getAttribute("aria-label") || one.getAttribute("aria-labelledby") ||
    one.textContent).trim() !== "";
  const controls = [...doc.querySelectorAll("a[href],button,summary,[tabindex='0']")];
  out.controls = controls.length;
  out.unnamed = controls.filter((one) => !named(one)).length;
  out.stuck = controls.filter((one) => { one.focus(); return doc.activeElement !== one; }).length;
  out.first = controls[0].textContent;
  out.ids = [...doc.querySelectorAll("[id]")].map((one) => one.id);
  out.headings = [...doc.querySelectorAll("h1,h2,h3,h4")].map((one) => +one.tagName[1]);
  out.tables = [...doc.querySelectorAll("table")].filter((one) => !one.caption).length;
  out.pictures = [...doc.querySelectorAll("svg")].filter((one) =>
    one.getAttribute("aria-hidden") !== "true" && !one.getAttribute("aria-label")).length;
  const table = doc.querySelector("table.sort");
  const head = table.querySelector("th.n"), at = head.cellIndex;
  const read = () => [...table.tBodies[0].rows].map((row) => row.cells[at].textContent);
  out.before = read(); head.querySelector("button").click(); out.up = read();
  out.aria_up = head.getAttribute("aria-sort");
  head.querySelector("button").click(); out.down = read();
  out.aria_down = head.getAttribute("aria-sort");

  document.getElementById("out").textContent = JSON.stringify(out);
});
</script>"""


def look(page: Path, width: int, *flags: str) -> tuple[dict[str, Any], str]:
    """Return what the harness saw, and what the console said."""
    harness = page.parent / "harness.html"
    text = HARNESS.replace("SOURCE", page.name).replace("WIDTH", str(width))
    harness.write_text(text, encoding="utf-8")
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
        "--allow-file-access-from-files", "--virtual-time-budget=8000", "--window-size=1300,900",
        f"--user-data-dir={page.parent / 'profile'}", *flags, "--dump-dom", harness.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    match = re.search(r'<pre id="out">(.*?)</pre>', done.stdout, re.DOTALL)
    assert match is not None, done.stderr[-2000:]
    assert match[1], done.stderr[-2000:]
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    seen: dict[str, Any] = json.loads(html.unescape(match[1]))
    return seen, console


def check(seen: dict[str, Any], console: str) -> None:
    assert console == ""
    assert seen["requests"] == 0
    assert seen["overflow"] <= seen["width"]
    assert seen["overflow_open"] <= seen["width"]
    assert seen["unnamed"] == seen["stuck"] == seen["tables"] == seen["pictures"] == 0
    assert seen["first"] == "Skip to the content"
    assert len(seen["ids"]) == len(set(seen["ids"]))
    levels = seen["headings"]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later - level <= 1 for level, later in itertools.pairwise(levels))


def values(texts: list[str]) -> list[float]:
    return [float(text.split()[0]) for text in texts if text != "–"]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_report(example_run.write(tmp_path_factory.mktemp("browser") / "run"))


def test_narrow_page_has_no_sideways_scroll_and_makes_no_noise(page: Path) -> None:
    seen, console = look(page, 360)
    check(seen, console)
    assert seen["width"] <= 360
    assert seen["controls"] > 50


def test_tables_sort_by_number_both_ways(page: Path) -> None:
    seen, _ = look(page, 1200)
    assert values(seen["before"]) != sorted(values(seen["before"]))
    assert values(seen["up"]) == sorted(values(seen["before"]))
    assert values(seen["down"]) == sorted(values(seen["before"]), reverse=True)
    assert (seen["aria_up"], seen["aria_down"]) == ("ascending", "descending")


def test_dark_mode_darkens_the_paper(page: Path) -> None:
    light, _ = look(page, 1200)
    dark, console = look(page, 1200, "--blink-settings=preferredColorScheme=0")
    assert light["paper"] == "rgb(255, 255, 255)"
    assert dark["paper"] == "rgb(21, 21, 21)"
    assert console == ""


def test_side_by_side_fits_a_narrow_screen(tmp_path: Path) -> None:
    runs = [
        example_run.write(
            tmp_path / str(index), example_run.results(f"model {index}", shift=0.01 * index)
        )
        for index in range(3)
    ]
    check(*look(build_comparison(runs, tmp_path / "side"), 360))
