"""Bounds of skewed values without ends: one more row as far out as the furthest one seen."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from resect.planted.verdicts.quick import QuickResampler
from resect.stats import Resampler, Sample, difference, least

FEW = 199


def loops(
    resampler: Resampler, strata: dict[str, list[float | None]], groups: dict[str, str]
) -> list[list[float]]:
    """Return draws, below and above of `reaching`, prompt by prompt and draw by draw."""
    seen = {resampler.prompts_of(name) for name in strata}
    deviations: dict[tuple[str, str], list[float]] = {}
    weights: dict[tuple[str, str], float] = {}
    for name, scores in strata.items():
        place, rows = resampler.prompts_of(name), list(zip(groups[name], scores, strict=True))
        known = [score for _, score in rows if score is not None]
        for label in dict.fromkeys(groups[name]):
            mine = [score for member, score in rows if member == label and score is not None]
            if mine:
                key = (place, label)
                apart = sum(mine) / len(mine) - sum(known) / len(known)
                deviations.setdefault(key, []).append(apart)
                weights[key] = weights.get(key, 0) + len(mine) / len(known) / len(strata)
    furthest = [sum(row) / len(row) for row in deviations.values()]
    effective = 1 / sum(weight**2 for weight in weights.values())
    freedom = len(deviations) - len(seen)
    usual = resampler.mean(strata, groups)
    draws, below, above = [], [], []
    for number, draw in enumerate(usual.draws):
        added = 1 - (1 - resampler._even[number]) ** (1 / effective)
        apart = (draw - usual.value) * math.sqrt((freedom + 2) / freedom)
        draws.append(usual.value + apart)
        below.append(usual.value + (1 - added) * apart + added * min(furthest))
        above.append(usual.value + (1 - added) * apart + added * max(furthest))
    return [draws, below, above]


@pytest.mark.parametrize("together", [False, True])
def test_reaching_is_what_loops_give(together: bool) -> None:
    strata: dict[str, list[float | None]] = {
        "0/a": [0.1, 0.4, 0.2, None, 3.3, 0.2],
        "1/a": [0.3, 0.1, 0.1, 0.2, 0.9, None],
        "0/b": [1.0, 0.7, 2.9],
    }
    groups = {"0/a": "xxyyzw", "1/a": "xxyyzw", "0/b": "uvw"}
    ours = Resampler("r", FEW, together=together).reaching(strata, groups)
    theirs = loops(Resampler("r", FEW, together=together), strata, groups)
    for name, values in zip(("draws", "below", "above"), theirs, strict=True):
        np.testing.assert_allclose(getattr(ours, name), values, atol=1e-12)


@pytest.mark.parametrize("together", [False, True])
def test_a_layout_reaches_as_far(together: bool) -> None:
    rows = {"0/a": [0.1, 0.4, 0.2, 3.3], "1/a": [0.3, 0.1, 0.9, 0.2], "0/b": [1.0, 0.7, 2.9]}
    groups = {"0/a": "xxyz", "1/a": "xxyz", "0/b": "uvw"}
    places = {"0/a": range(4), "1/a": range(4, 8), "0/b": range(8, 11)}
    quick = QuickResampler("q", together=together).layout(places, groups)
    ours = quick.reaching(np.array([score for scores in rows.values() for score in scores]))
    theirs = Resampler("q", together=together).reaching(rows, groups)
    for name in ("draws", "below", "above"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), atol=1e-12)
    nobody = QuickResampler("q").layout({}, {}).reaching(np.array([]))
    assert math.isnan(nobody.value)


def test_a_bound_reaches_further_where_single_rows_do() -> None:
    values = [0.1 * n for n in range(19)] + [9.0]
    sample = Resampler("s").reaching({"": values})
    interval = sample.interval("")
    mirrored = Resampler("s").reaching({"": [-value for value in values]}).interval("")
    assert interval.low is not None and interval.high is not None and interval.value is not None  # noqa: PT018
    assert interval.high - interval.value > 1.5 * (interval.value - interval.low)
    assert mirrored.low is not None and mirrored.value is not None  # noqa: PT018
    assert mirrored.value - mirrored.low > 1.3 * (interval.value - interval.low)
    without = Sample(sample.value, sample.draws).interval("")
    assert interval.high > without.high  # type: ignore[operator]


def test_without_spread_or_freedom_there_is_nothing_to_reach() -> None:
    resampler = Resampler("n")
    assert resampler.reaching({"": [0.4]}).interval("").low is None
    assert resampler.reaching({"": [None, None]}).interval("").value is None
    same = resampler.reaching({"": [0.4] * 9}).interval("")
    assert (same.low, same.value, same.high) == pytest.approx((0.4, 0.4, 0.4))


def test_differences_join_reaches_by_their_correlation() -> None:
    draw = np.random.default_rng(3)
    rows = draw.exponential(1.0, (2, 30))
    resampler = Resampler("d", FEW)
    arms = [resampler.reaching({"x": list(rows[0])}), resampler.reaching({"x": list(rows[0] / 2)})]
    other = resampler.reaching({"y": list(rows[1])})
    for left, right in ((arms[0], arms[1]), (arms[0], other)):
        ours = difference(left, right)
        alike = float(np.corrcoef(left.draws, right.draws)[0, 1])
        for number in range(FEW):
            near = left.draws[number] - left.below[number]
            far = right.above[number] - right.draws[number]
            reach = math.sqrt(max(0.0, near**2 + far**2 - 2 * alike * near * far))
            middle = left.draws[number] - right.draws[number]
            assert ours.draws[number] == pytest.approx(middle)
            assert ours.below[number] == pytest.approx(middle - reach)
    # Rows that arms share come together; those of other sets need not.
    paired, ends = difference(*arms).interval(""), (arms[0] - arms[1]).interval("")
    assert paired.low > ends.low  # type: ignore[operator]
    assert difference(arms[0], other).interval("").low > (arms[0] - other).interval("").low  # type: ignore[operator]


def quarter(sample: Sample) -> np.ndarray:
    """Return the draws that rises had before: those of Student's t, moved by a quarter skewness."""
    centred = sample.draws - sample.value
    third = ((centred - centred.mean()) ** 3).mean()
    moved: np.ndarray = sample.value + centred + third / centred.std() ** 2 / 4
    return moved


