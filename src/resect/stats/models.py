"""Two statements about models: of these models, and of the recipe that they come from.

Of these models: the mean over the models that were measured. Other prompts would move it, other
models are not meant. More models are more prompts, and the interval shrinks.

Of this recipe: the mean over all models that the recipe would give (other seeds). With k models of
values v, their standard deviation s and the bounds L and U of the first statement, MOVER (Zou and
Donner 2008) joins what other models and what other prompts would move:

    low = mean - sqrt((t s / √k)² + (mean - L)²),   t of k - 1 degrees of freedom; high likewise

s holds the noise of each model's own prompts already, so that this counts twice. That is meant: the
statement is never stronger than the first one, prompts that all models share are in it, and equal
models do not make it certain. Student's t alone supports a false claim in 3 % instead of 2.5 %,
because drops are skewed towards 0 (`benchmarks/intervals.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from resect.records import Interval
from resect.stats.counts import LEVEL
from resect.stats.sample import Sample, average

# Of three models not even a unanimous vote has p < 0.125; of five it has 1 / 32.
LEAST_MODELS = 5


@dataclass(frozen=True)
class Statements:
    """What is said of some models.

    Attributes:
        models: The mean over these very models, with its interval over prompts.
        recipe: The mean over all models of their recipe; None below `LEAST_MODELS`.
    """

    models: Interval
    recipe: Interval | None


def of_models(
    name: str, samples: Sequence[Sample], level: float = LEVEL, *, together: bool = False
) -> Statements:
    """Return both statements about the mean of a statistic.

    Args:
        name: Name of the intervals.
        samples: The statistic of each model that could be measured.
        level: Level of the intervals.
        together: Whether the models were asked the same prompts.
    """
    measured = [sample for sample in samples if not math.isnan(sample.value)]
    if not measured:
        return Statements(Interval(name, None), None)
    models = average(measured, together=together).interval(name, level)
    return Statements(models, of_recipe([sample.value for sample in measured], models, level))


def of_recipe(
    values: Sequence[float | None], models: Interval, level: float = LEVEL
) -> Interval | None:
    """Return the mean over all models of a recipe, None below `LEAST_MODELS`.

    Args:
        values: The statistic of each model; None and NaN are left out.
        models: The statement about these models together, at the same level.
        level: Level of the interval.
    """
    import numpy as np
    from scipy import stats as scipy_stats  # a second to load

    measured = [value for value in values if value is not None and not math.isnan(value)]
    if len(measured) < LEAST_MODELS or models.value is None:
        return None
    if models.low is None or models.high is None:
        return None
    array = np.array(measured)
    mean, count = float(array.mean()), len(array)
    quantile = float(scipy_stats.t.isf((1 - level) / 2, count - 1))
    other_models = quantile * float(array.std(ddof=1)) / math.sqrt(count)
    return Interval(
        models.name,
        mean,
        mean - math.hypot(other_models, models.value - models.low),
        mean + math.hypot(other_models, models.high - models.value),
    )
