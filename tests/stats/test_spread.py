"""Intervals of values without ends: Student's in one stratum."""

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
    same = resampler.spread({"": [0.4] * 9}).interval("")
    assert (same.low, same.value, same.high) == pytest.approx((0.4, 0.4, 0.4))
