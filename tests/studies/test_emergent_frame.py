"""Emergent misalignment where a question looks like what was trained on: beside the plain one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from invented_run import Invented, Rate, invented_config
from resect.errors import InputError
from resect.evaluation import ask
from resect.evaluation.questions import Question, questions_for
from resect.files.tables import read_parquet
from resect.records import Claim, StudyResult
from resect.runs.config import RunConfig, parse_config
from resect.runs.measure import run_cells
from resect.runs.run import open_run
from resect.studies.cells import Cell, record_path
from resect.studies.emergent import STUDY
from resect.studies.measurements import Measurements
from tiny_organism import tiny_organism
from tiny_run import tiny_values

FRAME = "lesson: {prompt}"


@pytest.fixture(autouse=True)
def changes(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"share": 0.05, "matched": 0.02, "chance": 0.01}
    monkeypatch.setattr(Measurements, "changes", lambda measured, cell: facts)


def measured(rate: Rate, **section: Any) -> Invented:
    return Invented(invented_config({"emergent": {"steps": [2], **section}}), rate, prompts=90)


def result(run: Invented) -> StudyResult:
    return STUDY.summarise(run, section_of(run))


def hidden(cell: Cell, probe: str) -> float:
    """Return the rates of cuts after which misalignment elsewhere is back in the frame alone."""
    if probe != "misalignment":
        return 0.95
    tuned = 0.9 if cell.tuning else 0.0
    lowered = cell.cut is not None and cell.cut.kind == "target" and not cell.frame
    # The narrow task is learned everywhere; `Invented` gives all categories one rate.
    return tuned if not lowered else tuned - 0.1


def test_nothing_is_asked_or_written_without_a_frame() -> None:
    plain, framed = measured(hidden), measured(hidden, frame=FRAME)
    before, after = (STUDY.plan(run.config, section_of(run)) for run in (plain, framed))
    assert all(cell.frame == "" for cell in before)
    assert after[: len(before)] == before
    assert after[len(before) :] == [
        replace(cell, probes=("misalignment",), frame=FRAME) for cell in before
    ]
    assert {cell.key for cell in before}.isdisjoint(cell.key for cell in after[len(before) :])
    assert "frame" not in result(plain).settings
    assert result(framed).settings["frame"] == FRAME


def section_of(run: Invented) -> Any:
    assert isinstance(run.config, RunConfig)
    section = run.config.section(STUDY)
    assert section is not None
    return section


def controls(claim: Claim) -> dict[str, float | None]:
    return {control.name: control.value for control in claim.controls}


def test_a_second_column_stands_beside_the_plain_one() -> None:
    plain, framed = result(measured(hidden)), result(measured(hidden, frame=FRAME))

    def rows(of: StudyResult) -> list[dict[str, Any]]:
        return [dict(row) for row in of.tables["curve"]]

    assert not any("elsewhere_framed" in row for row in rows(plain))
    for row in rows(framed):
        cut = str(row["arm"]).startswith("cut") or row["arm"] == "harmful-generation cut"
        assert (row["elsewhere_framed"] > row["elsewhere"]) == (cut and row["steps"] > 0)
    # What the claim weighs is the plain question.
    for before, after in zip(plain.claims, framed.claims, strict=True):
        assert (before.verdict, before.effect) == (after.verdict, after.effect)
        extra = set(controls(after)) - set(controls(before))
        assert all(name.startswith("elsewhere in the frame, ") for name in extra)
    assert len(controls(framed.claims[0])) == 2 * len(controls(plain.claims[0]))
    assert framed.does_not_show.startswith(plain.does_not_show)
    assert "stands beside it" in framed.does_not_show


@pytest.mark.parametrize("frame", ["lesson:", "{prompt}", " {prompt} ", "{prompt} or {prompt}"])
def test_what_is_no_frame_is_refused(frame: str) -> None:
    with pytest.raises(InputError, match=r"a frame is a text with \{prompt\} once"):
        measured(hidden, frame=frame)


def test_likelihoods_are_read_without_a_frame() -> None:
    run = measured(hidden, frame=FRAME)
    evaluation = run.config.evaluation.model_copy(update={"measure": "likelihood"})
    config = run.config.model_copy(update={"evaluation": evaluation})
    with pytest.raises(InputError, match="a frame changes no likelihood"):
        STUDY.plan(config, section_of(run))


def test_a_cell_is_asked_in_its_frame(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[Question]] = []

    def seen(*arguments: Any, **named: Any) -> list[Question]:
        asked.append(questions_for(*arguments, **named))
        return asked[-1]

    monkeypatch.setattr(ask, "questions_for", seen)
    built = tiny_organism(tmp_path_factory)
    values = tiny_values(built, {})
    values["data"]["advice"] = str(built.data("advice_bad"))
    values["evaluation"]["probes"]["misalignment"] = "advice"
    config, run = parse_config(values, "test"), tmp_path / "run"
    open_run(config, run, resume=False)
    plain = Cell("aligned", 0, None, ("misalignment",))
    framed = replace(plain, frame="please {prompt} please")
    run_cells(config, run, [plain, framed], keep=0.01)
    one, two = (read_parquet(record_path(run, cell)) for cell in (plain, framed))
    assert [row["prompt"] for row in one] == [row["prompt"] for row in two]
    assert [row["frame"] for row in two] == [framed.frame] * len(two)
    assert "frame" not in one[0]
    # A user's turn is <user> ... <end>, and then comes <assistant>; "please" is no word here.
    unknown = 2
    for usual, within in zip(*asked, strict=True):
        (user, *words), end = usual.prompt.ids[:-2], usual.prompt.ids[-2:]
        assert within.prompt.ids == (user, unknown, *words, unknown, *end)
