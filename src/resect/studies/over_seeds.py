"""Numbers that a run has one of for each seed: their mean, and how far they lie apart."""

from __future__ import annotations

import math
from collections.abc import Sequence

from resect.records import Interval
from resect.stats import LEVEL
from resect.studies.measurements import Row


def geometric_mean(name: str, ratios: Sequence[float]) -> Interval:
    """Return the geometric mean with the t interval of the logarithms; one value has no bounds."""
    import numpy as np
    from scipy import stats as scipy_stats

    if not ratios:
        return Interval(name, None)
    logs = np.log(ratios)
    mean = float(logs.mean())
    if len(ratios) == 1:
        return Interval(name, math.exp(mean))
    quantile = float(scipy_stats.t.ppf(0.5 + LEVEL / 2, len(logs) - 1))
    half = quantile * float(logs.std(ddof=1)) / math.sqrt(len(logs))
    return Interval(name, math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def range_over_seeds(name: str, rows: Sequence[Row], column: str) -> Interval:
    """Return the mean of a column with its smallest and largest value; empty without rows."""
    import numpy as np

    values = [row[column] for row in rows]
    if not values:
        return Interval(name, None)
    return Interval(name, float(np.mean(values)), min(values), max(values), bounds="range")
