"""The whole benchmark: plants by seeds, tables over seeds, a figure and a page.

Cells are independent and may run in several processes, each with one thread, so that numbers do not
depend on how many there are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from resect import files
from resect.errors import InputError, unknown_name
from resect.organism.training import threads
from resect.planted.figure import draw
from resect.planted.measures import over_seeds
from resect.planted.page import page
from resect.planted.plant import PlantedRecipe, plant
from resect.planted.trial import TRUTH, CellResult, Trial, run_cell
from resect.planted.variants import SOURCE, variants
from resect.records import Interval

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
    """What the benchmark found: a row a variant, and the rows behind them."""

    summary: list[dict[str, Any]]
    membership: list[dict[str, Any]]
    cuts: list[dict[str, Any]]


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
            `leaderboard.md`. Until all is done, finished cells lie in `OUTPUT.parts`, so that the
            same call goes on where it was stopped.
        on_progress: Called with cells done and cells in all.
        root: Folder of planted models; None for the cache.
        recipes: Plants by name; None for `PLANTS`.

    Raises:
        InputError: An unknown method or plant, a number out of range, a full output folder.
    """
    files.refuse_full_folder(output)
    cells = plan(request, PLANTS if recipes is None else recipes)
    parts = output.with_name(f"{output.name}.parts")
    jobs = request.jobs or min(4, os.cpu_count() or 1)
    results = _run(cells, jobs, (root, parts), on_progress)
    membership = [row for result in results for row in result.membership]
    cuts = [row for result in results for row in result.cuts]
    outcome = Outcome(summarise(membership), membership, cuts)
    facts = files.provenance() | {"request": asdict(request), "cells": [asdict(c) for c in cells]}
    with files.atomic_folder(output) as folder:
        files.write_parquet(folder / "records" / "membership.parquet", membership)
        files.write_parquet(folder / "records" / "cuts.parquet", cuts)
        by_plant = {name: _rows_of(membership, name) for name in _plants(membership)}
        tables = {"summary": outcome.summary, "by_plant": by_plant}
        files.write_json(folder / "results.json", tables | {"provenance": facts})
        files.write_text(folder / "leaderboard.md", page(outcome.summary, by_plant))
        files.write_text(folder / "localisation.svg", draw(outcome.summary, cuts))
    files.remove_folder(parts)
    return outcome


def plan(request: Request, recipes: dict[str, PlantedRecipe]) -> list[Trial]:
    """Return the cells, those of one seed together since they share a benign model.

    Raises:
        InputError: An unknown method or plant, or a number out of range.
    """
    if request.seeds < 1 or request.jobs < 0:
        raise InputError(
            "seeds and jobs must be positive", got=f"{request.seeds} and {request.jobs}"
        )
    known = {**recipes, NO_PLANT: PlantedRecipe(taught=False, start="kept")}
    for name in request.plants:
        if name not in known:
            raise unknown_name("plant", name, list(known))
    names = request.plants or (tuple(recipes)[:1] if request.quick else tuple(known))
    compared = variants(request.methods or None)
    if request.quick:
        compared = tuple(one for one in compared if one.scope == "tensor")
    seeds = 1 if request.quick else request.seeds
    return [
        Trial(name, known[name], seed, compared, 8 if request.quick else 4)
        for seed in range(seeds)
        for name in names
    ]


# Where plants are (None for the cache), and where finished cells are put.
Places = tuple[Path | None, Path]


def _run(
    cells: Sequence[Trial], jobs: int, places: Places, on_progress: Progress | None
) -> list[CellResult]:
    report = on_progress or (lambda _done, _total: None)
    if jobs == 1 or len(cells) == 1:
        found = []
        for at, cell in enumerate(cells):
            report(at, len(cells))
            found.append(_one(cell, places))
        return found
    # Fork would copy locked thread pools of torch.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        # The benign models first: cells of one seed would each train it.
        firsts = {(cell.seed, cell.recipe.benign.hash): cell for cell in reversed(cells)}
        list(pool.map(_plant, [(cell, places[0]) for cell in firsts.values()]))
        futures = [pool.submit(_one, cell, places) for cell in cells]
        for done, future in enumerate(as_completed(futures)):
            future.result()
            report(done + 1, len(cells))
        return [future.result() for future in futures]


def _plant(place: tuple[Trial, Path | None]) -> None:
    cell, root = place
    plant(cell.recipe, seed=cell.seed, root=root)


def _one(cell: Trial, places: Places) -> CellResult:
    root, parts = places
    path = parts / f"{files.hash_value([asdict(cell), files.provenance()['resect_version']])}.json"
    if path.exists():
        return CellResult(**files.read_json(path))
    with threads(1):
        found = run_cell(cell, root)
    files.write_json(path, asdict(found))
    return found


def _plants(rows: Iterable[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["plant"] for row in rows))


def _rows_of(rows: Sequence[dict[str, Any]], plant_name: str) -> list[dict[str, Any]]:
    return summarise([row for row in rows if row["plant"] == plant_name], alone=True)


def summarise(rows: Sequence[dict[str, Any]], *, alone: bool = False) -> list[dict[str, Any]]:
    """Return a row a variant: means over plants within a seed, and Student's interval over seeds.

    Differences from the source's method are paired by plant and seed before they are averaged.

    Args:
        rows: Membership rows of all cells.
        alone: The rows are of one plant, which may be the model without a plant.
    """
    rows = [row for row in rows if alone or row["plant"] != NO_PLANT]
    source = {(row["plant"], row["seed"]): row for row in rows if row["variant"] == SOURCE.name}
    found = []
    for name in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == name]
        line: dict[str, Any] = {"variant": name, "cells": len(own)}
        for measure in MEASURES:
            line |= _columns(measure, [(row["seed"], row.get(measure)) for row in own])
        line |= _columns("base_rate", [(row["seed"], row.get("base_rate")) for row in own])
        pairs = [(row, source.get((row["plant"], row["seed"]))) for row in own]
        line |= _columns(
            "gain",
            [
                (row["seed"], row["selectivity"] - other["selectivity"])
                for row, other in pairs
                if other is not None and "selectivity" in row and "selectivity" in other
            ],
        )
        found.append(line)
    return sorted(found, key=lambda line: (line["variant"] == TRUTH, -(line["selectivity"] or 0)))


def _columns(name: str, values: Sequence[tuple[int, float | None]]) -> dict[str, float | None]:
    by_seed: dict[int, list[float]] = {}
    for seed, value in values:
        if value is not None:
            by_seed.setdefault(seed, []).append(value)
    interval: Interval = over_seeds(name, [sum(v) / len(v) for v in by_seed.values()])
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
