"""Intervals against independent computations, and draws that depend on their name alone."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from resect import stats
from resect.stats import Resampler, Sample, best_within, relative_drop


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


@pytest.mark.parametrize("size", [3, 6, 7, 49])
def test_equal_scores_keep_their_exact_bounds(size: int) -> None:
    # The weights of a resample of six do not sum to 1 in floating point.
    interval = Resampler("x").rate({"s": [1.0] * size}).interval("r")
    assert interval.low == pytest.approx(stats.wilson(size, size)[0])


def test_seeds_that_are_asked_the_same_prompts_count_them_once() -> None:
    scores: list[float | None] = [*[1.0] * 12, *[0.0] * 18]
    once = Resampler("x", together=True).rate({"0/a": scores})
    thrice = Resampler("x", together=True).rate({f"{seed}/a": scores for seed in range(3)})
    assert thrice.draws == pytest.approx(once.draws)
    assert thrice.trials == once.trials == 30
    apart = Resampler("x").rate({f"{seed}/a": scores for seed in range(3)})
    assert apart.trials == 90
    assert np.std(apart.draws) < 0.7 * np.std(thrice.draws)


def test_a_mean_over_the_same_prompts_is_no_surer_than_one() -> None:
    right: list[float | None] = [1.0] * 60
    full = [Resampler("x", together=True).rate({f"{at}/": right}) for at in range(3)]
    assert stats.average(full, together=True).interval("m") == full[0].interval("m")


def test_no_change_in_few_prompts_is_not_certainty() -> None:
    resampler = Resampler("x")
    scores: list[float | None] = [*[1.0] * 15, *[0.0] * 5]
    rate = resampler.rate({"s": scores})
    interval = relative_drop(rate, rate).interval("drop")
    assert interval.value == 0.0
    reach = stats.wilson(0, 20)[1] / 0.75
    assert interval.low == pytest.approx(-reach)
    assert interval.high == pytest.approx(reach)


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


def test_a_mean_over_models_covers_the_truth_and_keeps_exact_bounds() -> None:
    draw = np.random.default_rng(0)
    rates = np.array([0.2, 0.6, 0.9])
    covered = 0
    for _ in range(200):
        resampler = Resampler(f"{draw.integers(2**31)}", resamples=400)
        parts = [
            resampler.rate({str(at): list(draw.binomial(1, rate, 40).astype(float))})
            for at, rate in enumerate(rates)
        ]
        found = stats.average(parts).interval("mean")
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= rates.mean() <= found.high
    assert 0.9 <= covered / 200 <= 0.99
    full = [Resampler("x").rate({str(at): [1.0] * 60}) for at in range(3)]
    low = stats.average(full).interval("mean").low
    # Three models of 60 say more than one of 60, and no more than one of 180.
    assert low is not None
    assert stats.wilson(60, 60)[0] < low < stats.wilson(180, 180)[0]


def test_overlap_p_value_is_the_hypergeometric_tail() -> None:
    tail = sum(math.comb(5, k) * math.comb(15, 6 - k) / math.comb(20, 6) for k in range(3, 6))
    assert stats.overlap_p_value(20, 5, 6, 3) == pytest.approx(tail)


def test_paired_bootstrap_equals_exact_enumeration() -> None:
    # Four prompts have 4^4 resamples, few enough to visit all of them.
    first, second = np.array([1.0, 1.0, 0.0, 1.0]), np.array([0.0, 1.0, 0.0, 0.0])
    exact = np.array(
        [
            first[list(places)].mean() - second[list(places)].mean()
            for places in itertools.product(range(4), repeat=4)
        ]
    )
    resampler = Resampler("enumerated", resamples=40_000)
    drawn = (resampler.rate({"": list(first)}) - resampler.rate({"": list(second)})).draws
    assert drawn.mean() == pytest.approx(exact.mean(), abs=0.005)
    assert drawn.std() == pytest.approx(exact.std(), rel=0.02)
    for value in np.unique(exact):
        assert (drawn == value).mean() == pytest.approx((exact == value).mean(), abs=0.01)


def test_cluster_bootstrap_equals_exact_enumeration() -> None:
    clusters = ["a", "a", "b", "b", "b", "c"]
    scores: list[float | None] = [1.0, 0.0, 1.0, None, 1.0, None]
    means = stats.cluster_means(scores, clusters)
    assert means == [0.5, 1.0, None]
    drawn = Resampler("few", resamples=40_000).rate({"": means}).draws
    # Resamples of three clusters without a scored one have no rate; the others are enumerated.
    exact = [
        np.mean([m for m in (means[at] for at in places) if m is not None])
        for places in itertools.product(range(3), repeat=3)
        if any(means[at] is not None for at in places)
    ]
    known = drawn[np.isfinite(drawn)]
    assert (~np.isfinite(drawn)).mean() == pytest.approx(1 / 27, abs=0.005)
    assert known.mean() == pytest.approx(float(np.mean(exact)), abs=0.005)
    assert known.std() == pytest.approx(float(np.std(exact)), rel=0.02)


def test_ratio_of_nothing_and_by_nothing() -> None:
    resampler = Resampler("r")
    none, all_of_them = resampler.rate({"": [0.0] * 20}), resampler.rate({"": [1.0] * 20})
    assert stats.ratio(all_of_them, none).interval("r").value is None
    interval = stats.ratio(none, all_of_them).interval("r")
    assert interval.value == 0.0
    assert interval.high == pytest.approx(stats.wilson(0, 20)[1])


def test_a_difference_without_spread_is_as_wide_as_its_sides() -> None:
    first = Sample(1.0, np.array([1.0] * 99 + [0.5]), (0.9, 1.0))
    second = Sample(1.0, np.ones(100), (0.8, 1.0))
    found = (first - second).interval("difference")
    assert found.low == pytest.approx(-0.1)
    assert found.high == pytest.approx(0.2)
    spread = Sample(0.5, np.linspace(0, 1, 100), (0.4, 0.6))
    assert (spread - second).exact is None
