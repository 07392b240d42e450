"""Measures against slow twins, and at the ends: the truth itself, chance, ties."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from resect.planted.measures import (
    area,
    depths,
    membership,
    order_of,
    over_seeds,
)
from resect.stats import rng


def sets(total: int = 400, size: int = 40) -> tuple[np.ndarray, np.ndarray]:
    places = rng("test/localise").permutation(total)
    truth, decoy = np.zeros(total, dtype=bool), np.zeros(total, dtype=bool)
    truth[places[:size]], decoy[places[size : 2 * size]] = True, True
    return truth, decoy


def test_membership_matches_plain_loops() -> None:
    truth, decoy = sets()
    order = order_of(rng("test/key").normal(size=400) + truth, rng("test/ties"))
    found = membership(order, truth, decoy)
    hits, precisions = 0, []
    for place, number in enumerate(order, start=1):
        if truth[number]:
            hits += 1
            precisions.append(hits / place)
    assert found["average_precision"] == pytest.approx(sum(precisions) / 40)
    assert found["precision"] == sum(bool(truth[n]) for n in order[:40]) / 40
    assert found["precision_tenth"] == sum(bool(truth[n]) for n in order[:4]) / 4
    assert found["decoy_share"] == sum(bool(decoy[n]) for n in order[:40]) / 40
    assert found["recall@0.1"] == sum(bool(truth[n]) for n in order[:40]) / 40
    rank = {int(number): place for place, number in enumerate(order)}
    wins = [
        rank[int(a)] < rank[int(b)] for a in np.flatnonzero(truth) for b in np.flatnonzero(~truth)
    ]
    assert found["auc"] == pytest.approx(sum(wins) / len(wins))
    assert 0 < found["precision"] < 1


def test_truth_is_one_and_random_is_at_chance() -> None:
    truth, decoy = sets()
    best = membership(order_of(truth.astype(float), rng("test/a")), truth, decoy)
    assert best["average_precision"] == best["auc"] == best["precision"] == 1
    # Hits of a random order at depth 40 are hypergeometric.
    low, high = (count / 40 for count in scipy_stats.hypergeom(400, 40, 40).interval(0.95))
    assert low < 0.1 < high
    inside = [
        low
        <= membership(order_of(np.zeros(400), rng("test/tie", n)), truth, decoy)["precision"]
        <= high
        for n in range(200)
    ]
    # 95 % of 200, less three standard errors; ties alone decide, so none may favour a set.
    assert sum(inside) >= 180


def test_order_reproduces_and_breaks_ties_by_name() -> None:
    key = np.array([1.0, 2.0, 1.0, 2.0, 3.0])
    orders = [order_of(key, rng("test/t", seed)).tolist() for seed in (0, 0, 1, 2, 3, 4)]
    assert orders[0] == orders[1]
    assert all(order[0] == 4 and set(order[1:3]) == {1, 3} for order in orders)
    assert len({tuple(order) for order in orders}) > 1


def test_areas_depths_and_intervals() -> None:
    assert depths(640, 4) == [10, 40, 160, 640]
    assert depths(640, 8) == [10, 80, 640]
    assert area([1.0, 0.0], [10, 100]) == pytest.approx(0.5)
    # Steps of equal ratio weigh the same, whatever their size.
    assert area([1.0, 1.0, 0.0], [1, 10, 100]) == pytest.approx(0.75)
    interval = over_seeds("x", [1.0, 2.0, 3.0])
    # 2 ± 4.303 · 1/√3
    assert interval.value == 2
    assert interval.low == pytest.approx(2 - 4.3027 / 3**0.5, abs=1e-4)
    assert over_seeds("x", [1.0, None]).low is None
    assert over_seeds("x", [None]).value is None
