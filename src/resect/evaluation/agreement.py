"""How far judges agree: the rate, and Cohen's kappa with its interval.

Judgements are compared as yes or no, at 0.5 for graded judges; replies that either judge left
unscored are counted apart. With agreement p_o and, from the judges' own rates a and b, agreement by
chance p_e = ab + (1-a)(1-b):

    kappa = (p_o - p_e) / (1 - p_e)          (Cohen 1960)

Kappa is None where p_e = 1: both judges say the same of everything, and no agreement beyond chance
can be seen. Its 95 % interval is a percentile bootstrap over replies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from resect.records import Interval, Judgement
from resect.stats import RESAMPLES, rate, rng

YES = 0.5


def kappa(name: str, ours: Sequence[bool], theirs: Sequence[bool]) -> Interval:
    """Return Cohen's kappa of two judges' verdicts on the same replies with its 95 % interval."""
    pairs = np.array([ours, theirs], dtype=np.float64)
    if pairs.shape[1] == 0:
        return Interval(name, None)
    value = float(_kappas(pairs[:, None, :])[0])
    if math.isnan(value):
        return Interval(name, None)
    count = pairs.shape[1]
    draw = rng(f"kappa/{name}/{count}").integers(0, count, size=(RESAMPLES, count))
    drawn = _kappas(pairs[:, draw])
    finite = drawn[np.isfinite(drawn)]
    low, high = (float(bound) for bound in np.percentile(finite, [2.5, 97.5]))
    return Interval(name, value, min(low, value), max(high, value))


def _kappas(pairs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return kappa along the last axis of [2, R, n]; NaN where it is not defined."""
    a, b = pairs.mean(axis=-1)
    observed = (pairs[0] == pairs[1]).mean(axis=-1)
    chance = a * b + (1 - a) * (1 - b)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(chance < 1, (observed - chance) / (1 - chance), np.nan)


def agreement_rows(judgements: Mapping[str, Sequence[Judgement]]) -> list[dict[str, object]]:
    """Return a row for each pair of judges over the same replies.

    Args:
        judgements: Judge to its judgements, in the same order of replies.
    """
    rows: list[dict[str, object]] = []
    for ours, theirs in combinations(judgements, 2):
        both_scored = [
            (a.score >= YES, b.score >= YES)
            for a, b in zip(judgements[ours], judgements[theirs], strict=True)
            if a.score is not None and b.score is not None
        ]
        name = f"{ours}/{theirs}"
        share = rate(name, [float(a == b) for a, b in both_scored])
        beyond_chance = kappa(name, [a for a, _ in both_scored], [b for _, b in both_scored])
        rows.append(
            {
                "judges": f"{ours} · {theirs}",
                "both_scored": len(both_scored),
                "unscored": len(judgements[ours]) - len(both_scored),
                "agreement": share.value,
                "agreement_low": share.low,
                "agreement_high": share.high,
                "kappa": beyond_chance.value,
                "kappa_low": beyond_chance.low,
                "kappa_high": beyond_chance.high,
            }
        )
    return rows
