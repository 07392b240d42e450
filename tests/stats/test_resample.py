"""The draws against beta quantiles, the bound of another paper, and enumeration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from resect import stats
from resect.stats import Resampler, Sample, relative_drop

MANY = 39_999
GRADED = [0.0, 0.0, 0.2, 0.4, 0.4, 0.6, 0.6, 0.8, 1.0, 0.2, 0.2, 0.0]


def bounds(sample: Sample, level: float = 0.95) -> tuple[float, float]:
    interval = sample.interval("", level)
    assert interval.low is not None
    assert interval.high is not None
    return interval.low, interval.high


@pytest.mark.parametrize("hits", [0, 1, 3, 15, 29, 30])
def test_scores_of_0_and_1_have_the_exact_interval(hits: int) -> None:
    scores: list[float | None] = [*[1.0] * hits, *[0.0] * (30 - hits)]
    sample = Resampler("exact", resamples=MANY).rate({"": scores})
    for level in (0.95, 0.99):
        assert bounds(sample, level) == pytest.approx(
            stats.clopper_pearson(hits, 30, level), abs=0.005
        )
    if 0 < hits < 30:
        assert scipy_stats.kstest(sample.draws, scipy_stats.beta(hits, 30 - hits).cdf).pvalue > 1e-3


def slow_bound(scores: list[float], tail: float, draws: int = MANY) -> float:
    """Return the upper bound of Learned-Miller and Thomas as their paper defines it.

    With u the sorted uniform numbers of a draw and z the sorted scores, z_(n+1) = 1: the quantile
    of 1 - Σ u_i (z_(i+1) - z_i).
    """
    steps = np.diff([*sorted(scores), 1.0])
    uniform = np.sort(np.random.default_rng(5).random((draws, len(scores))), axis=1)
    return float(np.quantile([1 - sum(u * steps) for u in uniform], 1 - tail))


def test_graded_scores_have_the_bound_of_the_paper() -> None:
    found = bounds(Resampler("graded", resamples=MANY).rate({"": list(GRADED)}))
    assert found[1] == pytest.approx(slow_bound(GRADED, 0.025), abs=0.008)
    mirrored = [1 - score for score in GRADED]
    assert found[0] == pytest.approx(1 - slow_bound(mirrored, 0.025), abs=0.008)
    # Graded scores vary less than scores of 0 and 1 of the same mean.
    low, high = stats.clopper_pearson(4, 12)
    assert low < found[0] < sum(GRADED) / 12 < found[1] < high


def test_rate_is_the_interval_of_one_stratum() -> None:
    coarse = stats.rate("r", [1.0, 0.0, None, 0.0])
    assert (coarse.low, coarse.high) == stats.clopper_pearson(1, 3)
    graded = stats.rate("r", GRADED)
    assert graded.high == pytest.approx(slow_bound(GRADED, 0.025), abs=0.02)


@pytest.mark.parametrize(("strata", "size"), [(1, 12), (3, 10), (15, 6), (15, 3)])
def test_variance_has_its_degrees_of_freedom(strata: int, size: int) -> None:
    draw = np.random.default_rng(2)
    scores = {str(n): list[float | None](draw.random(size)) for n in range(strata)}
    drawn = Resampler("variance", resamples=MANY).mean(scores).draws
    spread = sum(np.var([s for s in row if s is not None]) for row in scores.values())
    expected = spread / (size - 1 + 2 / strata) / strata**2
    assert np.var(drawn) == pytest.approx(expected, rel=0.05)
    if strata == 15:
        # Near that of the unbiased estimate, n / (n - 1); the percentile bootstrap has n / n.
        assert np.var(drawn) == pytest.approx(spread / (size - 1) / strata**2, rel=0.1)


def test_the_added_prompt_counts_as_one_of_all_strata() -> None:
    none = {f"{seed}/a": [0.0] * 20 for seed in range(3)}
    high = bounds(Resampler("x").rate(none))[1]
    assert high == pytest.approx(stats.clopper_pearson(0, 60)[1])
    same = bounds(Resampler("x", together=True).rate(none))[1]
    assert same == pytest.approx(stats.clopper_pearson(0, 20)[1])


def test_groups_are_drawn_together() -> None:
    scores: list[float | None] = [*[1.0] * 8, *[0.0] * 16]
    apart = Resampler("x", resamples=MANY).rate({"": scores})
    pairs = Resampler("x", resamples=MANY).rate({"": scores}, {"": [n // 2 for n in range(24)]})
    halves = Resampler("half", resamples=MANY).rate({"": [1.0] * 4 + [0.0] * 8})
    assert pairs.value == apart.value
    # Twelve pairs of equal answers are twelve prompts.
    assert bounds(pairs) == pytest.approx(bounds(halves), abs=0.006)
    assert bounds(pairs)[0] < bounds(apart)[0]
    assert bounds(pairs)[1] > bounds(apart)[1]
    single = Resampler("x", resamples=MANY).rate({"": scores}, {"": list(range(24))})
    assert bounds(single) == bounds(apart)


def test_groups_of_unequal_size_weigh_by_their_prompts() -> None:
    scores: list[float | None] = [1.0, 1.0, 1.0, None, 0.0, 0.5]
    labels = ["a", "a", "a", "a", "b", "c"]
    found = Resampler("x", resamples=MANY).mean({"": scores}, {"": labels})
    assert found.value == pytest.approx(3.5 / 5)
    draw = np.random.default_rng(1)
    slow = []
    for _ in range(MANY):
        weight = dict(zip("abc", draw.exponential(size=3), strict=True))
        known = [(s, weight[g]) for s, g in zip(scores, labels, strict=True) if s is not None]
        slow.append(sum(s * w for s, w in known) / sum(w for _, w in known))
    assert np.quantile(found.draws, [0.025, 0.5, 0.975]) == pytest.approx(
        np.quantile(slow, [0.025, 0.5, 0.975]), abs=0.02
    )


def test_values_that_are_no_scores_have_no_added_prompt() -> None:
    losses: list[float | None] = [2.0, 3.5, 1.0, 2.5]
    sample = Resampler("x").rate({"": losses})
    assert (sample.below == sample.draws).all()
    assert (sample.draws >= 1).all()


def pairs_of(both: int, lost: int, gained: int, size: int) -> tuple[list[float], list[float]]:
    neither = size - both - lost - gained
    before = [1.0] * (both + lost) + [0.0] * (gained + neither)
    after = [1.0] * both + [0.0] * lost + [1.0] * gained + [0.0] * neither
    return before, after


def test_paired_bounds_hold_for_every_truth_by_enumeration() -> None:
    # All outcomes of ten pairs, and a grid of truths: the chance that a bound excludes the truth.
    size = 10
    resampler = Resampler("enumerated", resamples=3999)
    outcomes = [
        (both, lost, gained)
        for both, lost, gained in itertools.product(range(size + 1), repeat=3)
        if both + lost + gained <= size
    ]
    ends, ratios = [], []
    for outcome in outcomes:
        before, after = (
            resampler.rate({"": list(column)}) for column in pairs_of(*outcome, size=size)
        )
        ends.append(bounds(before - after))
        drop = relative_drop(before, after).interval("")
        # Where the intact model never shows it there is no drop, and nothing is claimed.
        ratios.append((-math.inf if drop.low is None else drop.low, math.inf))
        if drop.high is not None:
            ratios[-1] = (ratios[-1][0], drop.high)
    grid = (0.02, 0.1, 0.3, 0.6, 0.9)
    worst = 0.0
    for both, lost, gained in itertools.product(grid, repeat=3):
        if both + lost + gained > 1:
            continue
        chances = [both, lost, gained, max(0.0, 1 - both - lost - gained)]
        law = scipy_stats.multinomial(size, chances)
        chance = law.pmf([[*outcome, size - sum(outcome)] for outcome in outcomes])
        for truth, found in ((lost - gained, ends), (1 - (both + gained) / (both + lost), ratios)):
            low, high = np.array(found).T
            worst = max(worst, chance[low > truth + 1e-9].sum(), chance[high < truth - 1e-9].sum())
    assert 0.01 < worst <= 0.03
