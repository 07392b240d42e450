"""Corrected rates against plain arithmetic, and against truths that a simulation knows."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
import pytest

from resect.records import Interval
from resect.stats import ErrorRates, Resampler, Sample, power, prediction_powered, rng, rogan_gladen

DRAWS = 1999


@functools.cache
def rate_of(label: str, hits: int, count: int) -> Sample:
    """Return the rate of so many hits; draws of one label and count are the same."""
    return Resampler(label, DRAWS).rate({"": [1.0] * hits + [0.0] * (count - hits)})


def corrected(
    hits: int, count: int, right: int, positives: int, wrong: int, negatives: int
) -> Sample:
    errors = ErrorRates(
        rate_of("sensitivity", right, positives), rate_of("specificity", wrong, negatives)
    )
    return rogan_gladen(rate_of("run", hits, count), rate_of("run", count, count), errors)


def slow(hits: float, judged: float, right: float, wrong: float) -> float:
    """Solve h = t a + (c - t)(1 - b) for t by halving, where the right side rises with t."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        called = middle * right + (judged - middle) * (1 - wrong)
        low, high = (middle, high) if called < hits else (low, middle)
    return (low + high) / 2


@pytest.mark.parametrize("hits", [0, 3, 20, 55, 97, 100])
@pytest.mark.parametrize("judged", [100, 97])
@pytest.mark.parametrize(("right", "wrong"), [(40, 90), (50, 80), (31, 100), (20, 61)])
def test_the_value_and_each_draw_solve_the_equation(
    hits: int, judged: int, right: int, wrong: int
) -> None:
    hits = min(hits, judged)
    run, looked_at = rate_of("run", hits, 100), rate_of("run", judged, 100)
    errors = ErrorRates(rate_of("sensitivity", right, 50), rate_of("specificity", wrong, 100))
    sample = rogan_gladen(run, looked_at, errors)
    assert sample.value == pytest.approx(
        slow(hits / 100, judged / 100, right / 50, wrong / 100), abs=1e-9
    )
    for draw in range(0, DRAWS, 400):
        a, b = errors.sensitivity.draws[draw], errors.specificity.draws[draw]
        if a + b <= 1:
            continue
        expected = slow(run.draws[draw], looked_at.draws[draw], a, b)
        assert sample.draws[draw] == pytest.approx(expected, abs=1e-9)
    interval = sample.interval("")
    assert 0 <= interval.low <= interval.value <= interval.high <= 1  # type: ignore[operator]


def test_a_perfect_judge_changes_nothing_but_its_doubt() -> None:
    plain, judged = rate_of("run", 30, 100), rate_of("run", 100, 100)
    sure = Sample(1.0, np.ones(DRAWS))
    assert rogan_gladen(plain, judged, ErrorRates(sure, sure)).interval("") == plain.interval("")
    doubted = corrected(30, 100, 50, 50, 50, 50).interval("")
    exact = plain.interval("")
    assert doubted.value == exact.value
    assert doubted.low < exact.low  # type: ignore[operator]
    assert doubted.high > exact.high  # type: ignore[operator]


def test_incoherent_replies_are_no_hits_and_no_errors() -> None:
    errors = ErrorRates(rate_of("sensitivity", 45, 50), rate_of("specificity", 40, 50))
    # Of 100 replies 40 are incoherent; of the others 30 are truly hits: 27 + 6 are called so.
    half = rogan_gladen(rate_of("run", 33, 100), rate_of("run", 60, 100), errors)
    assert half.value == pytest.approx(0.3)


@pytest.mark.parametrize(("right", "wrong"), [(25, 25), (10, 30), (0, 50)])
def test_a_judge_that_knows_nothing_measures_nothing(right: int, wrong: int) -> None:
    sample = corrected(30, 100, right, 50, wrong, 50)
    assert math.isnan(sample.value)
    assert sample.interval("rate") == Interval("rate", None)


def test_a_judge_that_may_know_nothing_bounds_nothing() -> None:
    interval = corrected(50, 100, 6, 10, 6, 10).interval("")
    assert (interval.low, interval.high) == (0.0, 1.0)


def test_the_opposite_hit_swaps_both_errors() -> None:
    errors = ErrorRates(rate_of("sensitivity", 45, 50), rate_of("specificity", 35, 50))
    judged = rate_of("run", 100, 100)
    share = rogan_gladen(rate_of("run", 60, 100), judged, errors)
    opposite = rogan_gladen(rate_of("run", 40, 100), judged, errors.of_the_opposite())
    assert opposite.value == pytest.approx(1 - share.value)


class World(NamedTuple):
    """Truths, and the sizes of what is seen of them."""

    truth: float
    right: float
    wrong: float
    replies: int
    positives: int
    negatives: int


