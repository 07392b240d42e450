"""Intervals against independent computations, and draws that depend on their name alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from resect import stats
from resect.stats import Resampler, best_within, relative_drop


def test_wilson_equals_scipy() -> None:
    for hits, trials in [(0, 10), (3, 10), (10, 10), (57, 180)]:
        expected = scipy_stats.binomtest(hits, trials).proportion_ci(method="wilson")
        assert stats.wilson(hits, trials) == pytest.approx((expected.low, expected.high))


def test_rate_leaves_unscored_out() -> None:
    assert stats.rate("r", [1.0, None, 0.0, None]).value == 0.5
    assert stats.rate("r", [None, None]).value is None


def test_draws_depend_on_label_and_seed_alone() -> None:
    first = stats.rng("compactness/random", 0).integers(1 << 30, size=4)
    stats.rng("another study", 0).integers(1 << 30, size=4)
    assert (stats.rng("compactness/random", 0).integers(1 << 30, size=4) == first).all()
    assert (stats.rng("compactness/random", 1).integers(1 << 30, size=4) != first).any()


def test_resampler_matches_a_plain_bootstrap() -> None:
    scores: list[float | None] = [float(n % 3 == 0) for n in range(90)]
    sample = Resampler("x").rate({"0/a": scores})
    draw = np.random.default_rng(0)
    values = np.array(scores, dtype=float)
    plain = [draw.choice(values, 90).mean() for _ in range(2000)]
    assert sample.value == pytest.approx(1 / 3)
    assert sample.draws.mean() == pytest.approx(float(np.mean(plain)), abs=0.01)
    assert sample.draws.std() == pytest.approx(float(np.std(plain)), rel=0.1)


def test_strata_weigh_the_same_whatever_their_size() -> None:
    sample = Resampler("x").rate({"0/a": [1.0] * 10, "0/b": [0.0] * 1000})
    assert sample.value == pytest.approx(0.5)


def test_pairing_cancels_what_arms_share() -> None:
    resampler = Resampler("x")
    hard: list[float | None] = [float(n % 2) for n in range(100)]
    one, two = resampler.rate({"s": hard}), resampler.rate({"s": list(hard)})
    assert np.ptp((one - two).draws) == 0


def test_no_hits_in_few_prompts_is_not_certainty() -> None:
    resampler = Resampler("x")
    intact = resampler.rate({"s": [1.0] * 20})
    cut = resampler.rate({"s": [0.0] * 20})
    interval = relative_drop(intact, cut).interval("drop")
    assert interval.value == 1.0
    assert interval.low is not None
    assert interval.low == pytest.approx(1 - stats.wilson(0, 20)[1])


def test_drop_of_nothing_is_unknown() -> None:
    resampler = Resampler("x")
    none = resampler.rate({"s": [0.0] * 20})
    assert relative_drop(none, none).interval("drop").value is None
    assert math.isnan(resampler.rate({}).value)


def test_best_within_the_budget_repeats_its_choice_in_every_draw() -> None:
    resampler = Resampler("x")
    intact = resampler.rate({"s": [1.0] * 100})

    def drop(hits: int) -> stats.Sample:
        return relative_drop(intact, resampler.rate({"s": [*[1.0] * hits, *[0.0] * (100 - hits)]}))

    harm, cost = [drop(60), drop(10)], [drop(99), drop(50)]
    best = best_within(0.05, harm, cost)
    assert best.value == pytest.approx(0.4)
    assert best_within(0.001, harm, cost).value == 0.0
    assert (best.draws >= 0).all()
    # A draw in which the cheap cut is over the budget must not count it.
    over = cost[0].draws > 0.02
    assert over.any()
    assert (best_within(0.02, harm, cost).draws[over] == 0).all()


def test_overlap_p_value_is_the_hypergeometric_tail() -> None:
    tail = sum(math.comb(5, k) * math.comb(15, 6 - k) / math.comb(20, 6) for k in range(3, 6))
    assert stats.overlap_p_value(20, 5, 6, 3) == pytest.approx(tail)
