"""Intervals against independent computations, and draws that depend on their name alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from resect import stats
from resect.stats import Resampler, Sample, relative_drop


def test_wilson_equals_scipy() -> None:
    for hits, trials in [(0, 10), (3, 10), (10, 10), (57, 180)]:
        expected = scipy_stats.binomtest(hits, trials).proportion_ci(method="wilson")
        assert stats.wilson(hits, trials) == pytest.approx((expected.low, expected.high))


def test_exact_interval_equals_scipy() -> None:
    for hits, trials in [(0, 10), (3, 10), (10, 10), (57, 180)]:
        for level in (0.95, 0.99):
            expected = scipy_stats.binomtest(hits, trials).proportion_ci(level, method="exact")
            found = stats.clopper_pearson(hits, trials, level)
            assert found == pytest.approx((expected.low, expected.high))


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
    # One more prompt, harmful after the cut and not before: it is in one of the rates alone.
    reach = stats.clopper_pearson(0, 20)[1]
    assert interval.low == pytest.approx(1 - reach / (1 - reach))


@pytest.mark.parametrize("size", [3, 6, 7, 49])
def test_equal_scores_keep_their_exact_bounds(size: int) -> None:
    # The weights of a resample of six do not sum to 1 in floating point.
    interval = Resampler("x").rate({"s": [1.0] * size}).interval("r")
    assert interval.low == pytest.approx(stats.clopper_pearson(size, size)[0])


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
    assert interval.low is not None
    assert interval.high is not None
    # At least as wide as the exact interval of how many of all prompts may have changed.
    reach = stats.clopper_pearson(0, 20)[1] / 0.75
    assert interval.low == pytest.approx(-reach, rel=0.35)
    assert interval.low < -reach
    assert interval.high == pytest.approx(reach, rel=0.35)


def test_drop_of_nothing_is_unknown() -> None:
    resampler = Resampler("x")
    none = resampler.rate({"s": [0.0] * 20})
    assert relative_drop(none, none).interval("drop").value is None
    assert math.isnan(resampler.rate({}).value)


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


def test_ratio_of_nothing_and_by_nothing() -> None:
    resampler = Resampler("r")
    none, all_of_them = resampler.rate({"": [0.0] * 20}), resampler.rate({"": [1.0] * 20})
    assert stats.ratio(all_of_them, none).interval("r").value is None
    interval = stats.ratio(none, all_of_them).interval("r")
    assert interval.value == 0.0
    reach = stats.clopper_pearson(0, 20)[1]
    assert interval.high == pytest.approx(reach / (1 - reach))


def test_a_difference_without_spread_is_as_wide_as_its_sides() -> None:
    first = Sample(1.0, np.array([1.0] * 99 + [0.5]), stats.Ends(0.9, 1.0))
    second = Sample(1.0, np.ones(100), stats.Ends(0.8, 1.0))
    found = (first - second).interval("difference")
    assert found.low == pytest.approx(-0.1)
    assert found.high == pytest.approx(0.2)
    spread = Sample(0.5, np.linspace(0, 1, 100), stats.Ends(0.4, 0.6))
    assert (spread - second).exact is None


def test_arithmetic_goes_end_by_end() -> None:
    resampler = Resampler("x")
    left, right = (
        resampler.rate({"s": [*[1.0] * hits, *[0.0] * (40 - hits)]}) for hits in (30, 10)
    )
    missed = (1 - left).interval("missed")
    assert missed.low == pytest.approx(1 - (left.interval("").high or 0))
    assert missed.high == pytest.approx(1 - (left.interval("").low or 0))
    halved = left * 0.5
    assert halved.interval("").low == pytest.approx((left.interval("").low or 0) / 2)
    mirrored = (left * -1).interval("")
    assert (mirrored.low, mirrored.high) == (
        -(left.interval("").high or 0),
        -(left.interval("").low or 0),
    )
    # The bounds of a difference reach further than the prompts that were asked say.
    gap = left - right
    plain = Sample(gap.value, gap.draws).interval("")
    wide = gap.interval("")
    assert wide.low is not None
    assert plain.low is not None
    assert wide.low < plain.low < gap.value


@pytest.mark.parametrize("level", [0.9, 0.95, 0.99, 0.999])
def test_every_level_is_that_of_the_bounds(level: float) -> None:
    resampler = Resampler("x")
    none = resampler.rate({"s": [0.0] * 30})
    assert none.interval("r", level).high == pytest.approx(
        stats.clopper_pearson(0, 30, level)[1], rel=1e-6
    )
    drop = relative_drop(resampler.rate({"s": [1.0] * 30}), none)
    reach = stats.clopper_pearson(0, 30, level)[1]
    assert drop.interval("r", level).low == pytest.approx(1 - reach / (1 - reach))


def test_a_bound_is_never_better_with_more_broken_answers() -> None:
    # By percentiles 1 broken answer of 31 passes a tolerance that 0 broken ones fail.
    for size in (20, 31, 34, 61, 72, 90):
        resampler = Resampler(f"order/{size}")
        intact = resampler.rate({"s": [1.0] * size})
        lows, highs = [], []
        for broken in range(8):
            cut = resampler.rate({"s": [*[0.0] * broken, *[1.0] * (size - broken)]})
            interval = relative_drop(intact, cut).interval("drop")
            assert interval.low is not None
            assert interval.high is not None
            lows.append(interval.low)
            highs.append(interval.high)
        assert lows == sorted(lows)
        assert highs == sorted(highs)


def test_a_single_worse_answer_never_lowers_an_upper_bound() -> None:
    draw = stats.rng("order")
    for _ in range(30):
        resampler = Resampler(f"order/{draw.integers(2**31)}", resamples=199)
        before = [list[float | None](draw.random(8)) for _ in range(4)]
        after = [[(score or 0) * draw.random() for score in scores] for scores in before]
        worse = [list(scores) for scores in after]
        worse[draw.integers(4)][draw.integers(8)] *= 0.5
        intact = resampler.rate({str(n): scores for n, scores in enumerate(before)})
        drops = [
            relative_drop(intact, resampler.rate({str(n): list(s) for n, s in enumerate(scores)}))
            for scores in (after, worse)
        ]
        first, second = (drop.interval("drop") for drop in drops)
        assert first.high is not None
        assert second.high is not None
        assert first.low is not None
        assert second.low is not None
        assert first.low <= second.low
        assert first.high <= second.high
