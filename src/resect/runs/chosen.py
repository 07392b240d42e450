"""The cut that a run of one model has chosen, as a mask with its measurement.

A run by replies has the study `frontier`, whose table has the chosen point; one by likelihood has
`selectivity`, of which the chosen q is read. Rows are the same in both: a half each, with the drop
of the behaviour and of utility.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from resect import files
from resect.files.reading import read_json
from resect.runs.config import RunConfig
from resect.runs.sweep import chosen_rows
from resect.studies import frontier, selectivity
from resect.studies.cells import Cell, Cut, mask_path
from resect.studies.effects import columns, effect
from resect.studies.frontier import CONFIGURED
from resect.studies.halves import Half
from resect.studies.measurements import Measurements, Row
from resect.studies.partial import measurements_of
from resect.weights.mask import Mask


class Verdict(NamedTuple):
    """The claim that is made of the chosen cut, as `results.json` has it."""

    claim: str
    verdict: str
    reason: str
    prompts: int


def verdict_of(config: RunConfig, results: Path) -> Verdict:
    """Return what a run says of its chosen cut: the first claim of the study that chose it."""
    study = _choosing(config)
    claim = next(c for c in read_json(results)["claims"] if c["study"] == study)
    return Verdict(claim["claim"], claim["verdict"], claim["reason"], claim["n"])


def rows_of_choice(config: RunConfig, run: Path, results: Path) -> list[Row]:
    """Return a row for each half of the prompts; none if no cut was chosen.

    Args:
        config: A run with one seed, and with `frontier` or `selectivity`.
        run: Its folder.
        results: Its `results.json`.
    """
    if _choosing(config) == frontier.STUDY.name:
        return chosen_rows(results)
    cut = _selective(config, results)
    if cut is None:
        return []
    measured = measurements_of(config, run)
    cells = [Cell(config.subject, config.seeds[0], cut, ())]
    halves: tuple[Half, ...] = ("selection", "test")
    return [_row(measured, cells, cut, half) for half in halves]


def _row(measured: Measurements, cells: list[Cell], cut: Cut, half: Half) -> Row:
    result = effect(measured, cells, half)
    config = measured.config
    return {
        "split": half,
        "scope": config.selection.scope,
        "method": CONFIGURED,
        "rounds": cut.rounds,
        "p": config.selection.p,
        "q": cut.q,
        "removed_fraction": measured.rows(cells[0])[0]["removed_fraction"],
        **columns("harm_drop", result.harm_drop),
        **columns("utility_drop", result.utility_drop),
    }


def chosen_mask(config: RunConfig, run: Path, results: Path) -> Mask | None:
    """Return the mask of the chosen cut, with its measurement in its origin.

    Args:
        config: As for `rows_of_choice`.
        run: Its folder.
        results: Its `results.json`.
    """
    rows = rows_of_choice(config, run, results)
    if not rows:
        return None
    mask = Mask.load(mask_path(run, config.subject, config.seeds[0], _cut_of(config, rows[0])))
    verdict, attack = verdict_of(config, results), config.attack
    likelihood = config.evaluation.measure == "likelihood"
    opened = f"{attack.name}, {attack.phrase or f'{attack.tokens} tokens of the answer'}"
    measured = {
        "rows": rows,
        "attack": "none, answers are given" if likelihood else opened,
        "judge": "none, likelihood" if likelihood else config.evaluation.judge,
        "prompts": 2 * verdict.prompts,
        "verdict": verdict.verdict,
        "budget": _budget(config),
        "mask": mask.hash,
        "config": files.hash_value(config.model_dump(mode="json")),
    }
    return Mask(mask.tensors, {**mask.meta, "measured": measured})


def _choosing(config: RunConfig) -> str:
    """Return the study whose choice is the run's."""
    by_replies = config.section(frontier.STUDY) is not None
    return frontier.STUDY.name if by_replies else selectivity.STUDY.name


def _budget(config: RunConfig) -> float | None:
    section = config.section(frontier.STUDY) or config.section(selectivity.STUDY)
    return None if section is None else section.utility_drop


def _selective(config: RunConfig, results: Path) -> Cut | None:
    """Return the target's cut that `selectivity` chose, None if it chose none."""
    study = next(s for s in read_json(results)["studies"] if s["study"] == selectivity.STUDY.name)
    arms: list[dict[str, Any]] = study["tables"]["chosen"]
    q = next(arm["q"] for arm in arms if arm["arm"] == "target")
    return Cut(config.target, "target", q) if q else None


def _cut_of(config: RunConfig, row: Row) -> Cut:
    grid = config.section(frontier.STUDY)
    targets = {method.name: method.target for method in grid.methods} if grid else {}
    return Cut(
        targets.get(row["method"], config.target),
        "target",
        row["q"],
        p=None if row["p"] == config.selection.p else row["p"],
        scope=None if row["scope"] == config.selection.scope else row["scope"],
        rounds=row["rounds"],
    )
