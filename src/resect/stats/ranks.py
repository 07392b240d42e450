"""How well scores put hits before the others: the area under the ROC curve.

With weights w of hits i and of others j, and [s_i > s_j] counted as a half where both are equal,

    A = Σ_ij w_i w_j [s_i > s_j] / (Σ_i w_i Σ_j w_j)          (Mann and Whitney 1947)

Its interval is the house's (`resample.py`): groups are reweighted, and for the lower bound a hit
below all others and a reply above all hits are added, for the upper bound the opposite:

    below = (1 - u)(1 - v) A        above = 1 - (1 - u)(1 - v)(1 - A)

with the weights u and v of the added replies among the hits and among the others.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

from resect.records import Interval
from resect.stats.draws import rng
from resect.stats.resample import RESAMPLES
from resect.stats.sample import Array, Sample

# Draws that are worked out at once.
TOGETHER = 256


def auroc(
    name: str,
    hits: Sequence[bool],
    scores: Sequence[float],
    groups: Sequence[Hashable],
    resamples: int = RESAMPLES,
) -> Interval:
    """Return the area with its 95 % interval; None where there are no hits, or nothing else.

    Args:
        name: Name of the interval, and of its draws.
        hits: Whether each reply is a hit.
        scores: Its score, any number.
        groups: Replies of one group are drawn together.
        resamples: Draws.
    """
    return area(name, hits, scores, groups, resamples).interval(name)


def area(
    label: str,
    hits: Sequence[bool],
    scores: Sequence[float],
    groups: Sequence[Hashable],
    resamples: int = RESAMPLES,
) -> Sample:
    """Return the area with its draws, which areas of one label over the same groups share.

    It is NaN where there are no hits, or nothing else, or a score is NaN. Arguments are those of
    `auroc`.
    """
    import numpy as np

    flags, values = np.array(hits, dtype=bool), np.array(scores, dtype=np.float64)
    if not flags.any() or flags.all() or np.isnan(values).any():
        return Sample(math.nan, np.full(resamples, np.nan))
    numbers: dict[Hashable, int] = {}
    members = np.array([numbers.setdefault(group, len(numbers)) for group in groups])
    draw = rng(f"auroc/{label}/{len(values)}")
    weights = draw.standard_gamma(1.0, size=(resamples, len(numbers)))
    drawn = np.concatenate(
        [
            _areas(flags, values, weights[start : start + TOGETHER][:, members])
            for start in range(0, resamples, TOGETHER)
        ]
    )
    even = (np.arange(resamples) + 1) / (resamples + 1)
    beyond = np.ones(resamples)
    for side in (flags, ~flags):
        count = len(np.unique(members[side]))
        # The weight of one of n + 1 has the distribution beta(1, n).
        beyond *= (1 - draw.permutation(even)) ** (1 / count)
    value = float(_areas(flags, values, np.ones((1, len(values))))[0])
    return Sample(
        value,
        drawn,
        trials=len(numbers),
        below=beyond * drawn,
        above=1 - beyond * (1 - drawn),
    )


def _areas(hits: Array, scores: Array, weights: Array) -> Array:
    """Return A of the header for each row of weights [R, n]."""
    import numpy as np

    _, rank = np.unique(scores, return_inverse=True)
    order = np.argsort(rank, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(rank[order]) > 0])
    hit, miss = (np.where(side, weights, 0)[:, order] for side in (hits, np.logical_not(hits)))
    # Sums by score, [R, different scores].
    hit, miss = np.add.reduceat(hit, starts, axis=1), np.add.reduceat(miss, starts, axis=1)
    before = np.cumsum(miss, axis=1) - miss / 2
    area: Array = (hit * before).sum(axis=1) / (hit.sum(axis=1) * miss.sum(axis=1))
    return area
