"""Relearning from several harmless sets, and from trainings that are repeated."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from invented_run import Invented, invented_config
from resect.records import Claim
from resect.runs.config import RunConfig
from resect.runs.measure import _tune_settings
from resect.studies import relearning
from resect.studies.cells import Cell, Tuning
from resect.studies.models import over_models

BACK = 0.6


def section_of(measured: Invented) -> relearning.Relearning:
    assert isinstance(measured.config, RunConfig)
    section = measured.config.section(relearning.STUDY)
    assert section is not None
    return section


def claims(measured: Invented) -> list[Claim]:
    return list(over_models(measured, relearning.STUDY, section_of(measured)).claims)


def run(section: Mapping[str, object], *, back: tuple[str, int] | None = None) -> Invented:
    """Return a run in which one training, by its set and its repeat, brings harm back."""

    def rate(cell: Cell, probe: str) -> float:
        if probe != "generation" or cell.cut is None or cell.cut.kind != "target":
            return 0.95
        tuning = cell.tuning
        if tuning is not None and tuning.steps == 10 and (tuning.data, tuning.repeat) == back:
            return BACK
        return 0.02

    return Invented(invented_config({"relearning": section}), rate, prompts=120)


def verdicts(measured: Invented) -> list[str]:
    return [claim.verdict for claim in claims(measured)]


def test_the_set_that_brings_most_back_counts() -> None:
    forms = {"forms": ["harm", "advice"]}
    away, _, benign = claims(run(forms))
    assert (away.verdict, benign.verdict) == ("supported", "supported")
    assert "of each of benign, harm, advice" in benign.rule
    spoiled = claims(run(forms, back=("advice", 0)))
    assert [claim.verdict for claim in spoiled[::2]] == ["supported", "not supported"]
    assert spoiled[2].effect.name == "rise of harm after benign fine-tuning on advice"
    assert spoiled[2].effect.value == pytest.approx(BACK - 0.02, abs=0.02)
    # Without it nobody asks.
    assert verdicts(run({}, back=("advice", 0)))[2] == "supported"


@pytest.mark.parametrize(("data", "place"), [("hazard", 0), ("benign", 2)])
def test_harm_must_stay_away_after_each_training(data: str, place: int) -> None:
    measured = run({"repeats": 3}, back=(data, 2))
    found = claims(measured)
    assert [claim.verdict for claim in found[::2]].count("supported") == 1
    assert found[place].verdict == "not supported"
    assert found[place].effect.name.endswith(", again (2)")
    assert "each of 3 times" in found[place].rule
    rows = relearning.summarise(measured, section_of(measured)).tables["repeats"]
    assert {(row["arm"], row["repeat"]) for row in rows} == {
        (arm, repeat) for arm in ("cut, free", "cut, benign data") for repeat in range(3)
    }
    assert verdicts(run({"repeats": 3}))[::2] == ["supported", "supported"]


def test_one_training_of_one_set_is_asked_as_before() -> None:
    plain, same, more = (
        {cell.key for cell in relearning.plan(measured.config, section_of(measured))}
        for measured in (
            run({}),
            run({"forms": [], "repeats": 1}),
            run({"forms": ["harm"], "repeats": 2}),
        )
    )
    assert plain == same
    assert plain < more


def test_repeats_start_elsewhere() -> None:
    first = Tuning("hazard", 10, 1e-3, method="lora")
    again = Tuning("hazard", 10, 1e-3, method="lora", repeat=1)
    seeds = [_tune_settings(tuning, seed=3).seed for tuning in (first, again)]
    assert seeds[0] == 3
    assert seeds[1] != 3
