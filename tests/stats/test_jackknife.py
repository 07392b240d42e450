"""Intervals of what pairs of a few items have in common."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from resect.stats import LeftOut, jackknife


def of_pairs(items: np.ndarray) -> LeftOut:
    """The mean of a + b over pairs of items, and without each of them."""

    def mean(chosen: np.ndarray) -> float:
        return float(np.mean([a + b for a, b in combinations(chosen, 2)]))

    return LeftOut(mean(items), [mean(np.delete(items, n)) for n in range(len(items))])


def test_the_interval_of_a_sum_is_that_of_students_t() -> None:
    # The mean of a + b over pairs is twice the mean, whose interval is known.
    items = np.array([0.2, 0.5, 0.9, 0.4])
    interval = jackknife("twice the mean", [of_pairs(items)])
    reach = 3.18244630528 * 2 * items.std(ddof=1) / 2
    assert interval.value == pytest.approx(2 * items.mean())
    assert interval.low == pytest.approx(2 * items.mean() - reach)
    assert interval.high == pytest.approx(2 * items.mean() + reach)


def test_equal_pairs_have_no_spread() -> None:
    interval = jackknife("equal", [LeftOut(0.3, [0.3] * 3), LeftOut(0.1, [0.1] * 3)])
    assert (interval.low, interval.high) == (interval.value, interval.value)


def test_two_items_give_no_interval() -> None:
    interval = jackknife("two", [LeftOut(0.5, [])])
    assert (interval.value, interval.low, interval.high) == (0.5, None, None)


@pytest.mark.parametrize("models", [1, 5])
def test_covers_the_truth(models: int) -> None:
    draw = np.random.default_rng(3)
    runs = 1000
    covered = 0
    for _ in range(runs):
        interval = jackknife("", [of_pairs(draw.normal(0.25, 0.1, 3)) for _ in range(models)])
        assert interval.low is not None
        assert interval.high is not None
        covered += interval.low <= 0.5 <= interval.high
    # Two standard errors of 95 % in 1,000 runs are 1.4 %.
    assert covered / runs >= 0.936
