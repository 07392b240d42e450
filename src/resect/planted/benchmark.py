"""The whole benchmark: plants by seeds, tables over seeds, a figure and a page.

Trials are independent and may run in several processes, each with one thread, so that no number
depends on how many processes there are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from resect import files
from resect.errors import InputError, unknown_name
from resect.organism.training import threads
from resect.planted.figure import draw
from resect.planted.measures import over_seeds
from resect.planted.page import page
from resect.planted.plant import PlantedRecipe, plant
from resect.planted.trial import TRUTH, Row, Trial, TrialResult, Value, number, run_trial
from resect.planted.variants import SOURCE, variants

# What each plant adds to the one before it is said in docs/localisation.md.
PLANTS: dict[str, PlantedRecipe] = {
    "random": PlantedRecipe(),
    "layer": PlantedRecipe(shape="layer"),
    "neurons": PlantedRecipe(shape="neurons", share=0.015),
    "low rank": PlantedRecipe(shape="low_rank", share=0.03, rate=0.01),
    "clamped": PlantedRecipe(share=0.03, clamp=True, rate=0.01),
    "kept": PlantedRecipe(start="kept"),
    "separate": PlantedRecipe(categories="separate", share=0.02, steps=200),
}
NO_PLANT = "none"
MEASURES = (
    "average_precision", "precision", "precision_tenth", "decoy_share", "decoy_share_tenth", "auc",
    "recall@0.001", "recall@0.003", "recall@0.01", "recall@0.03", "recall@0.1",
    "hazard_area", "hazard_whole_area", "craft_area", "utility_area",
    "harm_drop", "collateral", "selectivity",
)  # fmt: skip

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Request:
    """What `resect bench localise` is asked for.

    Attributes:
        methods: Score methods to compare; empty for all.
        plants: Names in `PLANTS`; empty for all, or for `--quick` the first.
        seeds: Number of seeds, from 0.
        quick: One plant, one seed.
        jobs: Processes; 0 for one a core, at most 4.
    """

    methods: tuple[str, ...] = ()
    plants: tuple[str, ...] = ()
    seeds: int = 3
    quick: bool = False
    jobs: int = 0


@dataclass(frozen=True)
class Outcome:
    """What was measured: a row for each variant, and the rows behind them."""

    summary: list[dict[str, Value]]
    membership: list[dict[str, Value]]
    cuts: list[dict[str, Value]]


def localise(
    request: Request,
    output: Path,
    on_progress: Progress | None = None,
    *,
    root: Path | None = None,
    recipes: dict[str, PlantedRecipe] | None = None,
) -> Outcome:
    """Run the benchmark and write records, results, figure and leaderboard.

    Args:
        request: What to compare.
        output: New folder; gets `records/*.parquet`, `results.json`, `localisation.svg` and
            `leaderboard.md`. Until all is done, finished trials lie in `OUTPUT.parts`, so that the
            same call goes on where it was stopped.
        on_progress: Called with trials done and trials in all.
        root: Folder of planted models; None for the cache.
        recipes: Plants by name; None for `PLANTS`.

    Raises:
        InputError: An unknown method or plant, a number out of range, a full output folder.
    """
    files.refuse_full_folder(output)
    trials = plan(request, PLANTS if recipes is None else recipes)
    folders = Folders(root, output.with_name(f"{output.name}.parts"))
    jobs = request.jobs or min(4, os.cpu_count() or 1)
    results = _run(trials, jobs, folders, on_progress)
    membership = [row for result in results for row in result.membership]
    cuts = [row for result in results for row in result.cuts]
    outcome = Outcome(summarise(membership), membership, cuts)
    provenance = files.provenance()
    provenance |= {"request": asdict(request), "cells": [asdict(trial) for trial in trials]}
    with files.atomic_folder(output) as folder:
        files.write_parquet(folder / "records" / "membership.parquet", membership)
        files.write_parquet(folder / "records" / "cuts.parquet", cuts)
        by_plant = {name: _rows_of(membership, name) for name in _plants(membership)}
        tables = {"summary": outcome.summary, "by_plant": by_plant}
        files.write_json(folder / "results.json", tables | {"provenance": provenance})
        files.write_text(folder / "leaderboard.md", page(outcome.summary, by_plant))
        files.write_text(folder / "localisation.svg", draw(outcome.summary, cuts))
    files.remove_folder(folders.parts)
    return outcome


def plan(request: Request, recipes: dict[str, PlantedRecipe]) -> list[Trial]:
    """Return the trials, those of one seed together since they share a benign model.

    Raises:
        InputError: An unknown method or plant, or a number out of range.
    """
    if request.seeds < 1 or request.jobs < 0:
        raise InputError(
            "seeds and jobs must be positive", got=f"{request.seeds} and {request.jobs}"
        )
    plants = {**recipes, NO_PLANT: PlantedRecipe(taught=False, start="kept")}
    for name in request.plants:
        if name not in plants:
            raise unknown_name("plant", name, list(plants))
    names = request.plants or (tuple(recipes)[:1] if request.quick else tuple(plants))
    compared = variants(request.methods or None)
    if request.quick:
        compared = tuple(variant for variant in compared if variant.scope == "tensor")
    seeds = 1 if request.quick else request.seeds
    return [
        Trial(name, plants[name], seed, compared, 8 if request.quick else 4)
        for seed in range(seeds)
        for name in names
    ]


class Folders(NamedTuple):
    """Where planted models are (None for the cache), and where finished trials are put."""

    plants: Path | None
    parts: Path


def _run(
    trials: Sequence[Trial], jobs: int, folders: Folders, on_progress: Progress | None
) -> list[TrialResult]:
    report = on_progress or (lambda _done, _total: None)
    if jobs == 1 or len(trials) == 1:
        results = []
        for done, trial in enumerate(trials):
            report(done, len(trials))
            results.append(_run_once(trial, folders))
        return results
    # Fork would copy locked thread pools of torch.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        # The benign models before all: trials of one seed would each train it.
        benign = {(trial.seed, trial.recipe.benign.hash): trial for trial in reversed(trials)}
        list(pool.map(partial(_plant, root=folders.plants), benign.values()))
        futures = [pool.submit(_run_once, trial, folders) for trial in trials]
        for done, future in enumerate(as_completed(futures)):
            future.result()
            report(done + 1, len(trials))
        return [future.result() for future in futures]


def _plant(trial: Trial, root: Path | None) -> None:
    plant(trial.recipe, seed=trial.seed, root=root)


def _run_once(trial: Trial, folders: Folders) -> TrialResult:
    """Run a trial, or read what it gave before the benchmark was stopped."""
    name = files.hash_value([asdict(trial), files.provenance()["resect_version"]])
    path = folders.parts / f"{name}.json"
    if path.exists():
        return TrialResult(**files.read_json(path))
    with threads(1):
        result = run_trial(trial, folders.plants)
    files.write_json(path, asdict(result))
    return result


def _plants(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(str(row["plant"]) for row in rows))


def _rows_of(rows: Sequence[Row], plant_name: str) -> list[dict[str, Value]]:
    return summarise([row for row in rows if row["plant"] == plant_name], alone=True)


def summarise(rows: Sequence[Row], *, alone: bool = False) -> list[dict[str, Value]]:
    """Return a row for each variant: means over plants of a seed, Student's interval over seeds.

    Differences from the source's method are paired by plant and seed before they are averaged.

    Args:
        rows: Membership rows of all trials.
        alone: The rows are of one plant, which may be the model without a plant.
    """
    rows = [row for row in rows if alone or row["plant"] != NO_PLANT]
    source = {_trial(row): row for row in rows if row["variant"] == SOURCE.name}
    lines: list[dict[str, Value]] = []
    for name in dict.fromkeys(row["variant"] for row in rows):
        same = [row for row in rows if row["variant"] == name]
        line: dict[str, Value] = {"variant": name, "cells": len(same)}
        for measure in (*MEASURES, "base_rate"):
            line |= _columns(measure, same, [number(row, measure) for row in same])
        gains = [_gain(row, source.get(_trial(row), {})) for row in same]
        lines.append(line | _columns("gain", same, gains))
    return sorted(
        lines, key=lambda line: (line["variant"] == TRUTH, -(number(line, "selectivity") or 0))
    )


def _trial(row: Row) -> str:
    """Return what the rows of one planted model share: plant and seed."""
    return f"{row['plant']}, {row['seed']}"


def _gain(row: Row, source: Row) -> float | None:
    """Return by how much a selectivity is above the source's, if both were measured."""
    value, reference = number(row, "selectivity"), number(source, "selectivity")
    return None if value is None or reference is None else value - reference


def _columns(name: str, rows: Sequence[Row], values: Sequence[float | None]) -> dict[str, Value]:
    """Return mean and bounds over the seeds of rows that have these values, each a column."""
    by_seed: dict[Value, list[float]] = {}
    for row, value in zip(rows, values, strict=True):
        if value is not None:
            by_seed.setdefault(row["seed"], []).append(value)
    interval = over_seeds(name, [sum(group) / len(group) for group in by_seed.values()])
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
