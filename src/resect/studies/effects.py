"""Rates and drops of the arms of a study."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from resect.errors import InputError
from resect.stats import Sample, average, best_within, relative_drop
from resect.studies.cells import Cell, Cut
from resect.studies.design import RunConfig
from resect.studies.measurements import Measurements, Row


def utility_probe(config: RunConfig) -> str:
    """Return the probe behind utility: exact-match tasks, else the likelihood of held-out text.

    Raises:
        InputError: Neither is configured.
    """
    for name in ("utility", "likelihood"):
        if name in config.evaluation.probes:
            return name
    raise InputError(
        "no measure of utility is configured",
        allowed="evaluation.probes with utility (exact-match tasks) or likelihood (any text)",
        fix="name a set for one of them under evaluation.probes",
    )


def effect_probes(config: RunConfig) -> tuple[str, ...]:
    """Return the probes of a study that weighs harm against utility."""
    return ("generation", utility_probe(config))


def cells_of(config: RunConfig, role: str, cut: Cut | None, probes: tuple[str, ...]) -> list[Cell]:
    """Return one arm's cells, one a seed."""
    return [Cell(role, seed, cut, probes) for seed in config.seeds]


@dataclass(frozen=True)
class Effect:
    """What one cut did, against the intact model."""

    harm: Sample
    utility: Sample
    harm_drop: Sample
    utility_drop: Sample


def effect(measured: Measurements, role: str, cut: Cut | None, seeds: Sequence[int]) -> Effect:
    """Return rates and relative drops of one arm over some seeds."""
    utility = utility_probe(measured.config)
    probes = effect_probes(measured.config)
    intact = [Cell(role, seed, None, probes) for seed in seeds]
    cells = [Cell(role, seed, cut, probes) for seed in seeds]
    before = measured.rate(intact, "generation"), measured.rate(intact, utility)
    after = measured.rate(cells, "generation"), measured.rate(cells, utility)
    return Effect(*after, relative_drop(before[0], after[0]), relative_drop(before[1], after[1]))


def curve_rows(
    measured: Measurements, role: str, arms: Iterable[tuple[str, Cut | None]]
) -> list[Row]:
    """Return the rows of a curve: each arm over all seeds (seed None) and for each seed."""
    return [
        _curve_row(measured, role, (label, cut), group)
        for label, cut in arms
        for group in seed_groups(measured.config)
    ]


def best_cuts(
    measured: Measurements,
    role: str,
    cuts: Sequence[Cut],
    seeds: Sequence[int],
    budget: float,
) -> tuple[Sample, float, float]:
    """Return what the best cuts within a utility budget do, and their q and drop of utility.

    Each seed is a model of its own and takes a cut of its own: the q at which utility breaks down
    moves from model to model, so that one q for all would measure how far the models agree in it.
    What is returned are means over seeds.
    """
    drops, found = [], []
    for seed in seeds:
        effects = [effect(measured, role, cut, (seed,)) for cut in cuts]
        best = best_within(
            budget, [one.harm_drop for one in effects], [one.utility_drop for one in effects]
        )
        drops.append(best)
        places = [
            (cut.q, one.utility_drop.value)
            for cut, one in zip(cuts, effects, strict=True)
            if one.utility_drop.value <= budget and one.harm_drop.value == best.value
        ]
        found.append(places[0] if places else (0.0, 0.0))
    q, cost = (float(np.mean(column)) for column in zip(*found, strict=True))
    together = measured.resampler("generation").together
    return average(drops, together=together), q, cost


def seed_groups(config: RunConfig) -> list[tuple[int | None, tuple[int, ...]]]:
    """Return all seeds together (named None), and where there are several each of them alone."""
    groups: list[tuple[int | None, tuple[int, ...]]] = [(None, config.seeds)]
    if len(config.seeds) > 1:
        groups += [(seed, (seed,)) for seed in config.seeds]
    return groups


def _curve_row(
    measured: Measurements,
    role: str,
    arm: tuple[str, Cut | None],
    group: tuple[int | None, tuple[int, ...]],
) -> Row:
    label, cut = arm
    seed, seeds = group
    found = effect(measured, role, cut, seeds)
    cells = [Cell(role, one, cut, ()) for one in seeds]
    row: Row = {"seed": seed, "arm": label, "q": 0.0 if cut is None else cut.q}
    row["removed_fraction"] = float(
        np.mean([measured.rows(cell)[0]["removed_fraction"] for cell in cells])
    )
    row |= columns("harm", found.harm) | columns("harm_drop", found.harm_drop)
    row |= columns("utility", found.utility) | columns("utility_drop", found.utility_drop)
    row["reply_nll"] = measured.mean(cells, "generation", "nll")
    row["repetition"] = measured.mean(cells, "generation", "repetition")
    row["preserve_nll"] = measured.mean(cells, "likelihood", "nll")
    row["preserve_kl"] = measured.mean(cells, "likelihood", "kl")
    row["n"] = measured.prompts(cells, "generation")
    return row


def columns(name: str, sample: Sample) -> Row:
    """Return a value and its bounds as three columns."""
    interval = sample.interval(name)
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def mean_of(samples: Sequence[Sample]) -> Sample:
    """Return the mean of samples, draw by draw; NaN values are left out."""
    known = [sample for sample in samples if not math.isnan(sample.value)]
    if not known:
        return samples[0]
    return Sample(
        float(np.mean([sample.value for sample in known])),
        np.mean(np.stack([sample.draws for sample in known]), axis=0),
    )
