"""Statistics of several samples whose added prompts need not be the same one.

Arithmetic of samples goes end by end: it takes the added prompt to be the worst one for each of
them. For scores that is the price of known ends. Values without ends have furthest prompts that
were seen (`Resampler.reaching`), which are others in other sets, and of two arms the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from resect.records import Interval
from resect.stats.counts import LEVEL
from resect.stats.sample import Array, Sample, percentiles


def difference(left: Sample, right: Sample) -> Sample:
    """Return the paired difference, with what the added prompts do joined by MOVER.

    With r and s the reaches from a draw to the ends that face each other, and ρ the correlation of
    the draws, the difference reaches √(r² + s² - 2 ρ r s) (Zou and Donner 2008).
    """
    import numpy as np

    draws = left.draws - right.draws
    alike = _correlation(left.draws, right.draws)

    def joined(one_way: Array, other_way: Array) -> Array:
        near, far = np.maximum(one_way, 0), np.maximum(other_way, 0)
        squared = near**2 + far**2 - 2 * alike * near * far
        reach: Array = np.sqrt(np.maximum(squared, 0))
        return reach

    return Sample(
        left.value - right.value,
        draws,
        below=draws - joined(left.draws - left.below, right.above - right.draws),
        above=draws + joined(left.above - left.draws, right.draws - right.below),
    )


def least(name: str, samples: Sequence[Sample], level: float = LEVEL) -> Interval:
    """Return the least of several statistics, with bounds that hold whichever it is.

    The lower bound is the least lower bound, so that it is above a threshold where all of them are.
    The least of several estimates is too low, and so is the least of their upper bounds: those that
    may be the least are bounded together, x + c s with s the deviation of the draws and c such that
    at `level` none of them lies above (Chernozhukov, Lee and Rosen 2013, whose selection is another
    one: out are those whose lower bound is above an upper bound).

    Args:
        name: Of the interval.
        samples: The statistics, one at least, of the same draws.
        level: Level of the interval.

    Returns:
        The interval; without a value where one of them has none, and without bounds where one of
        them has none.
    """
    import numpy as np

    intervals = [sample.interval("", level) for sample in samples]
    values = [interval.value for interval in intervals if interval.value is not None]
    if len(values) < len(samples):
        return Interval(name, None)
    lows = [interval.low for interval in intervals if interval.low is not None]
    highs = [interval.high for interval in intervals if interval.high is not None]
    if len(lows) < len(samples) or len(highs) < len(samples):
        return Interval(name, min(values))
    near = [sample for sample, low in zip(samples, lows, strict=True) if low <= min(highs)]
    spread = np.array([float(np.nanstd(sample.draws)) for sample in near])
    if len(near) == 1 or not spread.all():
        return Interval(name, min(values), min(lows), min(highs))
    apart = np.array([sample.above - sample.value for sample in near])
    furthest = (apart / spread[:, None]).max(axis=0)
    bounds = percentiles(furthest, level, furthest)
    if bounds is None:
        return Interval(name, min(values), min(lows), min(highs))
    reached = [
        s.value + max(0.0, bounds.high) * width for s, width in zip(near, spread, strict=True)
    ]
    return Interval(name, min(values), min(lows), float(min(reached)))


def _correlation(left: Array, right: Array) -> float:
    """Return the correlation of draws that both have, 0 where one of them has no spread."""
    import numpy as np

    finite = np.isfinite(left) & np.isfinite(right)
    if finite.sum() < 2:
        return 0.0
    near, far = left[finite] - left[finite].mean(), right[finite] - right[finite].mean()
    spread = float(np.sqrt((near @ near) * (far @ far)))
    return float(np.clip((near @ far) / spread, -1, 1)) if spread > 0 else 0.0
