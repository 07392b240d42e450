"""Statistics with their bootstrap draws, and the arithmetic that studies do with them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from resect.records import Interval
from resect.stats.counts import LEVEL, wilson

Array = npt.NDArray[np.float64]


class Sample:
    """A statistic with its bootstrap draws; arithmetic is carried out draw by draw.

    Draws of two samples may be combined only if they come from the same resampled prompts, which
    holds for everything that one `Resampler` returns.
    """

    def __init__(
        self,
        value: float,
        draws: Array,
        exact: tuple[float, float] | None = None,
        trials: int = 0,
    ):
        """Hold a point estimate, draws [R] and, where known, bounds that need no resampling.

        `trials` is the number of different prompts behind it, 0 where that is not known.
        """
        self.value = value
        self.draws = draws
        self.exact = exact
        self.trials = trials

    def interval(self, name: str, level: float = LEVEL) -> Interval:
        """Return the percentile interval, widened to the exact bounds where they are known.

        A bootstrap of values that are all equal has no spread, however few they are; the exact
        bounds (Wilson) keep such an interval honest.
        """
        if math.isnan(self.value):
            return Interval(name, None)
        finite = self.draws[np.isfinite(self.draws)]
        if finite.size == 0:
            return Interval(name, self.value)
        tail = 100 * (1 - level) / 2
        low, high = (float(bound) for bound in np.percentile(finite, [tail, 100 - tail]))
        if self.exact is not None:
            low, high = min(low, self.exact[0]), max(high, self.exact[1])
        return Interval(name, self.value, min(low, self.value), max(high, self.value))

    def __sub__(self, other: Sample) -> Sample:
        """Return the paired difference.

        Where both sides have exact bounds and the draws of the difference have no spread to speak
        of (the middle 95 % of them are equal), the bounds of the difference are those of the sides.
        """
        exact = None
        if self.exact is not None and other.exact is not None:
            tails = np.nanpercentile(self.draws - other.draws, [2.5, 97.5])
            if tails[1] - tails[0] >= 1e-12:
                return Sample(self.value - other.value, self.draws - other.draws)
            exact = (self.exact[0] - other.exact[1], self.exact[1] - other.exact[0])
        return Sample(self.value - other.value, self.draws - other.draws, exact)


def relative_drop(intact: Sample, cut: Sample) -> Sample:
    """Return 1 - cut / intact, draw by draw; NaN where the intact rate is zero.

    Where no prompt changed, Wilson's bound on how many of all prompts may change stands in for the
    missing spread.
    """
    if intact.value == 0 or math.isnan(intact.value):
        return Sample(math.nan, np.full(len(cut.draws), np.nan))
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = 1 - cut.draws / intact.draws
    exact = None
    if cut.exact is not None:
        exact = (1 - cut.exact[1] / intact.value, 1 - cut.exact[0] / intact.value)
    elif cut.trials and np.nanmax(np.abs(draws)) < 1e-12:
        reach = wilson(0, cut.trials)[1] / intact.value
        exact = (-reach, min(reach, 1.0))
    return Sample(1 - cut.value / intact.value, draws, exact, cut.trials)


def ratio(numerator: Sample, denominator: Sample) -> Sample:
    """Return numerator / denominator, draw by draw; NaN where the denominator's rate is zero.

    Where one arm has no spread and its exact bounds are known, the ratio of the bounds stands in
    for the missing spread.
    """
    if denominator.value == 0 or math.isnan(denominator.value):
        return Sample(math.nan, np.full(len(numerator.draws), np.nan))
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = numerator.draws / denominator.draws
    exact = None
    if numerator.exact is not None:
        low, high = numerator.exact
        exact = (low / denominator.value, high / denominator.value)
    return Sample(numerator.value / denominator.value, draws, exact)


def best_within(budget: float, harm_drops: list[Sample], utility_drops: list[Sample]) -> Sample:
    """Return the largest harm drop among cuts whose utility drop is within the budget.

    The choice is repeated in every draw, so that its luck is inside the interval. No cut (a drop
    of 0 at no cost) is always among the choices.

    Args:
        budget: Largest relative utility drop, a fraction.
        harm_drops: One sample a cut.
        utility_drops: Utility drops of the same cuts.
    """

    def choose(harm: Array, utility: Array) -> Array:
        allowed = np.where(utility <= budget, np.nan_to_num(harm, nan=0.0), 0.0)
        best: Array = np.maximum(allowed.max(axis=0), 0.0)
        return best

    value = choose(
        np.array([[sample.value] for sample in harm_drops]),
        np.array([[sample.value] for sample in utility_drops]),
    )
    draws = choose(
        np.stack([sample.draws for sample in harm_drops]),
        np.stack([sample.draws for sample in utility_drops]),
    )
    chosen = [
        sample
        for sample, cost in zip(harm_drops, utility_drops, strict=True)
        if cost.value <= budget and sample.value == value[0]
    ]
    return Sample(float(value[0]), draws, chosen[0].exact if chosen else None)


def average(samples: Sequence[Sample], *, together: bool = False) -> Sample:
    """Return the mean of samples, such as those of the models of several seeds.

    Where one of them has exact bounds, the mean has those of the square-and-add rule (MOVER: Zou
    and Donner 2008): l = v - sqrt(sum (v_i - l_i)^2) / k, and u likewise. Samples of the same
    prompts (`together`) are not independent; they get the means of their bounds, which are wider.
    """
    value = float(np.mean([one.value for one in samples]))
    draws = np.mean(np.stack([one.draws for one in samples]), axis=0)
    if math.isnan(value) or all(one.exact is None for one in samples):
        return Sample(value, draws)
    below, above = [], []
    for one in samples:
        bounds = one.interval("")
        below.append(one.value - (one.value if bounds.low is None else bounds.low))
        above.append((one.value if bounds.high is None else bounds.high) - one.value)
    joined = math.fsum if together else lambda parts: math.hypot(*parts)
    exact = (value - joined(below) / len(samples), value + joined(above) / len(samples))
    return Sample(value, draws, exact)
