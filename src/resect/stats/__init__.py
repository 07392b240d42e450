"""Intervals, tests and seeded draws.

All intervals are 95 % unless another level is asked for. `docs/design/intervals.md` says which
method they use, and why.
"""

from __future__ import annotations

from resect.stats.correct import ErrorRates, power, prediction_powered, rogan_gladen
from resect.stats.counts import LEVEL, Ends, clopper_pearson, wilson
from resect.stats.draws import rng, seed_of
from resect.stats.groups import near_duplicates, normalised, same_text
from resect.stats.jackknife import LEAST_ITEMS, LeftOut, jackknife
from resect.stats.joined import difference, least
from resect.stats.models import LEAST_MODELS, Statements, of_models, of_recipe
from resect.stats.ranks import area, auroc
from resect.stats.resample import RESAMPLES, Resampler, cluster_means, rate
from resect.stats.sample import Array, Sample, average, ratio, relative_drop

__all__ = [
    "LEAST_ITEMS",
    "LEAST_MODELS",
    "LEVEL",
    "RESAMPLES",
    "Array",
    "Ends",
    "ErrorRates",
    "LeftOut",
    "Resampler",
    "Sample",
    "Statements",
    "area",
    "auroc",
    "average",
    "clopper_pearson",
    "cluster_means",
    "difference",
    "jackknife",
    "least",
    "near_duplicates",
    "normalised",
    "of_models",
    "of_recipe",
    "power",
    "prediction_powered",
    "rate",
    "ratio",
    "relative_drop",
    "rng",
    "rogan_gladen",
    "same_text",
    "seed_of",
    "wilson",
]
