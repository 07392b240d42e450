"""The area under the ROC curve against a count of pairs, and its interval against a truth."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import optimize
from scipy import stats as scipy_stats

from resect.records import Interval
from resect.stats import auroc, rng


def pairs(hits: list[bool], scores: list[float]) -> float:
    """Return the share of pairs of a hit and another reply in which the hit scores higher."""
    above = [score for score, hit in zip(scores, hits, strict=True) if hit]
    below = [score for score, hit in zip(scores, hits, strict=True) if not hit]
    wins = [float(a > b) + 0.5 * (a == b) for a, b in itertools.product(above, below)]
    return sum(wins) / len(wins)


@pytest.mark.parametrize("count", [2, 7, 40])
@pytest.mark.parametrize("decimals", [0, 1, 6])
def test_the_area_is_the_share_of_pairs(count: int, decimals: int) -> None:
    draw = rng(f"test/auroc/{count}/{decimals}")
    hits = [True, False, *(draw.random(count - 2) < 0.4).tolist()]
    scores = draw.random(count).round(decimals).tolist()
    area = auroc("a", hits, scores, range(count), 99)
    assert area.value == pytest.approx(pairs(hits, scores))


@pytest.mark.parametrize("hits", [[True, True], [False, False]])
def test_without_both_kinds_there_is_none(hits: list[bool]) -> None:
    assert auroc("a", hits, [0.1, 0.2], range(2)) == Interval("a", None)


def test_a_perfect_order_is_not_certain() -> None:
    area = auroc("a", [True] * 5 + [False] * 5, list(range(10, 0, -1)), range(10))
    assert area.value == pytest.approx(1)
    assert area.high == pytest.approx(1)
    # Of two beta(1, 5) weights: (1 - u)(1 - v) = (U V) ** (1/5) with P(U V < x) = x (1 - ln x).
    product = optimize.brentq(lambda x: x * (1 - np.log(x)) - 0.025, 1e-9, 1)
    assert area.low == pytest.approx(product ** (1 / 5), abs=0.03)


def test_replies_of_one_group_say_no_more_than_one() -> None:
    draw = rng("test/auroc/groups")
    hits = [True] * 20 + [False] * 20
    scores = (np.array(hits) + draw.standard_normal(40)).tolist()
    once = auroc("a", hits, scores, range(40))
    often = auroc("a", hits * 4, scores * 4, [*range(40)] * 4)
    assert once.value is not None
    assert often.value == pytest.approx(once.value)
    for bound in ("low", "high"):
        assert getattr(often, bound) == pytest.approx(getattr(once, bound), abs=0.03)


def test_the_interval_covers_the_area() -> None:
    truth = float(scipy_stats.norm.cdf(1.2 / np.sqrt(2)))
    draw = rng("test/auroc/coverage")
    sets, covered = 300, 0
    hits = [True] * 30 + [False] * 50
    for _ in range(sets):
        scores = (1.2 * np.array(hits) + draw.standard_normal(80)).tolist()
        area = auroc("a", hits, scores, range(80), 499)
        covered += area.low <= truth <= area.high  # type: ignore[operator]
    assert covered / sets >= 0.93
