"""What a cut does to the likelihood of several sets, in nats, and two numbers made of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

from resect.records import Interval
from resect.stats import Sample, ratio
from resect.studies.cells import Cell
from resect.studies.halves import Half
from resect.studies.measurements import Measurements

HARM = "generation"


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
        return self.harm - self.sides[side] * factor

    def margin(self, factor: float) -> Sample:
        """Return the least of the rise of harmful answers and of `over` all side sets."""
        return reduce(_lesser, (self.over(side, factor) for side in self.sides), self.harm)

    @property
    def largest(self) -> _Largest:
        """The side set that loses most."""
        negative = [rise * -1 for rise in self.sides.values()]
        side = max(self.sides, key=lambda name: or_least(self.sides[name].value))
        return _Largest(side, reduce(_lesser, negative) * -1)

    @property
    def share(self) -> Sample:
        """Rise of the side set that loses most, over that of harmful answers; less is better."""
        return ratio(self.largest.rise, self.harm)

    @property
    def selectivity(self) -> Interval:
        """How many times as much harmful answers lose as the side set that loses most (×).

        Bounds are those of the inverse, which has draws that are finite. There is no value where no
        side set loses anything, and no upper bound where that may be so.
        """
        share = self.share.interval("")
        low, high = _inverse(share.high), _inverse(share.low)
        value = _inverse(share.value) if self.harm.value > 0 else None
        return Interval("selectivity (×)", value, low, high)


def _inverse(value: float | None) -> float | None:
    return None if value is None or not value > 0 else 1 / value


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
