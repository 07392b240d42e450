"""Which q and p are tried: one rule for models of every size.

    middle of q = 3e-3 · (N / 10⁶)^(-0.635)      N prunable weights, 10⁶ for fewer
    p           = 5 · middle of q

It is a straight line in logarithms between two models that were studied: 3e-3 at one million
weights (the organism) and 1e-5 at 8 billion (the source: 7e-6 to 2e-5, with p = 5e-5). Between them
lies 1.6e-4 at 100 million. The grid goes from a tenth of the middle to two and a half times it. It
is a rule for where to look: what is taken is chosen by measurement.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

ANCHOR_WEIGHTS, ANCHOR = 10**6, 3e-3
LARGE_WEIGHTS, LARGE = 8 * 10**9, 1e-5
EXPONENT = math.log(LARGE / ANCHOR) / math.log(LARGE_WEIGHTS / ANCHOR_WEIGHTS)
# Of the middle of q.
STEPS = (0.1, 0.25, 0.5, 1.0, 2.5)
PROTECTED = 5.0


@dataclass(frozen=True)
class Grid:
    """What is tried on a model.

    Attributes:
        fractions: q, rising.
        protected: p.
        raised: Whether the least q was raised, because a smaller one would have removed nothing.
    """

    fractions: tuple[float, ...]
    protected: tuple[float, ...]
    raised: bool


def middle_fraction(weights: int) -> float:
    """Return the middle of the grid of q for a number of prunable weights."""
    return ANCHOR * math.pow(max(weights, ANCHOR_WEIGHTS) / ANCHOR_WEIGHTS, EXPONENT)


def grid_of(weights: int, largest: int) -> Grid:
    """Return the grid of a model.

    Args:
        weights: Number of its prunable weights.
        largest: Number of weights of its largest tensor: q takes ⌊q · n⌋ of a tensor of n weights,
            so that less than one over this is an empty mask.
    """
    middle = middle_fraction(weights)
    least = _rounded_up(1 / largest)
    wished = [_rounded(step * middle) for step in STEPS]
    fractions = sorted({min(1.0, max(least, q)) for q in wished})
    return Grid(tuple(fractions), (min(1.0, _rounded(PROTECTED * middle)),), wished[0] < least)


def _rounded(fraction: float) -> float:
    """Return a fraction with two digits, as one writes it."""
    return float(f"{fraction:.1e}")


def _rounded_up(fraction: float) -> float:
    """Return the least fraction of two digits that is no smaller."""
    rounded = _rounded(fraction)
    if rounded >= fraction:
        return rounded
    return _rounded(rounded + float(f"1e{f'{rounded:.1e}'.partition('e')[2]}") / 10)
