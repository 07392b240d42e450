"""Results read back as records: what is broken is named, and a fault of our own stays a fault."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import example_run
from resect.errors import InputError
from resect.files.tables import write_parquet
from resect.files.writing import plain
from resect.records import Results
from resect.report import build_comparison, build_report, html
from resect.report.figures import FIGURES
from resect.report.results import read_results

Row = dict[str, Any]


def written(folder: Path, change: Callable[[Row], object]) -> Path:
    """Write an example run whose results were changed."""
    results = copy.deepcopy(example_run.results())
    change(results)
    return example_run.write(folder, results)


def study(results: Row, name: str) -> Row:
    match: Row = next(study for study in results["studies"] if study["study"] == name)
    return match


# What is done to the results, and the field that the message names.
BREAKS: list[tuple[Callable[[Row], object], str]] = [
    (lambda it: it.pop("quick"), "quick: Field required"),
    (lambda it: it.update(name=3), "name: Input should be a valid string"),
    (lambda it: it["studies"][2].pop("title"), "studies[2].title: Field required"),
    (lambda it: it["studies"][0]["claims"][1].update(verdict="maybe"),
     "claims[1].verdict: Input should be 'supported', 'not supported'"),
    (lambda it: it["studies"][0]["claims"][1]["effect"].update(value="0.5"),
     "claims[1].effect.value: Input should be a valid number"),
    (lambda it: it["studies"][0]["claims"][0].update(controls=[]),
     "claims[0]: claim 'compactness' has no controls"),
    (lambda it: it["claims"][4]["effect"].update(bounds="guess"),
     "claims[4].effect.bounds: Input should be '95 %' or 'range'"),
    (lambda it: it["provenance"].update(seeds=3), "provenance.seeds: Input should be a list"),
    (lambda it: it["studies"][0]["tables"]["curve"][3].update(q=[1]),
     "studies[0].tables.curve[3].q: Input should be a valid string or a valid integer"),
    (lambda it: it["studies"][0]["tables"]["curve"][3].pop("arm"),
     "studies[0].tables.curve[3].arm: Field required"),
    (lambda it: it["studies"][0]["tables"]["where"][1].update(size=-1),
     "studies[0].tables.where[1].size: Input should be a whole number of 0 or more"),
    (lambda it: it["studies"][0]["tables"]["outcomes"][2].update(q="high"),
     "studies[0].tables.outcomes[2].q: Input should be a valid number"),
    (lambda it: it["studies"][1]["tables"]["overlap"][0].pop("first"),
     "studies[1].tables.overlap[0].first: Field required"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "field"), BREAKS, ids=[field[:40] for _, field in BREAKS])
def test_a_broken_file_is_one_message_that_names_file_and_field(
    change: Callable[[Row], object], field: str, tmp_path: Path
) -> None:
    run = written(tmp_path / "run", change)
    with pytest.raises(InputError) as error:
        build_report(run)
    assert f"{run / 'results.json'} is not a whole result" in str(error.value)
    assert field in error.value.got
    assert error.value.fix
    assert [path.name for path in run.iterdir()] == ["results.json"]


@pytest.mark.parametrize("number", ["NaN", "1e999", "9" * 200])
def test_numbers_that_are_none_are_refused(number: str, tmp_path: Path) -> None:
    run = example_run.write(tmp_path / "run")
    text = (run / "results.json").read_text(encoding="utf-8")
    (run / "results.json").write_text(text.replace("0.7", number, 1), encoding="utf-8")
    with pytest.raises(InputError, match=r"results\.json"):
        build_report(run)


@pytest.mark.parametrize("fault", [TypeError, KeyError, AttributeError, ValueError])
def test_a_fault_of_our_own_keeps_its_traceback(
    fault: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(*_: object, **__: object) -> None:
        raise fault("of our own")

    runs = [example_run.write(tmp_path / name) for name in "ab"]
    with monkeypatch.context() as patch:
        patch.setitem(FIGURES, "transfer", draw)
        with pytest.raises(fault, match="of our own"):
            build_report(runs[0])
    with monkeypatch.context() as patch:
        patch.setattr(html, "render", draw)
        with pytest.raises(fault, match="of our own"):
            build_report(runs[0])
    monkeypatch.setattr("resect.report.compare.drops", draw)
    with pytest.raises(fault, match="of our own"):
        build_comparison(runs, tmp_path / "side")


def test_results_come_back_as_they_were_written(tmp_path: Path) -> None:
    run = example_run.write(tmp_path / "run")
    results = read_results(run)
    assert isinstance(results, Results)
    again = plain(results)
    assert {claim.pop("counted") for claim in again["claims"]} == {"prompts"}
    for section in again["studies"]:
        assert {claim.pop("counted") for claim in section["claims"]} == {"prompts"}
    assert again == json.loads((run / "results.json").read_text(encoding="utf-8"))


def test_what_older_versions_did_not_write_and_newer_ones_add_is_no_mistake(tmp_path: Path) -> None:
    def change(results: Row) -> None:
        results["written_by_a_newer_version"] = {"x": 1}
        for claim in results["claims"]:
            claim.pop("by_seed")
            claim["effect"]["unit"] = "?"
        for section in results["studies"]:
            section.pop("settings")

    results = read_results(written(tmp_path / "run", change))
    assert {claim.effect.bounds for claim in results.claims} == {"95 %"}
    assert {len(claim.by_seed) for claim in results.claims} == {0}
    assert build_report(tmp_path / "run").is_file()


def test_a_record_that_lacks_a_column_is_named(tmp_path: Path) -> None:
    run = example_run.write(tmp_path / "run")
    write_parquet(run / "records" / "a.parquet", [{"role": "a", "probe": "generation"}])
    build_report(run)
    with pytest.raises(
        InputError, match=r"a\.parquet is not a whole record\n  got: no column seed"
    ):
        build_report(run, show_replies=True)


def test_replies_that_no_judge_has_seen_are_not_shown(tmp_path: Path) -> None:
    run = example_run.write(tmp_path / "run")
    row = dict.fromkeys(html.REPLY_COLUMNS, "x") | {"q": 0.5, "seed": 0, "probe": "generation"}
    write_parquet(run / "records" / "a.parquet", [row | {"text": "judged words"}])
    write_parquet(run / "records" / "b.asked.parquet", [row | {"text": "unjudged words"}])
    page = build_report(run, show_replies=True).read_text(encoding="utf-8")
    assert "judged words" in page
    assert "unjudged words" not in page
