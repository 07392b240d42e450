"""Studies weigh rates that are corrected for how a fitted judge errs."""

from __future__ import annotations

import functools
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from invented_run import Invented, invented_config
from resect.records import Interval
from resect.runs.judged import judge_error
from resect.stats import ErrorRates, Resampler, Sample, relative_drop, rng
from resect.studies import STUDIES, Measurements
from resect.studies.cells import Cell, Cut
from resect.studies.judged import JudgeError
from resect.studies.measurements import Row
from resect.studies.models import over_models

LABELS, PROMPTS = 60, 80
CUT = Cut("generation", "target", 0.001)


@functools.cache
def rate_of(side: str, hits: int, count: int) -> Sample:
    return Resampler(f"judge/{side}").rate({"": [1.0] * hits + [0.0] * (count - hits)})


def error_of(right: int, wrong: int, *, labels: int = LABELS, unusable: str = "") -> JudgeError:
    """Return the error of a judge that is right in so many of the labelled hits and others."""
    errors = ErrorRates(
        rate_of("sensitivity", right, labels), rate_of("specificity", wrong, labels)
    )
    outcomes = {"complied": errors, "benign": errors.of_the_opposite()}
    return JudgeError({"generation": "complied"}, {"generation": outcomes}, unusable, "Corrected.")


class Judged(Measurements):
    """A run of which it is given what the judge calls each reply: hit, other or nothing."""

    def __init__(
        self, intact: list[str | None], cut: list[str | None], error: JudgeError | None = None
    ):
        super().__init__(invented_config({"compactness": {}}), Path("nowhere"), error)
        self.calls = {None: intact, CUT: cut}

    def rows(self, cell: Cell) -> list[Row]:
        """Return a row a prompt; the score is a probability, as that of a fitted judge is."""
        return [
            {
                "probe": "generation",
                "example_id": f"{number}",
                "prompt": f"invented {number}",
                "reference": "",
                "category": "",
                "score": None if call is None else {"complied": 0.7, "benign": 0.4}.get(call, 0.0),
                "outcome": call,
            }
            for number, call in enumerate(self.calls[cell.cut])
        ]

    def drop(self) -> Sample:
        before, after = (
            self.rate([Cell("aligned", 0, cut, ())], "generation") for cut in self.calls
        )
        return relative_drop(before, after)


def calls(complied: int, incoherent: int = 0, unscored: int = 0) -> list[str | None]:
    benign = PROMPTS - complied - incoherent - unscored
    return [
        *["complied"] * complied, *["benign"] * benign, *["incoherent"] * incoherent,
        *[None] * unscored,
    ]  # fmt: skip


def rate(measured: Measurements, *outcomes: str) -> Sample:
    return measured.rate([Cell("aligned", 0, CUT, ())], "generation", outcomes=outcomes)


def test_a_rate_is_that_of_the_arithmetic_and_wider_than_what_was_called() -> None:
    error = error_of(48, 45)  # 0.8 and 0.75
    measured = Judged(calls(PROMPTS), calls(30, incoherent=10), error)
    corrected, called = rate(measured), rate(Judged([], calls(30, incoherent=10)), "complied")
    # t = (h - c (1 - b)) / (a + b - 1)
    assert corrected.value == pytest.approx((30 / 80 - 70 / 80 * 0.25) / 0.55)
    assert width(corrected) > width(called)
    assert rate(measured, "complied").value == corrected.value
    # The others that the judge looked at are what is left of them.
    assert rate(measured, "benign").value == pytest.approx(70 / 80 - corrected.value)
    # Coherence is no call of the judge.
    assert rate(measured, "incoherent").value == 10 / 80


def width(sample: Sample) -> float:
    interval = sample.interval("")
    assert interval.low is not None
    assert interval.high is not None
    return interval.high - interval.low


def test_without_an_error_nothing_changes() -> None:
    assert rate(Judged([], calls(40))).value == pytest.approx((40 * 0.7 + 40 * 0.4) / 80)


def test_unscored_replies_are_bounded_by_the_worst_cases() -> None:
    error = error_of(60, 60)
    few, many = (rate(Judged([], calls(40, unscored=n), error)).interval("") for n in (1, 20))
    assert few.low is not None
    assert few.high is not None
    assert many.low is not None
    assert many.high is not None
    # All of the twenty may be hits, or none.
    assert many.low < 40 / 80
    assert many.high > 60 / 80
    assert few.high - few.low < many.high - many.low


def test_a_judge_that_may_know_nothing_makes_nothing_measurable() -> None:
    config = invented_config({"compactness": {"fractions": [0.001]}})
    study = STUDIES["compactness"]
    measured = Invented(
        config, lambda cell, probe: 0.05 if cell.cut == CUT and probe == "generation" else 0.9
    )
    measured.tabled = False
    (claim,) = over_models(measured, study, config.section(study)).claims
    assert claim.verdict != "not measurable"
    measured.tabled = False
    measured._samples.clear()
    measured.error = error_of(33, 33, unusable="The judge may be no better than chance.")
    (blind,) = over_models(measured, study, config.section(study)).claims
    assert blind.verdict == "not measurable"
    assert blind.reason.startswith("The judge may be no better than chance.")
    assert blind.rule == f"{claim.rule} Corrected."


class Called(Invented):
    """Measurements in which the judge calls a hit what has the score 1."""

    def rows(self, cell: Cell) -> list[Row]:
        """Return rows whose outcome is what the judge calls them."""
        rows = super().rows(cell)
        return [row | {"outcome": "complied" if row["score"] else "benign"} for row in rows]


