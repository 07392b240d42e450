"""The report from stored results: sizes, escapes, missing tables, words, both renderers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from typer.testing import CliRunner

import example_run
from resect.cli import app
from resect.errors import InputError
from resect.files import write_parquet
from resect.records import OUTCOMES, Interval, Row
from resect.report import build_comparison, build_report
from resect.report.figures import FIGURES, compactness, drawings, paper, where
from resect.report.figures.paper import figure_of, write_figures
from resect.report.figures.parts import violin
from resect.report.figures.screen import Pixel, _path, bare, panel_svg
from resect.report.figures.spec import COLOURS, ORDER, looks
from resect.report.page import hash_source
from resect.report.tables import csv_text, shape
from resect.report.words import interval, quote, readable

MOST_BYTES = 500_000
MOST_BYTES_A_STUDY = 48_000


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = example_run.write(tmp_path_factory.mktemp("report") / "run")
    build_report(folder)
    return folder


def test_twelve_studies_stay_small(run: Path) -> None:
    text = (run / "report.html").read_text(encoding="utf-8")
    assert len(text.encode()) < 0.7 * MOST_BYTES
    sections = text.split("<section ")
    assert len(sections) > len(example_run.STUDIES)
    assert max(len(section) for section in sections) < MOST_BYTES_A_STUDY


def test_policy_names_the_one_script_and_style(run: Path) -> None:
    text = (run / "report.html").read_text(encoding="utf-8")
    for tag in ("script", "style"):
        inner = text.split(f"<{tag}>")[1].split(f"</{tag}>")[0]
        assert f"{tag}-src 'sha256-{hash_source(inner)}'" in text
        assert text.count(f"<{tag}") == 1
    assert "http" not in text.replace("http-equiv", "")


def test_every_study_has_figures_as_svg_and_pdf(run: Path) -> None:
    summary = json.loads((run / "report.json").read_text(encoding="utf-8"))
    for study in summary["studies"]:
        claim_without_value = study["claims"][0]["effect"]["value"] is None
        assert study["figures"] or (study["study"] not in FIGURES and claim_without_value)
        for file in [name for figure in study["figures"] for name in figure["files"]]:
            assert (run / file).stat().st_size > 1000
        for table in study["tables"].values():
            assert (
                len((run / table["file"]).read_text(encoding="utf-8").splitlines()) > table["rows"]
            )
    pdf = (run / "figures" / "relearning-curve.pdf").read_bytes()
    assert b"/Type3" not in pdf
    assert b"/FontFile2" in pdf


@pytest.mark.parametrize("name", sorted(FIGURES))
def test_missing_tables_and_columns_are_left_out(name: str) -> None:
    assert all(not drawing.panels for drawing in FIGURES[name]({}, {}))
    tables = example_run.STUDIES[name]()
    for table in tables:
        remaining = {key: rows for key, rows in tables.items() if key != table}
        assert isinstance(FIGURES[name](remaining, {}), list)
        for row in tables[table]:
            for key in [key for key, value in row.items() if isinstance(value, float)]:
                row[key] = None
    # Numbers that are unknown are not drawn, and nothing falls over.
    for drawing in FIGURES[name](tables, {}):
        assert all("nan" not in panel_svg(panel).lower() for panel in drawing.panels)


def test_page_and_files_show_the_same_ticks() -> None:
    for study in example_run.records().studies:
        for drawing in drawings(study):
            axes = figure_of(drawing).axes
            assert len(axes) == len(drawing.panels)
            for axis, panel in zip(axes, drawing.panels, strict=True):
                ET.fromstring(panel_svg(panel))
                assert [label.get_text() for label in axis.get_xticklabels()] == [
                    text for _, text in panel.x.ticks
                ]
                assert [label.get_text() for label in axis.get_yticklabels()] == [
                    text for _, text in panel.y.ticks
                ]
                assert axis.get_title("left").startswith(panel.title)


def test_files_of_a_drawing_are_the_same_each_time_and_drawn_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (drawing, *_) = drawings(example_run.records().studies[0])
    contents = []
    for number in range(3):
        if number < 2:
            paper.DRAWN.clear()
        else:
            monkeypatch.setattr(paper, "figure_of", lambda _: pytest.fail("drawn again"))
        write_figures([drawing, drawing], tmp_path / str(number))
        files = sorted((tmp_path / str(number)).iterdir())
        contents.append({path.name: path.read_bytes() for path in files})
    assert set(contents[0]) == {f"{drawing.name}.svg", f"{drawing.name}.pdf"}
    assert contents[0] == contents[1] == contents[2]


class Reader(HTMLParser):
    """What a browser finds: tags with their attributes, and texts."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[object] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, tuple(attrs)))

    def handle_data(self, data: str) -> None:
        self.found.append(data)


