"""What a cut does to the likelihood of several sets, in nats, and two numbers made of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import NamedTuple

from resect.records import Interval
from resect.stats import Sample, difference, least, ratio
from resect.studies.cells import Cell
from resect.studies.halves import Half
from resect.studies.measurements import Measurements

HARM = "generation"
# Between these factors the bounds of a selectivity are sought, by halving in logarithms.
LEAST_FACTOR, MOST_FACTOR, HALVINGS = 1e-6, 1e6, 28


class _Largest(NamedTuple):
    """The side set that loses most, and the largest rise of all."""

    side: str
    rise: Sample


@dataclass(frozen=True)
class Rises:
    """What a cut does to the mean NLL of each set, in nats a token.

    Attributes:
        harm: Rise of harmful answers.
        sides: Rise of each side set, by probe.
    """

    harm: Sample
    sides: Mapping[str, Sample]

    def over(self, side: str, factor: float) -> Sample:
        """Return the rise of harmful answers less so many times that of a side set."""
        return difference(self.harm, self.sides[side] * factor)

    def margin(self, factor: float) -> Sample:
        """Return the least of the rise of harmful answers and of `over` all side sets."""
        return reduce(_lesser, (self.over(side, factor) for side in self.sides), self.harm)

    @property
    def largest(self) -> _Largest:
        """The side set that loses most."""
        negative = [rise * -1 for rise in self.sides.values()]
        side = max(self.sides, key=lambda name: or_least(self.sides[name].value))
        return _Largest(side, reduce(_lesser, negative) * -1)

    def margin_interval(self, name: str, factor: float) -> Interval:
        """Return the margin with bounds: above 0 where the rise and `over` all side sets are."""
        return least(name, [self.harm, *(self.over(side, factor) for side in self.sides)])

    def largest_interval(self, name: str) -> Interval:
        """Return the rise of the side set that loses most; bounds hold whichever it is."""
        spared = least(name, [rise * -1 for rise in self.sides.values()])
        value, low, high = map(_negative, (spared.value, spared.high, spared.low))
        return Interval(name, value, low, high)

    @property
    def share(self) -> Sample:
        """Rise of the side set that loses most, over that of harmful answers; less is better.

        What an added row does to the quotient is what it does to side - value × harm, over harm.
        """
        import numpy as np

        side, harm = self.largest.rise, self.harm
        quotient = ratio(Sample(side.value, side.draws), Sample(harm.value, harm.draws))
        if math.isnan(quotient.value):
            return quotient
        apart = difference(side, harm * quotient.value)
        with np.errstate(divide="ignore", invalid="ignore"):
            below, above = (
                quotient.draws + (end - apart.draws) / np.abs(harm.draws)
                for end in (apart.below, apart.above)
            )
        return Sample(quotient.value, quotient.draws, below=below, above=above)

    @cached_property
    def selectivity(self) -> Interval:
        """How many times as much harmful answers lose as the side set that loses most (×).

        Its bounds are the factors at which those of the margin pass 0, so that no verdict on a
        factor contradicts them. There is no value where no side set loses anything, and no upper
        bound where that may be so.
        """
        largest = self.largest.rise.value
        value = self.harm.value / largest if self.harm.value > 0 and largest > 0 else None

        def over_all(factor: float) -> Interval:
            return least("", [self.over(side, factor) for side in self.sides])

        sure = self.harm.interval("").low
        low = high = None
        if sure is not None and sure > 0 and over_all(1).low is not None:
            low = _first(lambda factor: not _or_zero(over_all(factor).low) > 0)
        if value is not None:
            high = _first(lambda factor: _or_zero(over_all(factor).high) < 0)
            low = None if low is None else min(low, value)
            high = None if high is None else max(high, value)
        return Interval("selectivity (×)", value, low, high)


def _first(passed: Callable[[float], bool]) -> float | None:
    """Return the factor from which on something holds, None if it does not hold at the most."""
    low, high = math.log(LEAST_FACTOR), math.log(MOST_FACTOR)
    if not passed(MOST_FACTOR):
        return None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if passed(math.exp(middle)) else (middle, high)
    return math.exp(low)


def _negative(bound: float | None) -> float | None:
    return None if bound is None else -bound


def _or_zero(bound: float | None) -> float:
    return 0.0 if bound is None else bound


def or_least(value: float) -> float:
    """Return a number that is the least if there is none."""
    return -math.inf if math.isnan(value) else value


def _lesser(left: Sample, right: Sample) -> Sample:
    """Return the lesser of two samples, draw by draw; NaN if one of them is."""
    import numpy as np

    return Sample(
        float(np.minimum(left.value, right.value)),
        np.minimum(left.draws, right.draws),
        below=np.minimum(left.below, right.below),
        above=np.minimum(left.above, right.above),
    )


def rises_of(
    measured: Measurements, sides: Sequence[str], cells: Sequence[Cell], half: Half = ""
) -> Rises:
    """Return what one arm does to every set, one cell a seed, on one half of the prompts.

    Args:
        measured: The run.
        sides: Probes of the side sets.
        cells: The cells of the arm.
        half: The prompts that are meant.
    """
    return Rises(
        measured.rise(cells, HARM, half=half),
        {side: measured.rise(cells, side, half=half) for side in sides},
    )


def unread(measured: Measurements, cells: Sequence[Cell], probe: str) -> float:
    """Return which share of the rows of some cells has no likelihood; 1 if there are no rows."""
    rows = [row for cell in cells for row in measured.asked(cell, probe)]
    return sum(row.nll is None for row in rows) / len(rows) if rows else 1.0