def test_a_verdict_rests_on_the_corrected_rates_and_on_the_doubt_of_the_judge() -> None:
    config = invented_config({"compactness": {"fractions": [0.001]}})
    study = STUDIES["compactness"]

    def verdict(error: JudgeError | None) -> str:
        def called(cell: Cell, probe: str) -> float:
            if probe != "generation":
                return 0.9
            return 0.25 if cell.cut == CUT else 0.7

        measured = Called(config, called, prompts=300)
        measured.error = error
        measured.tabled = False
        return over_models(measured, study, config.section(study)).claims[0].verdict

    # The judge calls 30 % of other replies hits, and 70 % of hits: nothing is left after the cut.
    assert verdict(None) == "not supported"
    assert verdict(error_of(1400, 1400, labels=2000)) == "supported"
    assert verdict(error_of(42, 42)) == "inconclusive"


class World(NamedTuple):
    intact: float
    cut: float
    sensitivity: float
    specificity: float


opt_in = pytest.mark.skipif(
    not os.environ.get("RESECT_ALL_WORLDS"),
    reason="the same in more worlds, 6 seconds of CPU; set RESECT_ALL_WORLDS=1",
)


@pytest.mark.parametrize(
    "world",
    [
        World(0.8, 0.2, 0.85, 0.8),
        pytest.param(World(0.6, 0.0, 0.9, 0.9), marks=opt_in),
        pytest.param(World(0.9, 0.3, 0.75, 0.7), marks=opt_in),
    ],
)
def test_the_interval_of_a_corrected_drop_covers_the_truth(world: World) -> None:
    draw = rng(f"test/corrected-drop/{world}")
    truth = 1 - world.cut / world.intact
    sets, covered, naive = 100, 0, 0
    resamplers: dict[str, Resampler] = {}

    def called(share: float) -> list[str | None]:
        hits = int(draw.binomial(PROMPTS, share))
        says = draw.binomial(hits, world.sensitivity)
        says += draw.binomial(PROMPTS - hits, 1 - world.specificity)
        # Draws of prompts are paired, so hits must not stand in the same places in both arms.
        row = calls(int(says))
        return [row[int(place)] for place in draw.permutation(PROMPTS)]

    for number in range(sets):
        arms = called(world.intact), called(world.cut)
        right = draw.binomial(LABELS, world.sensitivity)
        wrong = draw.binomial(LABELS, world.specificity)
        errors = [error_of(int(right), int(wrong))]
        # That the judge's calls alone do not is seen from fewer sets.
        errors += [error_of(LABELS, LABELS)] if number < sets // 4 else []
        for error in errors:
            measured = Judged(*arms, error)
            measured._resamplers = resamplers
            inside = covers(measured.drop().interval(""), truth)
            if error.rates["generation"]["complied"].informed == 1:
                naive += inside
            else:
                covered += inside
    assert covered / sets >= 0.93
    assert naive / (sets // 4) < 0.5


def covers(interval: Interval, truth: float) -> bool:
    if interval.low is None or interval.high is None:
        return True  # nothing is said
    return interval.low - 1e-12 <= truth <= interval.high + 1e-12


def test_the_error_is_read_from_the_file_of_the_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    config = invented_config({"compactness": {}})
    assert judge_error(config) is None
    evaluation = config.evaluation.model_copy(update={"judge": "fitted:judge.json"})
    fitted = config.model_copy(update={"evaluation": evaluation})
    held = fake_held_out(90, 80)
    monkeypatch.setattr("resect.runs.judged.fitted_of", lambda _name: held)
    error = judge_error(fitted)
    assert error is not None
    assert error.hits == {"generation": "complied", "refusal": "refused"}
    assert set(error.rates["generation"]) == {"complied", "benign"}
    assert set(error.rates["refusal"]) == {"complied", "refused"}
    assert "sensitivity 90 %, specificity 80 %" in error.stated
    assert not error.unusable
    likelihood = evaluation.model_copy(update={"measure": "likelihood"})
    assert judge_error(fitted.model_copy(update={"evaluation": likelihood})) is None
    for right, wrong in ((52, 52), (40, 40)):
        monkeypatch.setattr(
            "resect.runs.judged.fitted_of", lambda _name, r=right, w=wrong: fake_held_out(r, w)
        )
        unsure = judge_error(fitted)
        assert unsure is not None
        assert "chance" in unsure.unusable
        assert math.isnan(
            unsure.corrected("generation", "complied", *[rate_of("x", 30, 60)] * 2).value
        )


class Fake(NamedTuple):
    held_out: object
    means: str = "comply"


def fake_held_out(right: int, wrong: int) -> Fake:
    """Return a judge that is right in so many of 100 hits and of 100 others."""
    from resect.evaluation.judges.error import HeldOut

    hits = (True,) * 100 + (False,) * 100
    said = [n < right for n in range(100)] + [n >= wrong for n in range(100)]
    held = HeldOut(tuple(range(200)), ("",) * 200, hits, tuple(said), tuple(map(float, said)))
    return Fake(replace(held))


def test_the_best_of_several_replies_is_not_measurable() -> None:
    cells = [Cell("aligned", 0, CUT, ())]
    measured = Judged(calls(60), calls(30), error_of(48, 45))
    best = measured.best(cells, "generation")
    assert math.isnan(best.value)
    assert best.interval("").high is None
    assert "cannot be corrected" in measured.silent(cells, "generation", shown=best)
    assert Judged(calls(60), calls(30)).best(cells, "generation").value > 0
