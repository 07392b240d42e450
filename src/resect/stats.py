"""Intervals, tests and seeded draws.

All intervals are 95 %. A draw's generator is named by its use, so that adding a study changes no
other study's draw.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats as scipy_stats

from resect.records import Interval

LEVEL = 0.95
RESAMPLES = 2000

Array = npt.NDArray[np.float64]


def seed_of(label: str, seed: int = 0) -> int:
    """Return a 63-bit seed that depends on the label and the seed alone."""
    digest = hashlib.sha256(f"{seed}/{label}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def rng(label: str, seed: int = 0) -> np.random.Generator:
    """Return the generator named by `label`; the same label and seed give the same stream."""
    return np.random.default_rng(seed_of(label, seed))


def rate(name: str, scores: Sequence[float | None]) -> Interval:
    """Return the mean of the scored values with Wilson's interval; unscored (None) are left out.

    Wilson's interval is for 0/1 values; graded scores in [0, 1] get it too, where it is
    conservative, since their variance is at most that of a 0/1 value of the same mean.
    """
    scored = [value for value in scores if value is not None]
    if not scored:
        return Interval(name, None)
    mean = float(np.mean(scored))
    low, high = wilson(mean * len(scored), len(scored))
    return Interval(name, mean, low, high)


def wilson(hits: float, trials: int) -> tuple[float, float]:
    """Return Wilson's score interval of a rate (Wilson 1927); hits may be fractional."""
    z = float(scipy_stats.norm.ppf(0.5 + LEVEL / 2))
    share = hits / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = (
        z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials**2)) / (1 + z**2 / trials)
    )
    return max(0.0, centre - half), min(1.0, centre + half)
