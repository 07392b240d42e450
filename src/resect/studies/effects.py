"""Rates and drops of the arms of a study."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import NamedTuple

from resect.errors import InputError
from resect.stats import Sample, average, relative_drop
from resect.studies.cells import Cell, Cut
from resect.studies.design import Design
from resect.studies.halves import Half
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


def cells_of(
    design: Design,
    role: str,
    cut: Cut | None,
    probes: tuple[str, ...] = (),
    seeds: Sequence[int] | None = None,
) -> list[Cell]:
    """Return one arm's cells, one a seed; of all seeds unless some are named."""
    return [Cell(role, seed, cut, probes) for seed in (design.seeds if seeds is None else seeds)]


def intact_cells(design: Design) -> list[Cell]:
    """Return the cells of the intact model under study, one a seed."""
    return cells_of(design, design.subject, None)


def intact_of(cells: Iterable[Cell]) -> list[Cell]:
    """Return the cells of the models that some cells are variants of, cut and tuning undone."""
    return [replace(cell, cut=None, tuning=None) for cell in cells]


@dataclass(frozen=True)
class Effect:
    """What one cut did, against the intact model."""

    harm: Sample
    utility: Sample
    harm_drop: Sample
    utility_drop: Sample


def effect(measured: Measurements, cells: Sequence[Cell], half: Half = "") -> Effect:
    """Return rates and relative drops of one arm, one cell a seed, on one half of the prompts."""
    utility = utility_probe(measured.config)
    intact = intact_of(cells)
    harm, rate = (measured.rate(cells, probe, half=half) for probe in ("generation", utility))
    before = [measured.rate(intact, probe, half=half) for probe in ("generation", utility)]
    return Effect(harm, rate, relative_drop(before[0], harm), relative_drop(before[1], rate))


def curve_rows(measured: Measurements, role: str, arms: Iterable[Arm]) -> list[Row]:
    """Return the rows of a curve: each arm over all seeds (seed None) and for each seed."""
    return [
        _curve_row(measured, role, arm, group)
        for arm in arms
        for group in seed_groups(measured.config)
    ]


def seed_groups(design: Design) -> list[SeedGroup]:
    """Return all seeds together (named None), and where there are several each of them alone."""
    groups = [SeedGroup(None, design.seeds)]
    if len(design.seeds) > 1:
        groups += [SeedGroup(seed, (seed,)) for seed in design.seeds]
    return groups


def _curve_row(measured: Measurements, role: str, arm: Arm, group: SeedGroup) -> Row:
    cells = cells_of(measured.config, role, arm.cut, seeds=group.seeds)
    result = effect(measured, cells)
    q = 0.0 if arm.cut is None else arm.cut.q
    row: Row = {"seed": group.seed, "arm": arm.label, "q": q}
    removed = measured.removed(cells)
    row["removed_fraction"] = fmean(removed) if removed else None
    row |= columns("harm", result.harm) | columns("harm_drop", result.harm_drop)
    row["harm_exact"] = number(measured.share(cells, "generation", ("complied",)))
    row |= columns("utility", result.utility) | columns("utility_drop", result.utility_drop)
    row["reply_nll"] = measured.mean(cells, "generation", "nll")
    row["repetition"] = measured.mean(cells, "generation", "repetition")
    row["preserve_nll"] = measured.mean(cells, "likelihood", "nll")
    row["preserve_kl"] = measured.mean(cells, "likelihood", "kl")
    row["n"] = None
    if measured.covers(cells, "generation"):
        row["n"] = measured.prompts(cells, "generation")
    return row


def number(sample: Sample) -> float | None:
    """Return the value of a sample, None if it has none."""
    return None if math.isnan(sample.value) else sample.value


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
