"""Statistics with their bootstrap draws, and the arithmetic that studies do with them.

A sample has three arrays of draws, all of the same resampled prompts:

    draws   the prompts that were asked, reweighted
    below   the same with one more prompt, answered as lowers the statistic most
    above   the same with one more prompt, answered as raises it most

The lower bound of an interval is a percentile of `below`, the upper one of `above`. So arithmetic
is carried out draw by draw and end by end: what is subtracted or divided by enters with its other
end. `docs/design/intervals.md` says why one more prompt is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from resect.records import Interval
from resect.stats.counts import LEVEL, Ends

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Array: TypeAlias = "npt.NDArray[np.float64]"


class Sample:
    """A statistic with its bootstrap draws; arithmetic is carried out draw by draw.

    Draws of two samples may be combined only if they come from the same resampled prompts, which
    holds for everything that one `Resampler` returns.
    """

    def __init__(
        self,
        value: float,
        draws: Array,
        exact: Ends | None = None,
        trials: int = 0,
        *,
        below: Array | None = None,
        above: Array | None = None,
    ):
        """Hold a point estimate and its draws.

        Args:
            value: The point estimate; NaN if there is none.
            draws: [R], of the prompts that were asked.
            exact: Bounds that the interval shall reach, whatever the draws say; for a statistic
                that is put together by hand.
            trials: Number of different prompts behind it, 0 where that is not known.
            below: [R], with one more prompt at the lower end; None if the ends are not known.
            above: [R], with one more prompt at the upper end.
        """
        import numpy as np

        self.value = value
        self.draws = draws
        self.below = draws if below is None else below
        self.above = draws if above is None else above
        self.trials = trials
        if exact is not None:
            self.below = np.minimum(self.below, exact.low)
            self.above = np.maximum(self.above, exact.high)

    @property
    def exact(self) -> Ends | None:
        """Bounds at `LEVEL` where the prompts that were asked have no spread, None elsewhere."""
        spread = percentiles(self.draws, LEVEL, self.draws)
        if spread is None or spread.high - spread.low >= 1e-12:
            return None
        bounds = percentiles(self.below, LEVEL, self.above)
        return None if bounds == spread else bounds

    def interval(self, name: str, level: float = LEVEL) -> Interval:
        """Return the value with its bounds at `level`; without draws, without bounds."""
        if math.isnan(self.value):
            return Interval(name, None)
        bounds = percentiles(self.below, level, self.above)
        if bounds is None:
            return Interval(name, self.value)
        return Interval(name, self.value, min(bounds[0], self.value), max(bounds[1], self.value))

    def moved(self, moves: Array) -> Sample:
        """Return the same value with something of its own added to each draw [R]."""
        return Sample(
            self.value,
            self.draws + moves,
            trials=self.trials,
            below=self.below + moves,
            above=self.above + moves,
        )

    def __sub__(self, taken: Sample) -> Sample:
        """Return the paired difference."""
        return Sample(
            self.value - taken.value,
            self.draws - taken.draws,
            below=self.below - taken.above,
            above=self.above - taken.below,
        )

    def __rsub__(self, whole: float) -> Sample:
        """Return `whole` minus the statistic, as in 1 - share."""
        return Sample(
            whole - self.value,
            whole - self.draws,
            trials=self.trials,
            below=whole - self.above,
            above=whole - self.below,
        )

    def __mul__(self, factor: float) -> Sample:
        """Return the statistic times a number."""
        import numpy as np

        ends = factor * self.below, factor * self.above
        return Sample(
            factor * self.value,
            factor * self.draws,
            trials=self.trials,
            below=np.minimum(*ends),
            above=np.maximum(*ends),
        )


def percentiles(below: Array, level: float, above: Array) -> Ends | None:
    """Return the bounds of the middle `level` of finite draws, None if there are none.

    Bounds are draws themselves, the k-th from each end with k = tail (R + 1) rounded down: that
    many draws lie beyond them in the mean, whatever the distribution (Davison and Hinkley 1997,
    section 5.2).
    """
    import numpy as np

    low, high = np.sort(below[np.isfinite(below)]), np.sort(above[np.isfinite(above)])
    if low.size == 0 or high.size == 0:
        return None
    # Rounding keeps (1 - 0.95) / 2 * 2000 from being 49.99...
    ranks = [
        max(1, math.floor(round((1 - level) / 2 * (size + 1), 9))) for size in (low.size, high.size)
    ]
    return Ends(float(low[ranks[0] - 1]), float(high[high.size - ranks[1]]))


def relative_drop(intact: Sample, cut: Sample) -> Sample:
    """Return 1 - cut / intact, draw by draw; NaN where the intact rate is zero."""
    share = ratio(cut, intact)
    return Sample(
        1 - share.value,
        1 - share.draws,
        trials=cut.trials,
        below=1 - share.above,
        above=1 - share.below,
    )


def ratio(numerator: Sample, denominator: Sample) -> Sample:
    """Return numerator / denominator of what is not negative, draw by draw; NaN by zero."""
    import numpy as np

    if denominator.value == 0 or math.isnan(denominator.value):
        return Sample(math.nan, np.full(len(numerator.draws), np.nan))
    with np.errstate(divide="ignore", invalid="ignore"):
        return Sample(
            numerator.value / denominator.value,
            numerator.draws / denominator.draws,
            trials=numerator.trials,
            below=numerator.below / denominator.above,
            above=numerator.above / denominator.below,
        )


def average(samples: Sequence[Sample], *, together: bool = False) -> Sample:
    """Return the mean of samples, such as those of the models of several seeds.

    What one more prompt adds to each sample is joined by the square-and-add rule (MOVER: Zou and
    Donner 2008), since it need not happen in all of them at once. Samples of the same prompts
    (`together`) are not independent; there it is the mean, which is more.
    """
    import numpy as np

    draws = np.mean([sample.draws for sample in samples], axis=0)
    below = np.stack([sample.draws - sample.below for sample in samples])
    above = np.stack([sample.above - sample.draws for sample in samples])
    power = 1 if together else 2

    def joined(reaches: Array) -> Array:
        total: Array = (reaches**power).sum(axis=0) ** (1 / power) / len(samples)
        return total

    return Sample(
        float(np.mean([sample.value for sample in samples])),
        draws,
        below=draws - joined(below),
        above=draws + joined(above),
    )
