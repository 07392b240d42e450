"""Intervals and tests of counts, without draws.

scipy takes a second to load, so each function loads it when it is called.
"""

from __future__ import annotations

import math
from typing import NamedTuple

LEVEL = 0.95


class Ends(NamedTuple):
    """The two bounds of an interval."""

    low: float
    high: float


def wilson(hits: float, trials: int) -> Ends:
    """Return Wilson's score interval of a rate (Wilson 1927); hits may be fractional."""
    from scipy import stats as scipy_stats

    z = float(scipy_stats.norm.ppf(0.5 + LEVEL / 2))
    share = hits / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = (
        z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials**2)) / (1 + z**2 / trials)
    )
    return Ends(max(0.0, centre - half), min(1.0, centre + half))


def clopper_pearson(hits: int, trials: int, level: float = LEVEL) -> Ends:
    """Return the exact interval of a rate (Clopper and Pearson 1934)."""
    from scipy import stats as scipy_stats

    tail = (1 - level) / 2
    low = 0.0 if hits == 0 else float(scipy_stats.beta.ppf(tail, hits, trials - hits + 1))
    high = 1.0 if hits == trials else float(scipy_stats.beta.isf(tail, hits + 1, trials - hits))
    return Ends(low, high)
