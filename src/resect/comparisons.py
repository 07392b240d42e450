"""Comparisons of two arms, and of many: intervals and tests to quote.

All intervals are 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from scipy import stats as scipy_stats

from resect.records import Interval
from resect.stats import LEVEL, Resampler, cluster_means, ratio, wilson


@dataclass(frozen=True)
class Comparison:
    """Two arms over the same prompts.

    Attributes:
        first: Rate of the first arm.
        second: Rate of the second arm.
        difference: first - second.
        ratio: first / second; its value is None where the second rate is zero.
    """

    first: Interval
    second: Interval
    difference: Interval
    ratio: Interval


def compare_paired(
    label: str,
    first: Sequence[float | None],
    second: Sequence[float | None],
    clusters: Sequence[Hashable] | None = None,
) -> Comparison:
    """Compare two arms that answered the same prompts, by the paired bootstrap.

    Args:
        label: Names the draw.
        first: Scores of the first arm; None is unscored and left out of that arm alone.
        second: Scores of the second arm, in the same order.
        clusters: The prompt of each score, where a prompt has several samples; prompts are then
            resampled whole.

    Raises:
        ValueError: The arms differ in length.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} scores against {len(second)}: not the same prompts")
    arms = (
        [first, second]
        if clusters is None
        else [cluster_means(a, clusters) for a in (first, second)]
    )
    resampler = Resampler(label)
    one, two = (resampler.rate({"": list(arm)}) for arm in arms)
    return Comparison(
        one.interval("first"),
        two.interval("second"),
        (one - two).interval("difference"),
        ratio(one, two).interval("ratio"),
    )


def compare_independent(hits: tuple[int, int], trials: tuple[int, int]) -> Comparison:
    """Compare two rates over different prompts, without resampling.

    The difference has Newcombe's interval (1998, method 10: the roots of two Wilson intervals),
    the ratio Katz's interval on the log scale, which needs a hit in both arms.

    Args:
        hits: Hits of the first and of the second arm.
        trials: Scored replies of the first and of the second arm, both at least 1.
    """
    shares = [hit / trial for hit, trial in zip(hits, trials, strict=True)]
    bounds = [wilson(hit, trial) for hit, trial in zip(hits, trials, strict=True)]
    difference = shares[0] - shares[1]
    below = math.hypot(shares[0] - bounds[0][0], bounds[1][1] - shares[1])
    above = math.hypot(bounds[0][1] - shares[0], shares[1] - bounds[1][0])
    quotient = Interval("ratio", shares[0] / shares[1] if hits[1] else None)
    if min(hits) > 0:
        risk = scipy_stats.contingency.relative_risk(hits[0], trials[0], hits[1], trials[1])
        katz = risk.confidence_interval(LEVEL)
        quotient = Interval("ratio", float(risk.relative_risk), float(katz.low), float(katz.high))
    return Comparison(
        Interval("first", shares[0], *bounds[0]),
        Interval("second", shares[1], *bounds[1]),
        Interval("difference", difference, difference - below, difference + above),
        quotient,
    )


def mcnemar_p_value(first: Sequence[float | None], second: Sequence[float | None]) -> float:
    """Return the two-sided exact p-value that two arms hit equally often on the same prompts.

    Only prompts on which the arms disagree count (McNemar 1947, in its exact binomial form).

    Args:
        first: 0/1 scores; a pair with an unscored member (None) is left out.
        second: The same prompts in the same order.

    Raises:
        ValueError: A score is neither 0 nor 1.
    """
    pairs = [
        (one, two)
        for one, two in zip(first, second, strict=True)
        if one is not None and two is not None
    ]
    if any(score not in {0.0, 1.0} for pair in pairs for score in pair):
        raise ValueError("McNemar's test is for hits and misses, not for graded scores")
    wins = sum(one > two for one, two in pairs)
    losses = sum(one < two for one, two in pairs)
    if wins + losses == 0:
        return 1.0
    return float(scipy_stats.binomtest(wins, wins + losses).pvalue)


def holm(p_values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Return p-values adjusted for a family of tests (Holm 1979), each in [0, 1].

    Rejecting what is at most α keeps the chance of any false rejection in the whole grid at α,
    however the tests depend on each other.

    Args:
        p_values: Cell of the grid to its p-value; None is a test that could not be made. It stays
            None and does not count.
    """
    known = sorted((p, name) for name, p in p_values.items() if p is not None)
    adjusted: dict[str, float | None] = dict.fromkeys(p_values)
    largest = 0.0
    for place, (p, name) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - place)))
        adjusted[name] = largest
    return adjusted