WORLDS = (
    World(0.5, 0.9, 0.9, 100, 60, 60),
    World(0.1, 0.85, 0.95, 100, 100, 200),
    World(0.9, 0.7, 0.8, 60, 50, 50),
    World(0.02, 0.9, 0.9, 200, 200, 200),
    World(0.7, 0.6, 0.7, 200, 100, 60),
    World(0.0, 0.9, 0.95, 50, 30, 30),
)


@pytest.mark.parametrize("world", WORLDS)
def test_the_corrected_interval_covers_the_truth(world: World) -> None:
    draw = rng(f"test/rogan-gladen/{world}")
    sets = 2000
    true = draw.binomial(world.replies, world.truth, sets)
    hits = draw.binomial(true, world.right)
    hits += draw.binomial(world.replies - true, 1 - world.wrong)
    right = draw.binomial(world.positives, world.right, sets)
    wrong = draw.binomial(world.negatives, world.wrong, sets)
    covered = naive = 0
    for h, a, b in zip(hits.tolist(), right.tolist(), wrong.tolist(), strict=True):
        sample = corrected(h, world.replies, a, world.positives, b, world.negatives)
        interval = sample.interval("")
        if interval.low is None or interval.high is None:
            covered += 1  # nothing is said
            continue
        covered += interval.low - 1e-12 <= world.truth <= interval.high + 1e-12
        plain = rate_of("run", h, world.replies).interval("")
        naive += plain.low <= world.truth <= plain.high  # type: ignore[operator]
    assert covered / sets >= 0.93
    # What is not corrected is not right.
    assert naive / sets < covered / sets


def loop(scores: list[float | None], labels: list[float | None]) -> float:
    """Return the prediction-powered mean by plain loops."""
    known = [(f, y) for f, y in zip(scores, labels, strict=True) if f is not None]
    both = [(f, y) for f, y in known if y is not None]
    rest = [f for f, y in known if y is None]
    mean_f = sum(f for f, _ in both) / len(both)
    mean_y = sum(y for _, y in both) / len(both)
    if not rest:
        return mean_y
    together = sum((f - mean_f) * (y - mean_y) for f, y in both) / (len(both) - 1)
    whole = sum(f for f, _ in known) / len(known)
    spread = sum((f - whole) ** 2 for f, _ in known) / (len(known) - 1)
    factor = min(1, max(0, together / ((1 + len(both) / len(rest)) * spread))) if spread else 0
    return factor * sum(rest) / len(rest) + mean_y - factor * mean_f


def test_labels_of_some_replies_correct_the_rest() -> None:
    draw = rng("test/powered")
    for count in (5, 30, 80):
        scores: list[float | None] = draw.random(count).tolist()
        labels: list[float | None] = [
            float(draw.random() < score) if draw.random() < 0.5 else None
            for score in scores
            if score is not None
        ]
        labels[0], labels[1], scores[2] = 1.0, 0.0, None
        sample = prediction_powered(Resampler("p"), {"": scores}, {"": labels})
        assert sample.value == pytest.approx(min(1, max(0, loop(scores, labels))))


def test_a_judge_that_does_not_vary_leaves_the_labels_own_mean() -> None:
    labels = [1.0, 0.0, 1.0, None, None]
    assert power([0.5] * 5, labels) == 0
    sample = prediction_powered(Resampler("p"), {"": [0.5] * 5}, {"": labels})
    assert sample.value == pytest.approx(2 / 3)


def test_without_a_label_nothing_is_said() -> None:
    sample = prediction_powered(Resampler("p"), {"": [0.5, 1.0]}, {"": [None, None]})
    assert sample.interval("") == Interval("", None)


@pytest.mark.parametrize(("truth", "labelled"), [(0.3, 40), (0.5, 60), (0.8, 30), (0.1, 60)])
def test_the_powered_interval_covers_the_truth_of_a_biased_judge(
    truth: float, labelled: int
) -> None:
    draw = rng(f"test/powered/{truth}/{labelled}")
    sets, count = 400, 200
    resampler = Resampler("p", DRAWS)
    covered, widths, alone = 0, [], []
    for _ in range(sets):
        hit = draw.random(count) < truth
        # It calls many more of them hits than there are.
        scores = np.clip(0.3 + 0.5 * hit + 0.15 * draw.standard_normal(count), 0, 1)
        labels = [float(y) if at < labelled else None for at, y in enumerate(hit.tolist())]
        interval = prediction_powered(resampler, {"": scores.tolist()}, {"": labels}).interval("")
        assert interval.low is not None
        assert interval.high is not None
        covered += interval.low <= truth <= interval.high
        widths.append(interval.high - interval.low)
        plain = resampler.rate({"": labels}).interval("")
        alone.append(plain.high - plain.low)  # type: ignore[operator]
    assert covered / sets >= 0.93
    if 0.2 < truth < 0.8:
        assert float(np.mean(widths)) < float(np.mean(alone))
