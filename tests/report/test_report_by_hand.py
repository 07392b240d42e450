"""Reports as a reader uses them: with the keyboard, with a screen reader, on paper, at full size.

Skipped without Chromium. With the environment variable RESECT_AXE, the path of `axe.min.js` from
the npm package axe-core, its rules are put to the page as well.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import example_run
from browser import BROWSER, NONE, Page, browser
from resect.report import build_comparison, build_report

pytestmark = pytest.mark.skipif(BROWSER is None, reason=NONE)

AXE = os.environ.get("RESECT_AXE", "")
A4 = 718  # CSS pixels between margins of 1 cm
CONTROLS = "a[href],button,summary,input,select,[tabindex='0']"
WHERE = """(() => {
  const one = document.activeElement, style = getComputedStyle(one);
  const box = one.getBoundingClientRect();
  return {
    at: [...document.querySelectorAll("CONTROLS")].indexOf(one),
    outline: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0,
    seen: box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth,
    text: one.textContent.slice(0, 40),
  };
})()""".replace("CONTROLS", CONTROLS)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_report(example_run.write(tmp_path_factory.mktemp("hand") / "run"))


@pytest.fixture
def page(report: Path, tmp_path: Path) -> Iterator[Page]:
    with browser(tmp_path / "profile") as running:
        running.open(report)
        yield running


def test_tab_walks_through_every_control_in_order_and_shows_where_it_is(page: Page) -> None:
    count = page.run(f'document.querySelectorAll("{CONTROLS}").length')
    visible = page.run(
        f"""[...document.querySelectorAll("{CONTROLS}")].map((one, at) => [one, at])
        .filter(([one]) => one.checkVisibility()).map(([, at]) => at)"""
    )
    assert count >= len(visible) > 40
    stops: list[dict[str, Any]] = []
    for _ in visible:
        page.press("Tab", 9)
        stops.append(page.run(WHERE))
    assert [stop["at"] for stop in stops] == visible
    assert [stop for stop in stops if not stop["outline"]] == []
    assert [stop for stop in stops if not stop["seen"]] == []


def test_keys_open_details_and_sort_tables(page: Page) -> None:
    page.run('document.querySelector("summary").focus()')
    page.press("Enter", 13, "\r")
    assert page.run('document.querySelector("details").open') is True
    page.run(
        """[...document.querySelectorAll("details")].forEach((one) => { one.open = true; });
        document.querySelector("table.sort th.n button").focus()"""
    )
    page.press(" ", 32, " ")
    sort = 'document.querySelector("table.sort th.n").getAttribute("aria-sort")'
    assert page.run(sort) == "ascending"
    page.press(" ", 32, " ")
    assert page.run(sort) == "descending"


def test_a_screen_reader_finds_a_name_for_everything(page: Page) -> None:
    page.run('[...document.querySelectorAll("details")].forEach((one) => { one.open = true; })')
    roles = {"button", "link", "image", "table", "columnheader", "DisclosureTriangle", "navigation"}
    nodes = page.send("Accessibility.getFullAXTree")["nodes"]
    names = [
        (node["role"]["value"], node.get("name", {}).get("value", "").strip())
        for node in nodes
        if not node["ignored"] and node["role"]["value"] in roles
    ]
    assert {role for role, _ in names} >= {"button", "link", "image", "table"}
    assert [role for role, name in names if not name] == []


@pytest.mark.skipif(not AXE, reason="RESECT_AXE does not name axe.min.js; .ci/run fetches it")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_has_nothing_to_say(page: Page, scheme: str) -> None:
    page.send(
        "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
    )
    page.run('[...document.querySelectorAll("details")].forEach((one) => { one.open = true; })')
    page.run(Path(AXE).read_text(encoding="utf-8") + ";0")
    answer = json.loads(page.run("axe.run(document).then((all) => JSON.stringify(all))"))
    assert len(answer["passes"]) > 15  # the rules were there and had something to look at
    assert [
        (
            violation["id"],
            violation["impact"],
            [node["html"][:120] for node in violation["nodes"][:3]],
        )
        for violation in answer["violations"]
    ] == []


def test_nothing_is_cut_off_on_paper(page: Page, report: Path) -> None:
    page.send("Emulation.setEmulatedMedia", media="print")
    page.open(report, width=A4)
    page.run('dispatchEvent(new Event("beforeprint"))')
    over = page.run(
        """[...document.querySelectorAll("body *")].filter((one) => one.checkVisibility() &&
        !one.closest(".skip") && one.getBoundingClientRect().right > innerWidth + 1)
        .map((one) => one.tagName + "." + (one.className.baseVal ?? one.className)).slice(0, 5)"""
    )
    assert over == []
    scrolled = page.run(
        """[...document.querySelectorAll(".scroll,pre")].filter((one) => one.checkVisibility() &&
        one.scrollWidth > one.clientWidth + 1)
        .map((one) => one.textContent.trim().slice(0, 60) + " " + one.scrollWidth).slice(0, 5)"""
    )
    assert scrolled == []
    answer = page.send("Page.printToPDF", printBackground=True, paperWidth=8.27, paperHeight=11.69)
    printed = base64.b64decode(answer["data"])
    assert printed.startswith(b"%PDF")
    sheets = len(re.findall(rb"/Type\s*/Page\b", printed))
    assert 10 < sheets < 80


def test_twenty_models_by_fourteen_studies_stay_small_and_open_at_once(tmp_path: Path) -> None:
    runs = []
    for index in range(20):
        results = example_run.results(f"model {index}", shift=0.005 * index)
        another = {**results["studies"][0], "study": "fourteenth", "title": "What else?"}
        another["claims"] = [example_run.claim("fourteenth", index, 0.005 * index)]
        results["studies"].append(another)
        results["claims"] += another["claims"]
        runs.append(example_run.write(tmp_path / f"run-{index}", results))
    side = build_comparison(runs, tmp_path / "side")
    assert len(json.loads((runs[0] / "results.json").read_text())["studies"]) == 14
    assert side.stat().st_size < 3_000_000
    with browser(tmp_path / "profile") as page:
        page.open(side)  # the first page of a browser also starts it
        seconds = page.open(side)
        assert page.run("document.documentElement.scrollWidth <= innerWidth") is True
        assert page.run('document.querySelectorAll("table").length') >= 1
    assert seconds < 2, f"{seconds:.2f} s"