def luminance(colour: str) -> float:
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (
        channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4
        for channel in channels
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_colours_stand_out_and_are_not_needed_to_tell_series_apart() -> None:
    for light, dark in COLOURS:
        assert 1.05 / (luminance(light) + 0.05) >= 3
        assert (luminance(dark) + 0.05) / (luminance("#151515") + 0.05) >= 3
    styles = looks(["aligned", "base", "another", "third", "never cut"])
    for group in (list(ORDER), list(styles.values())):
        for style, rival in combinations(group, 2):
            assert style.marker != rival.marker
            assert style.colour != rival.colour


def test_where_is_measured_against_chance() -> None:
    rows: list[Row] = [
        {"layer": 0, "kind": "a", "removed": 30, "size": 100},
        {"layer": 1, "kind": "a", "removed": 10, "size": 300},
    ]
    (drawing,) = where.draw("x", {"where": rows})
    # 30/40 of the cut in 1/4 of the weights; 10/40 in 3/4.
    assert [cell.text for cell in drawing.panels[0].cells] == ["3.0", "0.3"]
    (wide,) = where.draw("x", {"where": example_run.where(80)})
    assert len(wide.panels[0].x.ticks) <= where.MOST_COLUMNS


def test_violins_show_the_spread_of_values_and_no_more() -> None:
    look = ORDER[0]
    assert violin(0, look, [0.1, 0.2, 0.3, 0.4], "few") is None
    assert violin(0, look, [0.5] * 9, "all the same") is None
    values = [0.1, 0.5, 0.52, 0.54, 0.9, math.nan]
    density = violin(0, look, values, "five")
    assert density is not None
    assert (density.outline[0][0], density.median, density.outline[-1][0]) == (0.1, 0.52, 0.9)
    widest, half = max(density.outline, key=lambda edge: edge[1])
    assert 0.45 < widest < 0.6
    assert half == pytest.approx(0.4)
    (pairs, effects) = FIGURES["stability"](example_run.stability(), {})
    assert all(panel.violins for panel in (*pairs.panels, effects.panels[0]))
    assert effects.panels[1].violins == ()  # utility is the same in every run
    # Every pair and run is a dot too, seeds apart.
    assert len(effects.panels[0].series[0].points) == 3 * 13


def test_relearning_keeps_steps_and_examples_apart() -> None:
    (drawing,) = FIGURES["relearning"](example_run.relearning(), {})
    steps, examples, utility = drawing.panels
    assert [len(series.points) for series in steps.series] == [6, 6, 6]
    assert [len(series.points) for series in examples.series] == [4, 4, 4]
    assert "128 examples" in steps.title
    assert "20 steps" in examples.title
    assert "utility" in utility.title


def test_markup_without_quotes_says_the_same() -> None:
    """Every mark and text of a figure is there after its quotes have gone."""
    for study in example_run.records().studies:
        for drawing in drawings(study):
            for panel in drawing.panels:
                full, short = Reader(), Reader()
                full.feed(panel_svg(panel))
                short.feed(bare(panel_svg(panel)))
                assert short.found == full.found
                assert len(bare(panel_svg(panel))) < len(panel_svg(panel))


def test_lines_are_steps_between_rounded_places() -> None:
    points = [Pixel(10.04, 20.0), Pixel(12.0, 19.96), Pixel(11.0, 30.06)]
    assert _path(points) == "M10 20l2 0l-1 10.1"


def test_names_are_for_readers() -> None:
    attack = "harm under finetune:rank=4,steps=30+prefill:3, random cut"
    assert readable(attack) == "harm under fine-tuning, rank 4, steps 30 + prefill of 3 tokens, random cut"  # fmt: skip  # noqa: E501
    assert readable("ablate_refusal", options=False) == "ablated refusal"
    assert readable("weights behind other answers: same_style") == (
        "weights behind other answers: same style"
    )
    # More than eight arms still look different.
    styles = looks([f"arm {index}" for index in range(16)])
    assert len({(style.colour, style.marker) for style in styles.values()}) == 16


def _bars(rows: Sequence[Row]) -> list[str]:
    (_, drawing) = compactness.draw({"outcomes": rows}, {})
    return list(dict.fromkeys(bar.name for panel in drawing.panels for bar in panel.bars))


def test_what_is_partly_right_has_words_and_a_colour_of_its_own(tmp_path: Path) -> None:
    rows = example_run.STUDIES["compactness"]()["outcomes"]
    assert _bars(rows) == ["complied", "partly right", "refused", "wrong", "incoherent"]
    assert len(set(compactness.OUTCOME_COLOURS.values())) == len(OUTCOMES)
    replies = [
        {
            "role": "aligned", "seed": 0, "cut_kind": "target", "cut_target": "", "q": 0.1,
            "cut_category": "", "probe": "generation", "prompt": "p", "prefix": "", "text": "t",
            "outcome": outcome, "rule": "rule",
        }
        for outcome in ("partial", "refused_late", None)
    ]  # fmt: skip
    run = example_run.write(tmp_path / "run")
    write_parquet(run / "records" / "a.parquet", replies)
    page = build_report(run, show_replies=True).read_text(encoding="utf-8")
    for words in ("partly right (rule)", "refused late (rule)", "– (rule)", ">partly right<"):
        assert words in page


def test_a_run_that_knew_no_partly_right_answers_is_drawn(tmp_path: Path) -> None:
    rows = example_run.STUDIES["compactness"]()["outcomes"]
    rows = [row for row in rows if row["outcome"] != "partial"]
    assert _bars(rows) == ["complied", "refused", "wrong", "incoherent"]
    results = example_run.results()
    results["studies"][0]["tables"]["outcomes"] = rows
    page = build_report(example_run.write(tmp_path / "run", results)).read_text(encoding="utf-8")
    assert "partly right" not in page.replace("partly right or benign", "")


def test_words_keep_units_and_tables_keep_bounds() -> None:
    assert interval(Interval("overlap (×)", 140.0)) == "140 ×"
    assert interval(Interval(**example_run.interval("drop", 0.5))) == "50.0 % [46.0, 54.0]"
    sentence = quote(example_run.records().claims[1], "my run", "1.2")
    for words in ("does not support", "70.0 % [66.0, 74.0]", "180 prompts", "1.2", "my run"):
        assert words in sentence
    rows = [{"seed": None, "arm": "target", **example_run.triple("harm", 0.5), "n": 9}] * 3
    table = shape("x", rows, "x.csv")
    assert ("harm", True) in table.columns
    assert "prompts 9 in every row" in table.caption
    assert csv_text([{"a": "=1+1", "b": None}]) == "a,b\n'=1+1,\n"


def test_markup_in_a_run_stays_text(tmp_path: Path) -> None:
    results = example_run.results("<b>x</b> | `y`")
    results["studies"][0]["claims"][0]["effect"]["name"] = '"><script>alert(1)</script>\u202e'
    results["studies"][2]["tables"]["bars"][0]["arm"] = "<img src=x>"
    page = build_report(example_run.write(tmp_path / "run", results))
    text = page.read_text(encoding="utf-8")
    for word in ("<b>x", "<script>alert", "<img", "\u202e"):
        assert word not in text
    prose = (tmp_path / "run" / "report.md").read_text(encoding="utf-8").split("## Cite")[0]
    assert "<b>x" not in prose


def test_runs_side_by_side(tmp_path: Path) -> None:
    runs = [example_run.write(tmp_path / name, example_run.results("same")) for name in "ab"]
    changed = example_run.results("other")
    changed["claims"][0]["rule"] = "Another rule."
    del changed["claims"][1]
    runs.append(example_run.write(tmp_path / "c", changed))
    arguments = ["report", "--compare", *map(str, runs), "-o", str(tmp_path / "side")]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    text = (tmp_path / "side" / "report.html").read_text(encoding="utf-8")
    assert text.count("rules or settings differ") == 1
    assert text.count("not asked") == 1
    assert "same (a)" in text
    with pytest.raises(InputError, match="two runs"):
        build_comparison(runs[:1], tmp_path / "one")
    with pytest.raises(InputError, match="is a run"):
        build_comparison(runs, runs[0])
