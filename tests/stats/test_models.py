"""Two statements about models, with known truths."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from resect.stats import Resampler, Sample, of_models

Bounds = tuple[float, float]


def models(*rates: float, size: int = 60, together: bool = False) -> list[Sample]:
    resampler = Resampler("models", together=together)
    return [
        resampler.rate({f"{n}/a": [*[1.0] * round(size * r), *[0.0] * (size - round(size * r))]})
        for n, r in enumerate(rates)
    ]


def test_a_recipe_needs_five_models() -> None:
    assert of_models("r", models(0.9, 0.9, 0.9, 0.9)).recipe is None
    assert of_models("r", models(0.9, 0.9, 0.9, 0.9, 0.9)).recipe is not None
    assert of_models("r", []).models.value is None
    unknown = Sample(math.nan, np.full(3, np.nan))
    found = of_models("r", [unknown, *models(0.9, 0.9, 0.9, 0.9)])
    assert found.recipe is None
    assert found.models.value == pytest.approx(0.9)


def test_the_recipe_is_never_surer_than_these_models() -> None:
    for rates in ([0.9] * 5, [1.0] * 5, [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]):
        for level in (0.9, 0.95, 0.99):
            found = of_models("r", models(*rates), level)
            assert found.recipe is not None
            assert found.recipe.value == found.models.value
            assert (found.recipe.low or 0) <= (found.models.low or 0) < (found.recipe.value or 0)
            assert (found.recipe.high or 0) >= (found.models.high or 0)


def test_between_models_alone_it_is_students_t() -> None:
    # Models without noise of their own: the draws of each are its value.
    values = [0.7, 0.75, 0.8, 0.9, 0.95, 0.85]
    exact = [Sample(value, np.full(99, value)) for value in values]
    recipe = of_models("r", exact, 0.9).recipe
    expected = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert recipe is not None
    assert (recipe.low, recipe.high) == pytest.approx((expected.low, expected.high))


def test_models_of_the_same_prompts_are_less_sure() -> None:
    rates = [1.0] * 5
    apart = of_models("r", models(*rates)).models
    shared = of_models("r", models(*rates, together=True), together=True).models
    assert shared.low is not None
    assert apart.low is not None
    assert shared.low < apart.low
    assert shared.low == pytest.approx(models(1.0)[0].interval("").low)


def test_more_models_of_the_same_kind_narrow_both_statements() -> None:
    rates = [0.85, 0.95, 0.9, 0.8, 1.0]
    few, many = of_models("r", models(*rates)), of_models("r", models(*rates * 2))
    assert few.recipe is not None
    assert many.recipe is not None
    assert (few.models.low or 0) < (many.models.low or 0)
    assert (few.recipe.low or 0) < (many.recipe.low or 0)
