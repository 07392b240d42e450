"""A small run of the simulation of intervals, and its score method against a plain search."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import optimize

PATH = Path(__file__).parents[2] / "benchmarks" / "intervals.py"


def load() -> Any:
    spec = importlib.util.spec_from_file_location("intervals", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["intervals"] = module
    spec.loader.exec_module(module)
    return module


intervals = load()


@pytest.mark.parametrize(
    ("prompts", "drop", "graded"),
    [(30, 0.8, False), (30, 0.95, False), (60, 0.9, True), (60, 0.98, False)],
)
def test_bounds_miss_the_truth_no_more_often_than_they_say(
    prompts: int, drop: float, graded: bool
) -> None:
    methods = {"resect": intervals.ours}
    found = intervals.drop_cell(prompts, drop, 300, graded=graded, methods=methods)["resect"]
    assert found.low <= 0.04
    assert found.high <= 0.04
    assert found.coverage >= 0.93


def test_the_simulation_sees_a_method_that_misses() -> None:
    methods = {"percentile": intervals.percentile}
    for prompts, drop in ((30, 0.9), (60, 0.98)):
        found = intervals.drop_cell(prompts, drop, 1000, graded=False, methods=methods)
        assert found["percentile"].low > 0.05


def test_prompts_that_say_the_same_are_no_more_than_one() -> None:
    found = intervals.group_cell(40, 0.8, 300)
    assert found["apart"].coverage < 0.9
    assert found["together"].coverage >= 0.93


def test_paired_differences_hold_with_few_prompts() -> None:
    found = intervals.pair_cell(30, 0.05, 0.02, 300)["resect"]
    assert found.low <= 0.04
    assert found.high <= 0.04


def test_more_broken_answers_never_pass_more_easily() -> None:
    sizes = range(31, 35)
    assert intervals.reversals(intervals.ours, sizes) == 0
    assert intervals.reversals(intervals.percentile, sizes) == 4


def test_more_models_make_a_true_claim_easier_and_a_false_one_no_easier() -> None:
    few, five, many = (intervals.support(0.90, 0.05, count, 150) for count in (3, 5, 10))
    assert few.recipe is None
    assert few.models < five.models <= many.models
    assert five.recipe < many.recipe
    # At the boundary 2.5 % are meant, that is 4 of 150; 10 are beyond chance.
    assert intervals.support(0.80, 0.10, 5, 150).recipe <= 9 / 150


def test_the_score_interval_is_where_the_score_is_z() -> None:
    # Twelve pairs are lost, three gained, of 50; the likelihood is searched, not solved.
    lost, gained, size = 12, 3, 50
    before = np.array([1.0] * (20 + lost) + [0.0] * 18)
    after = np.array([1.0] * 20 + [0.0] * lost + [1.0] * gained + [0.0] * (18 - gained))
    data = intervals.Data(before[None, :, None], after[None, :, None])
    found = intervals.tango(data, "")

    def score(difference: float) -> float:
        def unlikely(gain: float) -> float:
            chances = np.array([gain + difference, gain, 1 - 2 * gain - difference])
            return -float(np.array([lost, gained, size - lost - gained]) @ np.log(chances))

        least, most = max(0.0, -difference) + 1e-9, (1 - difference) / 2 - 1e-9
        gain = optimize.minimize_scalar(unlikely, bounds=(least, most), method="bounded").x
        variance = size * (2 * gain + difference - difference**2)
        return float((lost - gained - size * difference) / np.sqrt(variance))

    assert score(float(found.low[0])) == pytest.approx(intervals.Z, abs=1e-3)
    assert score(float(found.high[0])) == pytest.approx(-intervals.Z, abs=1e-3)
