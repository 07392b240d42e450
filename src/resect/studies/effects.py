"""Rates and drops of the arms of a study."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from resect.errors import InputError
from resect.stats import Sample, average, best_within, relative_drop
from resect.studies.cells import Cell, Cut
from resect.studies.design import Design
from resect.studies.measurements import Measurements, Row


class Arm(NamedTuple):
    """A name for tables, and what is cut; None for the intact model."""

    label: str
    cut: Cut | None


class SeedGroup(NamedTuple):
    """Seeds that a row of a table stands for.

    Attributes:
        seed: As in the column `seed`; None for all seeds together.
        seeds: The seeds.
    """

    seed: int | None
    seeds: tuple[int, ...]


def utility_probe(design: Design) -> str:
    """Return the probe behind utility: exact-match tasks, else the likelihood of held-out text.

    Raises:
        InputError: Neither is configured.
    """
    for name in ("utility", "likelihood"):
        if name in design.evaluation.probes:
            return name
    raise InputError(
        "no measure of utility is configured",
        allowed="evaluation.probes with utility (exact-match tasks) or likelihood (any text)",
        fix="name a set for one of them under evaluation.probes",
    )


def effect_probes(design: Design) -> tuple[str, ...]:
    """Return the probes of a study that weighs harm against utility."""
    return ("generation", utility_probe(design))


def cells_of(design: Design, role: str, cut: Cut | None, probes: tuple[str, ...]) -> list[Cell]:
    """Return one arm's cells, one a seed."""
    return [Cell(role, seed, cut, probes) for seed in design.seeds]


def intact_cells(design: Design) -> list[Cell]:
    """Return the cells of the intact model under study, one a seed."""
    return cells_of(design, design.subject, None, ())


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


def curve_rows(measured: Measurements, role: str, arms: Iterable[Arm]) -> list[Row]:
    """Return the rows of a curve: each arm over all seeds (seed None) and for each seed."""
    return [
        _curve_row(measured, role, arm, group)
        for arm in arms
        for group in seed_groups(measured.config)
    ]


class BestCut(NamedTuple):
    """The best cut within a utility budget, as means over seeds.

    Attributes:
        harm_drop: Relative drop of harm.
        q: Fraction of the ranking that was cut; 0 where no cut was the best.
        utility_drop: Relative drop of utility.
    """

    harm_drop: Sample
    q: float
    utility_drop: float


def best_cuts(
    measured: Measurements,
    role: str,
    cuts: Sequence[Cut],
    seeds: Sequence[int],
    budget: float,
) -> BestCut:
    """Return what the best cuts within a utility budget do, and their q and drop of utility.

    Each seed is a model of its own and takes a cut of its own: the q at which utility breaks down
    moves from model to model, so that one q for all would measure how far the models agree in it.
    What is returned are means over seeds.
    """
    import numpy as np

    drops, fractions, costs = [], [], []
    for seed in seeds:
        effects = [effect(measured, role, cut, (seed,)) for cut in cuts]
        best = best_within(
            budget,
            [result.harm_drop for result in effects],
            [result.utility_drop for result in effects],
        )
        drops.append(best)
        chosen = [
            (cut.q, result.utility_drop.value)
            for cut, result in zip(cuts, effects, strict=True)
            if result.utility_drop.value <= budget and result.harm_drop.value == best.value
        ]
        q, cost = chosen[0] if chosen else (0.0, 0.0)
        fractions.append(q)
        costs.append(cost)
    together = measured.resampler("generation").together
    drop = average(drops, together=together)
    return BestCut(drop, float(np.mean(fractions)), float(np.mean(costs)))


def seed_groups(design: Design) -> list[SeedGroup]:
    """Return all seeds together (named None), and where there are several each of them alone."""
    groups = [SeedGroup(None, design.seeds)]
    if len(design.seeds) > 1:
        groups += [SeedGroup(seed, (seed,)) for seed in design.seeds]
    return groups


def _curve_row(measured: Measurements, role: str, arm: Arm, group: SeedGroup) -> Row:
    import numpy as np

    result = effect(measured, role, arm.cut, group.seeds)
    cells = [Cell(role, seed, arm.cut, ()) for seed in group.seeds]
    q = 0.0 if arm.cut is None else arm.cut.q
    row: Row = {"seed": group.seed, "arm": arm.label, "q": q}
    row["removed_fraction"] = float(
        np.mean([measured.rows(cell)[0]["removed_fraction"] for cell in cells])
    )
    row |= columns("harm", result.harm) | columns("harm_drop", result.harm_drop)
    row |= columns("utility", result.utility) | columns("utility_drop", result.utility_drop)
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


def mean_of(samples: Sequence[Sample], *, together: bool = False) -> Sample:
    """Return the mean of samples, draw by draw; NaN values are left out.

    Args:
        samples: The samples, one at least.
        together: Whether any two of them are of the same prompts.
    """
    measurable = [sample for sample in samples if not math.isnan(sample.value)]
    if not measurable:
        return samples[0]
    return average(measurable, together=together)
