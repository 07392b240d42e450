"""Does a ranking of weights find a known set, and what does cutting along it do?

Membership asks whether weights of the planted set S come early in the order. Causal measures ask
what is left of the behaviours when the first k weights are cut. Neither can stand for the other: a
weight that was there before S may still be needed by what S learned, so that cutting it stops the
behaviour as well; and a weight of S may matter little.

Legend: N prunable weights, |S| planted ones; an order is a permutation of the N weights, and the
weight at place 0 is the one that a method would cut first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats as scipy_stats

from resect.records import Interval

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# Fractions of all weights at which recall is given.
RECALL_AT = (0.001, 0.003, 0.01, 0.03, 0.1)
LEVEL = 0.95


def order_of(key: Floats, generator: np.random.Generator) -> Ints:
    """Return the order of falling keys [N]; ties are broken at random.

    Breaking them by tensor would be a hidden method: sets are in some tensors and not in others.
    """
    mixed = generator.permutation(len(key))
    return mixed[np.argsort(-key[mixed], kind="stable")]


def membership(order: Ints, truth: Bools, decoy: Bools) -> dict[str, float]:
    """Return how early the members of S come in an order.

    Args:
        order: Permutation [N].
        truth: Whether each weight is in S [N].
        decoy: Whether each weight is in the decoy set [N].

    Returns:
        `precision` at |S| and `precision_tenth` at |S|/10; the share of decoy weights at the same
        depths; `average_precision` (the mean over S of the precision at each member's place);
        `auc` (the chance that a member comes before a non-member); `recall@F` among the first
        F·N weights; `base_rate` |S|/N, which is the expectation of precision at random.
    """
    hit, false = truth[order], decoy[order]
    total, size = len(order), int(truth.sum())
    tenth = max(1, size // 10)
    places = np.flatnonzero(hit)
    row = {
        "precision": float(hit[:size].mean()),
        "precision_tenth": float(hit[:tenth].mean()),
        "decoy_share": float(false[:size].mean()),
        "decoy_share_tenth": float(false[:tenth].mean()),
        "average_precision": float(np.mean(np.arange(1, size + 1) / (places + 1))),
        "auc": 1 - float((places.mean() - (size - 1) / 2) / (total - size)),
        "base_rate": size / total,
    }
    for fraction in RECALL_AT:
        row[f"recall@{fraction:g}"] = float(hit[: math.floor(fraction * total)].sum() / size)
    return row


def depths(size: int, ratio: int) -> list[int]:
    """Return the sizes of cuts |S|/64 … |S| in steps of `ratio`, which is 2, 4, 8 or 64."""
    counts, divisor = [], 64
    while divisor >= 1:
        counts.append(max(1, size // divisor))
        divisor //= ratio
    return counts


def area(values: Sequence[float], sizes: Sequence[int]) -> float:
    """Return the mean of a curve over the logarithm of the cut's size, by trapezoids."""
    steps = np.log(np.asarray(sizes, dtype=np.float64))
    if len(values) == 1 or steps[-1] == steps[0]:
        return float(np.mean(values))
    return float(np.trapezoid(np.asarray(values), steps) / (steps[-1] - steps[0]))


def over_seeds(name: str, values: Sequence[float | None]) -> Interval:
    """Return the mean over seeds with Student's interval; one seed has none.

    With three seeds the interval is wide, as it has to be: 4.3 standard errors to each side.
    """
    numbers = [value for value in values if value is not None and not math.isnan(value)]
    if not numbers:
        return Interval(name, None)
    mean = float(np.mean(numbers))
    if len(numbers) < 2:
        return Interval(name, mean)
    error = float(np.std(numbers, ddof=1)) / math.sqrt(len(numbers))
    reach = float(scipy_stats.t.ppf(0.5 + LEVEL / 2, len(numbers) - 1)) * error
    return Interval(name, mean, mean - reach, mean + reach)
