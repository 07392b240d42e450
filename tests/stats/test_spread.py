"""Intervals of values without ends: Student's in one stratum, and their coverage where skewed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from resect.stats import Resampler, relative_drop

MANY = 39_999


@pytest.mark.parametrize("count", [6, 12, 40])
def test_symmetric_values_have_students_interval(count: int) -> None:
    values = np.sort(scipy_stats.norm.ppf((np.arange(count) + 0.5) / count))
    interval = Resampler("t", resamples=MANY).spread({"": list(values)}).interval("")
    low, high = scipy_stats.t.interval(
        0.95, count - 1, loc=values.mean(), scale=values.std(ddof=1) / math.sqrt(count)
    )
    # The draws of few values are a little less heavy-tailed than a normal.
    assert interval.low == pytest.approx(low, rel=0.08)
    assert interval.high == pytest.approx(high, rel=0.08)


def test_strata_and_groups_are_those_of_the_mean() -> None:
    resampler = Resampler("s")
    strata: dict[str, list[float | None]] = {
        "0/a": [0.1, 0.4, 0.2, None, 0.3],
        "0/b": [1.0, 0.7, 0.9],
    }
    usual, spread = resampler.mean(strata), resampler.spread(strata)
    assert (spread.value, spread.trials) == (usual.value, 7)
    ratio = (spread.draws - spread.value) / (usual.draws - usual.value)
    factor = scipy_stats.t.isf(0.025, 5) / scipy_stats.norm.isf(0.025) * math.sqrt(7 / 5)
    assert ratio == pytest.approx(factor)
    grouped = resampler.spread(strata, {"0/a": [*"xxyyz"], "0/b": [*"uvw"]})
    assert grouped.trials == 6


def test_arms_stay_paired() -> None:
    resampler = Resampler("p")
    before = [0.2 + 0.6 * (n * 0.618 % 1) for n in range(30)]
    drop = relative_drop(
        resampler.spread({"": before}), resampler.spread({"": [value / 2 for value in before]})
    ).interval("")
    assert drop.value == pytest.approx(0.5)
    assert drop.low == pytest.approx(0.5)
    assert drop.high == pytest.approx(0.5)


def test_what_has_no_spread_has_no_bounds_of_its_own() -> None:
    resampler = Resampler("n")
    assert resampler.spread({"": [0.4]}).interval("").low is None
    assert resampler.spread({"": [None, None]}).interval("").value is None
    same = resampler.spread({"": [0.4] * 9}, skewed=True).interval("")
    assert (same.low, same.value, same.high) == pytest.approx((0.4, 0.4, 0.4))


@pytest.mark.parametrize(("strata", "count", "most"), [(1, 60, 0.07), (5, 12, 0.06)])
def test_bounds_of_skewed_values_miss_seldom(strata: int, count: int, most: float) -> None:
    # A rise of NLL is near 0 for most answers and large for a few: gamma of shape 1/2.
    draw = np.random.default_rng(7)
    resampler = Resampler("c", resamples=499)
    misses = {False: [0, 0], True: [0, 0]}
    runs = 300
    for _ in range(runs):
        values = {f"0/{n}": list(draw.gamma(0.5, 2.0, count)) for n in range(strata)}
        for skewed, counted in misses.items():
            interval = resampler.spread(values, skewed=skewed).interval("")
            assert interval.low is not None
            assert interval.high is not None
            counted[0] += interval.low > 1
            counted[1] += interval.high < 1
    assert misses[True][1] / runs <= most
    assert misses[True][0] / runs <= 0.045
    # Without the correction the upper bound is short more often.
    assert misses[True][1] < misses[False][1]
