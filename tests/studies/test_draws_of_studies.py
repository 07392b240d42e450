"""What studies put together keeps one more prompt: the same estimates, bounds as wide at least."""

from __future__ import annotations

import math

import numpy as np
import pytest

from invented_run import Invented, Rate, invented_config
from resect.records import Interval
from resect.runs.config import RunConfig
from resect.stats import LEVEL, Array, Resampler, Sample
from resect.studies import curves, effects, emergent, relearning, transfer
from resect.studies.cells import Cell
from resect.studies.study import SectionType, Study

PROMPTS = 40


def measured(name: str, rate: Rate) -> Invented:
    return Invented(invented_config({name: {}}), rate, prompts=PROMPTS)


def section_of(run: Invented, study: Study[SectionType]) -> SectionType:
    """Return a study's section of the invented run."""
    assert isinstance(run.config, RunConfig)
    section = run.config.section(study)
    assert section is not None
    return section


def rates(*hits: int) -> list[Sample]:
    """Return rates of the same prompts, of which so many are hits."""
    resampler = Resampler("test")
    return [
        resampler.rate({"": [float(place < count) for place in range(PROMPTS)]}) for count in hits
    ]


def holds(sample: Sample, value: float, draws: Array) -> None:
    """Assert that a statistic has the value, and wider bounds than the draws alone give."""
    wide, bare = sample.interval(""), Sample(value, draws).interval("")
    assert sample.value == pytest.approx(value, abs=1e-12)
    assert wide.low is not None
    assert wide.high is not None
    assert bare.low is not None
    assert bare.high is not None
    assert wide.low <= bare.low + 1e-12
    assert wide.high >= bare.high - 1e-12
    assert wide.high - wide.low > bare.high - bare.low + 1e-6


@pytest.mark.parametrize("together", [False, True])
def test_a_mean_of_rates(together: bool) -> None:
    samples = rates(0, 3, 40)
    missing = Sample(math.nan, np.full_like(samples[0].draws, np.nan))
    mean = effects.mean_of([*samples, missing], together=together)
    draws = np.mean([sample.draws for sample in samples], axis=0)
    holds(mean, float(np.mean([0, 3 / 40, 1])), draws)
    assert math.isnan(effects.mean_of([missing]).value)


def test_misalignment_at_a_level() -> None:
    narrow, elsewhere = rates(0, 10, 38), rates(0, 0, 4)
    crossing = curves.at_level(0.6, narrow, elsewhere)
    bare = curves.at_level(
        0.6, narrow, [Sample(sample.value, sample.draws) for sample in elsewhere]
    )
    assert np.array_equal(crossing.draws, bare.draws, equal_nan=True)
    holds(crossing, bare.value, bare.draws)


def test_coherence_of_replies_of_which_none_is_broken() -> None:
    # Replies of invented runs are "refused" or "complied", none of them "incoherent".
    run = measured("emergent", lambda cell, probe: 0.5)
    row = emergent._rows(run, section_of(run, emergent.STUDY))[0]
    assert row["coherence"] == row["coherence_high"] == 1
    assert 0.8 < row["coherence_low"] < 0.95


def test_recovery_of_harm() -> None:
    def rate(cell: Cell, probe: str) -> float:
        return 0.9 if cell.cut is None else 0.2

    run = measured("relearning", rate)
    section = section_of(run, relearning.STUDY)
    dose = relearning._untuned(section)
    recovery = relearning._share(run, section, relearning.FREE, dose)
    intact, after = (
        relearning._harm(run, section, arm, dose) for arm in (relearning.INTACT, relearning.FREE)
    )
    value = after.value / intact.value
    holds(recovery, value, after.draws / intact.draws)


def test_margin_of_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "categories", lambda design: ("narrow", "far", "farther"))
    run = measured("transfer", lambda cell, probe: 0.9 if cell.cut is None else 0.2)
    shown: dict[str, Sample] = {}
    interval = Sample.interval

    def noted(sample: Sample, name: str, level: float = LEVEL) -> Interval:
        shown[name] = sample
        return interval(sample, name, level)

    monkeypatch.setattr(Sample, "interval", noted)
    section = section_of(run, transfer.STUDY)
    transfer.summarise(run, section)
    across, within = (
        shown[f"mean drop in {whose}"] for whose in ("other categories", "the own category")
    )
    share = section.share_of_diagonal
    value, draws = across.value - share * within.value, across.draws - share * within.draws
    holds(shown["margin"], value, draws)
