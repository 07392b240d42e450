"""A run whose grid is searched and not asked in full (`evaluation.search: halving`).

`docs/design/halving.md` has the rule, `resect.studies.halving` decides by it. Here it is asked: the
intact models and what other studies need as whole cells, the rest half by half. `search.json` says
why cuts were not asked everything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from resect.errors import InputError
from resect.files.origin import hash_value
from resect.files.reading import read_json
from resect.files.writing import plain, write_json
from resect.records import StudyResult
from resect.runs.config import RunConfig
from resect.runs.measure import Measuring
from resect.runs.workers import OnProgress, Workers, measure_cells
from resect.studies import STUDIES, Measurements, Study
from resect.studies.cells import Cell, Cut, is_done, needed_keep
from resect.studies.effects import columns, effect, utility_probe
from resect.studies.halves import Half
from resect.studies.halving import HARM, Searched, answer, on_grid, on_test
from resect.studies.measurements import Row
from resect.studies.partial import measurements_of

FILE = "search.json"
RULE = "halving"
HALVES: dict[Half, str] = {"selection": "selection half", "test": "test half"}


def is_searched(config: RunConfig) -> bool:
    """Return whether the grid of a run is searched."""
    return config.evaluation.search == RULE


def refuse_shared_search(config: RunConfig, dealt_by: str) -> None:
    """Refuse to deal the cells of a searched run to processes that know nothing of each other.

    Args:
        config: The run.
        dealt_by: What they are dealt by, for the message; "" if they are not.

    Raises:
        InputError: They are.
    """
    if dealt_by and is_searched(config):
        raise InputError(
            "a run whose grid is searched is asked by one command: what is asked next depends on "
            "what was answered",
            got=dealt_by,
            allowed="-j, which searches several models at a time, or `search: full` under "
            "evaluation",
            fix=f"leave {dealt_by} out",
        )


def choices_of(config: RunConfig, study: Study[Any]) -> list[Searched]:
    """Return the choices that a study of the run makes; none where it is asked in full."""
    section = config.section(study)
    return [] if study.searched is None or section is None else study.searched(config, section)


def _all_choices(config: RunConfig) -> list[Searched]:
    """Return the choices of all studies of a run, each grid once."""
    choices: dict[Searched, Searched] = {}
    for study in STUDIES.values():
        for choice in choices_of(config, study):
            # Two studies may choose from one grid and name other controls.
            bare = replace(choice, beside=(), compared=False)
            known_choice = choices.get(bare, bare)
            beside = (*known_choice.beside, *choice.beside)
            choices[bare] = replace(
                choice,
                beside=tuple(dict.fromkeys(beside)),
                compared=known_choice.compared or choice.compared,
            )
    return [choice for choice in choices.values() if choice.cuts]


def whole_cells(config: RunConfig, cells: Iterable[Cell]) -> list[Cell]:
    """Return the cells that are asked everything: intact models, and what is not searched.

    Args:
        config: The run.
        cells: Its merged cells.
    """
    needed = {
        replace(cell, probes=())
        for study in STUDIES.values()
        if study.searched is None and config.section(study) is not None
        for cell in study.plan(config, config.section(study))
    }
    return [cell for cell in cells if _is_intact(cell) or replace(cell, probes=()) in needed]


def _is_intact(cell: Cell) -> bool:
    return cell.cut is None and cell.tuning is None


def search_all(
    config: RunConfig,
    run: Path,
    cells: Sequence[Cell],
    on_progress: OnProgress,
    *,
    jobs: int = 1,
) -> None:
    """Ask what the studies of a run need, model by model, and write `search.json`.

    Args:
        config: The run.
        run: Its folder.
        cells: Its merged cells.
        on_progress: Called with what was asked and what is asked at most, in cells and their parts.
        jobs: Worker processes. Whole cells are dealt to all of them; the models are searched one by
            each, since the steps of one follow from each other.

    Raises:
        InputError: As `resect.runs.workers.measure_cells`.
    """
    keep = needed_keep(config, cells)
    choices = _all_choices(config)
    whole = whole_cells(config, cells)
    parts = _parts(config, choices, whole)
    total = len(whole) + len(parts)

    def tell(count: int, _of: int = 0) -> None:
        on_progress(min(count, total), total)

    measure_cells(config, run, whole, keep=keep, jobs=jobs, report=tell)
    # A model by each process, and no more threads for it than it has.
    searching = min(jobs, len(config.seeds))

    def tell_asked() -> None:
        tell(_asked_so_far(run, whole, parts))

    if searching <= 1:
        reasons = _search_alone(config, run, keep, tell_asked)
    else:
        reasons = Workers(config, run, keep, searching).each(
            _search_model,
            [(config, run, seed) for seed in config.seeds],
            tell_asked,
        )
    tell(total)
    rows = [
        {"seed": seed, "cut": plain(cut), "why": text}
        for seed, of_seed in zip(config.seeds, reasons, strict=True)
        for cut, text in of_seed.items()
    ]
    write_json(run / FILE, {"rule": RULE, "why": rows})


def _search_alone(
    config: RunConfig, run: Path, keep: float, tell: Callable[[], None]
) -> list[dict[Cut, str]]:
    measuring = Measuring(config, run, keep)
    return [_search_model(measuring, config, run, seed, tell) for seed in config.seeds]


def _search_model(
    measuring: Measuring,
    config: RunConfig,
    run: Path,
    seed: int,
    tell: Callable[[], None] = lambda: None,
) -> dict[Cut, str]:
    """Search the grids of one model; the body of a worker."""

    def ask(cells: list[Cell]) -> None:
        measuring.measure(_in_order(cells))
        tell()

    return answer(measurements_of(config, run), _all_choices(config), seed, ask)


def _in_order(cells: Iterable[Cell]) -> list[Cell]:
    """Return cells in the order of files, so that those of one model stand together."""
    return sorted(cells, key=lambda cell: (cell.seed, cell.role, cell.key))


def _asked_so_far(run: Path, whole: Sequence[Cell], parts: Iterable[Cell]) -> int:
    return len(whole) + sum(is_done(run, cell) for cell in parts)


def _parts(config: RunConfig, choices: Sequence[Searched], whole: Iterable[Cell]) -> list[Cell]:
    """Return what is asked at most beside whole cells."""
    apart = {replace(cell, probes=()) for cell in whole}
    parts: list[Cell] = []
    for seed in config.seeds:
        grids = (cell for choice in choices for cell in on_grid(config, choice, seed))
        parts += dict.fromkeys(grids)
        # Two choices from one ranking may be of two cuts.
        for choice in choices:
            parts += on_test(config, choice, seed, choice.cuts[-1])
    return [cell for cell in parts if replace(cell, probes=(), half="") not in apart]


@dataclass(frozen=True)
class Questions:
    """How many questions are asked, each of one prompt to one variant.

    Attributes:
        count: So many.
        grid: So many by the whole grid.
    """

    count: float
    grid: int

    def __str__(self) -> str:
        """Say it with the share."""
        share = f", {100 * self.count / self.grid:.3g} %" if self.grid else ""
        return f"{round(self.count):,} of {self.grid:,}{share}"


def most_questions(
    config: RunConfig, cells: Sequence[Cell], prompts: Callable[[str], int]
) -> Questions:
    """Return how many questions a run asks at most.

    Args:
        config: The run.
        cells: Its merged cells.
        prompts: From the name of a probe to the number of its prompts.
    """
    grid = sum(prompts(probe) for cell in cells for probe in cell.probes)
    if not is_searched(config):
        return Questions(grid, grid)
    whole = whole_cells(config, cells)
    count: float = sum(prompts(probe) for cell in whole for probe in cell.probes)
    # Halves differ by one prompt of a category at most.
    parts = _parts(config, _all_choices(config), whole)
    count += sum(prompts(cell.probes[0]) / 2 for cell in parts)
    return Questions(min(count, grid), grid)


def facts_of_search(config: RunConfig, run: Path, cells: Sequence[Cell]) -> dict[str, object]:
    """Return what `results.json` says of a search; nothing where the whole grid was asked.

    Args:
        config: The run.
        run: Its folder.
        cells: Its merged cells.
    """
    if not is_searched(config):
        return {}
    measured = measurements_of(config, run)
    counts: dict[int, Counter[str]] = {seed: Counter() for seed in config.seeds}
    for cell in cells:
        # Of several intact cells some are attacked, and asked less.
        if _is_intact(cell) and cell.role == config.subject:
            counts[cell.seed] |= Counter(row["probe"] for row in measured.rows(cell))
    counted = {cell: len(measured.rows(cell)) for cell in cells}
    whole = {
        cell: sum(counts[cell.seed][probe] for probe in cell.probes)
        for cell in cells
        if not is_done(run, cell)
    }
    return {
        "search": {
            "rule": RULE,
            "asked": sum(counted.values()),
            "grid": sum((counted | whole).values()),
            "variants": len(cells),
            "untouched": sum(not count for count in counted.values()),
        }
    }


def with_searches(
    config: RunConfig, run: Path, results: Iterable[StudyResult]
) -> list[StudyResult]:
    """Return the results of a run, each searched study with a table of what was asked, and why."""
    results = list(results)
    if not is_searched(config):
        return results
    reasons = {
        hash_value([row["seed"], row["cut"]]): row["why"] for row in read_json(run / FILE)["why"]
    }
    measured = measurements_of(config, run)

    def rows(study: Study[Any]) -> list[Row]:
        return [
            _row(measured, Cell(choice.role, seed, cut, ()), reasons)
            for choice in choices_of(config, study)
            for seed in config.seeds
            for cut in choice.cuts
        ]

    return [
        replace(result, tables={**result.tables, "search": rows(STUDIES[result.study])})
        if choices_of(config, STUDIES[result.study])
        else result
        for result in results
    ]


def _row(measured: Measurements, cell: Cell, reasons: dict[str, str]) -> Row:
    """Return what was asked of a cut, what it showed where it may be chosen, and why not all."""
    result = effect(measured, [cell], "selection")
    design = measured.config
    return {
        "seed": cell.seed if len(design.seeds) > 1 else None,
        "cut": "" if cell.cut is None else cell.cut.described,
        "asked_for_harm": _asked(measured, cell, HARM),
        "asked_for_utility": _asked(measured, cell, utility_probe(design)),
        **columns("harm_drop", result.harm_drop),
        **columns("utility_drop", result.utility_drop),
        "not_asked_since": reasons.get(hash_value([cell.seed, plain(cell.cut)]), ""),
    }


def _asked(measured: Measurements, cell: Cell, probe: str) -> str:
    halves = [name for half, name in HALVES.items() if measured.covers([cell], probe, half)]
    return {0: "no", 2: "both halves"}.get(len(halves), "".join(halves))
