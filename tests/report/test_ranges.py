"""Bounds that are no interval: a range is called one wherever an effect is written."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

import example_run
from resect.cli import show
from resect.files.writing import plain
from resect.records import Interval
from resect.report import build_comparison, build_report
from resect.report.words import bounds_of, bounds_sentence, interval

pytestmark = pytest.mark.usefixtures("without_paper")

MEASURED = Interval("overlap", 0.5, 0.25, 0.75)
RANGE = Interval("overlap", 0.5, 0.25, 0.75, bounds="range")


def a_run(folder: Path) -> Path:
    """Write a run in which the effect of one claim, and of one alone, has a range."""
    results = example_run.results()
    results["claims"][15]["effect"]["bounds"] = "range"  # the same claim stands under its study
    return example_run.write(folder, results)


def test_json_holds_what_bounds_are_for_a_range_alone() -> None:
    assert plain(MEASURED) == {"name": "overlap", "value": 0.5, "low": 0.25, "high": 0.75}
    assert plain(RANGE) == plain(MEASURED) | {"bounds": "range"}
    assert plain({"deep": [RANGE]}) == {"deep": [asdict(RANGE)]}
    # What an older version wrote.
    assert Interval(**json.loads(json.dumps(plain(MEASURED)))) == MEASURED


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("overlap", "50.0 % [range 25.0, 75.0]"),
        ("change (×)", "0.5 × [range 0.25, 0.75]"),
        ("agreement (correlation)", "0.50 [range 0.25, 0.75]"),
    ],
)
def test_a_range_is_called_one_in_every_unit(name: str, text: str) -> None:
    assert interval(replace(RANGE, name=name)) == text
    assert interval(replace(MEASURED, name=name)) == text.replace("range ", "")


def test_headings_and_sentences_name_both_kinds() -> None:
    unknown = Interval("overlap", 0.5)
    only, mixed = [RANGE, unknown], [RANGE, MEASURED]
    assert [bounds_of(some) for some in ([unknown], only, mixed)] == [
        "95 % interval", "range", "95 % interval or range",
    ]  # fmt: skip
    assert bounds_sentence([]) == bounds_sentence([unknown]) == "95 % intervals"
    assert bounds_sentence(only) == "ranges from the smallest to the largest value"
    assert bounds_sentence(mixed) == "95 % intervals, or ranges where it says so"


def test_every_page_and_text_calls_a_range_one(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    build_report(run)
    summary = json.loads((run / "report.json").read_text(encoding="utf-8"))
    quotes = [claim["quote"] for study in summary["studies"] for claim in study["claims"]]
    assert [index for index, quote in enumerate(quotes) if "[range 66.0, 74.0]" in quote] == [15]
    assert "(95 % intervals, or ranges where it says so; 180 prompts" in quotes[15]
    assert "(95 % intervals; 180 prompts" in quotes[0]
    text = (run / "report.md").read_text(encoding="utf-8")
    assert "| effect [95 % interval or range] |" in text
    assert text.count("| value [95 % interval or range] |") == 1
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "95&nbsp;% intervals, or ranges where it says so, in brackets" in page
    assert '<span class="bounds">[range 66.0, 74.0]' in page
    side = build_comparison([run, run], tmp_path / "side").read_text(encoding="utf-8")
    assert "effect [95 % interval or range]" in side
    assert "70.0\u00a0%\u00a0[range 66.0, 74.0]" in side


def test_the_terminal_calls_a_range_one(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                        monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    rows: list[dict[str, Any]] = []
    monkeypatch.setattr(show, "table", lambda _title, some: rows.extend(some))
    show.show_verdicts(a_run(tmp_path / "run"), 0.0)
    capsys.readouterr()
    assert rows[15]["effect"] == "70.0 % [range 66.0, 74.0]"
    assert rows[0]["effect"] == "70.0 % [66.0, 74.0]"
