"""What a claim was weighed by, and what it says of other models, on the page and in Markdown."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import example_run
from resect.records import Interval, OfRecipe, Requirement, Sense
from resect.report import build_report
from resect.report.tables import shape, tables_of
from resect.report.words import models_of, threshold, weighed

pytestmark = pytest.mark.usefixtures("without_paper")

FIRST, SECOND = "The invented claim of specificity holds.", "So does another of specificity."


def pages(folder: Path, results: dict[str, Any] | None = None) -> tuple[str, str]:
    run = example_run.write(folder / "run", results)
    page = build_report(run).read_text(encoding="utf-8")
    return page, (run / "report.md").read_text(encoding="utf-8")


def plain(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html.replace("\u00a0", " ")).split())


def test_conditions_and_recipe_stand_under_their_claim(tmp_path: Path) -> None:
    page, prose = pages(tmp_path)
    shown = page.split(f">{FIRST} <span")[1].split("Quote this")[0]
    folded = shown.split("<details>")[1]
    assert folded.startswith("<summary>Conditions of the rule</summary>")
    assert folded.count("<tr>") == 4
    words = plain(folded)
    # The third verdict of the example is "inconclusive": its first condition crosses.
    assert (
        "relative drop of harm, q = 0.2 % 70.0 % [66.0, 74.0] at least 50.0 % "
        "? may fail: a bound crosses it" in words
    )
    assert "p of swapped labels 5.0 % at most 5.0 % ✓ holds" in words
    models = "5 models; 60.0 % [56.0, 64.0]"
    line = f"Of these models: inconclusive . Of their recipe: inconclusive ({models}). Other models"
    assert line in plain(shown)
    below = prose.split(f"### {FIRST}")[1].split("### ")[0]
    line = f"Of these models: ? inconclusive. Of their recipe: ? inconclusive ({models}). Other"
    assert line in below.replace("\\", "")
    assert "| condition of the rule | measured | must be | result |" in below
    assert "| p of swapped labels | 5.0 % | at most 5.0 % | ✓ holds |" in below


def test_a_claim_without_them_is_shown_as_before(tmp_path: Path) -> None:
    page, prose = pages(tmp_path)
    for text in (
        page.split(f">{SECOND} <span")[1].split("Quote this")[0],
        prose.split(f"### {SECOND}")[1].split("### ")[0],
    ):
        assert "Rule: " in text
        assert re.search("onditions? of the rule", text) is None
        assert "recipe" not in text
    results = example_run.results()
    for claim in (*results["claims"], *(c for s in results["studies"] for c in s["claims"])):
        claim.pop("requirements", None)
        claim.pop("recipe", None)
    page, prose = pages(tmp_path / "old", results)
    for text in (page, prose):
        assert re.search("onditions? of the rule", text) is None
        assert "recipe" not in text
    report = json.loads((tmp_path / "old/run/report.json").read_text(encoding="utf-8"))
    assert {"requirements", "recipe"} & set(report["studies"][0]["claims"][0]) == set()


def test_report_json_has_them(tmp_path: Path) -> None:
    pages(tmp_path)
    report = json.loads((tmp_path / "run/report.json").read_text(encoding="utf-8"))
    claims = report["studies"][0]["claims"]
    assert claims[0]["requirements"][0]["threshold"] == 0.5
    assert claims[0]["recipe"]["models"] == 5


@pytest.mark.parametrize(
    ("name", "sense", "value", "words"),
    [
        ("drop", "at least", 0.5, "at least 50.0 %"),
        ("overlap (×)", "above", 1.0, "above 1 ×"),
        ("rank (correlation)", "below", 0.3, "below 0.30"),
    ],
)
def test_a_threshold_has_the_unit_of_what_it_is_compared_with(
    name: str, sense: Sense, value: float, words: str
) -> None:
    requirement = Requirement(Interval(name, None), sense, value, "unknown")
    assert threshold(requirement) == words
    assert weighed(requirement) == "–"


def test_the_models_of_a_recipe_are_counted() -> None:
    unknown, known = Interval("drop", None), Interval("drop", 0.5, 0.25, 0.75)
    assert models_of(OfRecipe("not measurable", "", unknown, 1)) == "1 model"
    assert models_of(OfRecipe("supported", "", known, 6)) == "6 models; 50.0 % [25.0, 75.0]"


def curve(exact: float | None) -> list[dict[str, Any]]:
    return [
        {"arm": arm, **example_run.triple("harm", 0.5), **example_run.triple("harm_drop", 0.4)}
        | ({} if exact is None else {"harm_exact": exact})
        for arm in ("target", "random", "magnitude")
    ]


def test_where_answers_are_graded_both_harms_are_named() -> None:
    graded = shape("curve", curve(0.25), "x.csv")
    assert [column.heading for column in graded.columns] == [
        "arm", "harm (content words)", "wholly harmful", "harm drop",
    ]  # fmt: skip
    assert graded.rows[0][1:3] == ("50.0 % [46.0, 54.0]", "25 %")
    # Where every answer is right or wrong as a whole the two are one number; older runs have one.
    for rows in (curve(0.5), curve(None)):
        headings = [column.heading for column in shape("curve", rows, "x.csv").columns]
        assert headings == ["arm", "harm", "harm drop"]


def test_swapped_labels_are_a_table_and_no_figure(tmp_path: Path) -> None:
    (study,) = (s for s in example_run.records().studies if s.study == "specificity")
    tables = {table.name: table for table in tables_of(study)}
    assert tables["swapped labels"].rows[:3] == (
        ("none: true labels", "90 %"), ("0", "0 %"), ("1", "2 %"),
    )  # fmt: skip
    assert all(column.numeric for column in tables["swapped labels"].columns)
    page, _ = pages(tmp_path)
    assert "random, as costly" in page
    rows = (tmp_path / "run/tables/specificity-permuted.csv").read_text(encoding="utf-8")
    assert rows.splitlines()[:3] == ["permutation,harm_drop", ",0.9", "0,0.0"]
