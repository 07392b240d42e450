"""How far judges agree: the rate, and Cohen's kappa with its interval.

Verdicts are compared as yes or no, at 0.5 for graded judges; replies that either judge left
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
from typing import Any

import numpy as np

from resect.records import Interval, Judgement
from resect.stats import RESAMPLES, rate, rng

YES = 0.5


def kappa(name: str, first: Sequence[bool], second: Sequence[bool]) -> Interval:
    """Return Cohen's kappa of paired verdicts with its 95 % interval."""
    pairs = np.array([first, second], dtype=np.float64)
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


def _kappas(pairs: Any) -> Any:
    """Return kappa along the last axis of [2, R, n]; NaN where it is not defined."""
    a, b = pairs.mean(axis=-1)
    observed = (pairs[0] == pairs[1]).mean(axis=-1)
    chance = a * b + (1 - a) * (1 - b)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(chance < 1, (observed - chance) / (1 - chance), np.nan)


def agreement_rows(verdicts: Mapping[str, Sequence[Judgement]]) -> list[dict[str, Any]]:
    """Return a row for each pair of judges over the same replies.

    Args:
        verdicts: Judge to its verdicts, in the same order of replies.
    """
    rows = []
    for first, second in combinations(verdicts, 2):
        both = [
            (one.score >= YES, two.score >= YES)
            for one, two in zip(verdicts[first], verdicts[second], strict=True)
            if one.score is not None and two.score is not None
        ]
        name = f"{first}/{second}"
        share = rate(name, [float(one == two) for one, two in both])
        found = kappa(name, [one for one, _ in both], [two for _, two in both])
        rows.append(
            {
                "judges": f"{first} · {second}",
                "both_scored": len(both),
                "unscored": len(verdicts[first]) - len(both),
                "agreement": share.value,
                "agreement_low": share.low,
                "agreement_high": share.high,
                "kappa": found.value,
                "kappa_low": found.low,
                "kappa_high": found.high,
            }
        )
    return rows