def ends(draws: np.ndarray) -> Sequence[float]:
    count = len(draws)
    rank = round(0.025 * (count + 1))
    ordered = np.sort(draws)
    return ordered[rank - 1], ordered[count - rank]


def test_lower_bounds_of_differences_from_skewed_sides_miss_seldom() -> None:
    # Boundary of a rule: log-normal rises of 26 rows, the side set spreads three times as much.
    draw = np.random.default_rng(11)
    resampler = Resampler("c", resamples=399)
    runs, counts = 1000, {"now": 0, "before": 0}
    for _ in range(runs):
        harm, side = np.exp(0.5 * draw.standard_normal((2, 26)) - 0.125)
        rows = {"h": list(harm), "s": list(1 + 3 * (side - 1))}
        now = [resampler.reaching({name: scores}) for name, scores in rows.items()]
        before = [resampler.spread({name: scores}) for name, scores in rows.items()]
        counts["now"] += difference(*now).interval("").low > 0  # type: ignore[operator]
        counts["before"] += ends(quarter(before[0]) - quarter(before[1]))[0] > 0
    assert counts["now"] / runs <= 0.025
    assert counts["before"] / runs > 0.03


def test_the_least_of_equal_statistics_is_bounded_from_above() -> None:
    draw = np.random.default_rng(5)
    resampler = Resampler("l", resamples=399)
    runs, misses = 300, {"joint": 0, "draws": 0}
    for _ in range(runs):
        samples = [resampler.reaching({name: list(draw.standard_normal(30))}) for name in "abcde"]
        joint = least("", samples)
        naive = ends(np.min([sample.above for sample in samples], axis=0))[1]
        misses["joint"] += joint.high < 0  # type: ignore[operator]
        misses["draws"] += naive < 0
        lows = [sample.interval("").low for sample in samples]
        assert joint.low == min(lows)  # type: ignore[type-var]
        assert joint.low <= joint.value <= joint.high  # type: ignore[operator]
    assert misses["joint"] / runs <= 0.04
    assert misses["draws"] / runs > 0.08


def test_the_least_of_one_that_is_clearly_least_has_its_own_bounds() -> None:
    resampler = Resampler("o", FEW)
    near = resampler.reaching({"a": [0.1 * (n % 7) for n in range(30)]})
    far = resampler.reaching({"b": [5 + 0.1 * (n % 7) for n in range(30)]})
    usual = near.interval("")
    assert least("", [far, near]) == usual
    assert least("", [near, resampler.reaching({"c": [None]})]).value is None
    assert least("", [near, resampler.reaching({"c": [3.0]})]).high is None
