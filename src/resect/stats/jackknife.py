"""Intervals by the jackknife, for what pairs of a few items have in common.

A mean over pairs of items (draws of examples, harm types) has as many independent parts as there
are items, and not pairs. With θ(-i) the statistic without item i, of n items,

    v = (n - 1) / n · Σ (θ(-i) - mean)²

is its variance, in the mean no less than the true one (Efron and Stein 1981). Several models have
items of their own: the mean of M statistics has the variance Σ v / M², and the interval the t
distribution's quantile with Σ (n - 1) degrees of freedom.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from resect.records import Interval
from resect.stats.counts import LEVEL

# Without one of two items there is no pair left.
LEAST_ITEMS = 3


class LeftOut(NamedTuple):
    """A statistic of one model, and the same without each of its items in turn."""

    value: float
    without: Sequence[float]


def jackknife(name: str, models: Sequence[LeftOut], level: float = LEVEL) -> Interval:
    """Return the mean over models with its interval.

    Args:
        name: Of the interval.
        models: One entry or more.
        level: Level of the interval.

    Returns:
        The interval; without bounds where a model has fewer than `LEAST_ITEMS` items.
    """
    import numpy as np
    from scipy import stats as scipy_stats  # a second to load

    value = fmean(model.value for model in models)
    if min(len(model.without) for model in models) < LEAST_ITEMS:
        return Interval(name, value)
    variance, freedom = 0.0, 0
    for _, without in models:
        count = len(without)
        if max(without) > min(without):  # whose mean rounding may miss
            apart = np.array(without) - np.mean(without)
            variance += (count - 1) / count * float(np.sum(apart**2))
        freedom += count - 1
    error = math.sqrt(variance) / len(models)
    reach = float(scipy_stats.t.isf((1 - level) / 2, freedom)) * error
    return Interval(name, value, value - reach, value + reach)
