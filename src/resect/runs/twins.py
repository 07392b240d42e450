"""Cells that are another seed's cell: the intact model, where seeds are draws on one model.

A seed is a model, a draw of what is scored and a draw of the controls. Where neither the model nor
what is asked has the seed in its place, the intact model says the same for every seed, to the bit.
It is then asked for the first seed, and the rows of the others are copies under their own name.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from resect.evaluation.attacks import parse_attack
from resect.files.tables import read_parquet, write_parquet
from resect.runs.config import RunConfig
from resect.studies.cells import Cell, asked_path, is_done, record_path

SEED = "{seed}"


def is_copied(config: RunConfig, run: Path, cell: Cell) -> bool:
    """Write what a cell replied from another seed's record of it; tell whether there was one."""
    rows = _twin_rows(config, run, cell) if is_shared(config, cell) else []
    if rows:
        write_parquet(asked_path(run, cell), rows)
    return bool(rows)


def _twin_rows(config: RunConfig, run: Path, cell: Cell) -> list[dict[str, object]]:
    """Return the rows of a cell from another seed's record of it; none without one."""
    for seed in config.seeds:
        twin = replace(cell, seed=seed)
        if seed != cell.seed and is_done(run, twin):
            rows = read_parquet(record_path(run, twin))
            # A record may be of a plan that asked it fewer probes, or of passes that were shared.
            if set(cell.probes) <= {row["probe"] for row in rows} and "together" not in rows[0]:
                return [row | {"seed": cell.seed} for row in rows if row["probe"] in cell.probes]
    return []


def is_shared(config: RunConfig, cell: Cell) -> bool:
    """Tell whether a cell is the same for every seed."""
    attack = parse_attack(cell.attack) if cell.attack else None
    if cell.cut is not None or cell.tuning is not None or cell.half:
        return False
    # What an attack makes it makes for each cell, and writes down for each.
    if attack is not None and (attack.model != "none" or attack.shots or attack.suffix):
        return False
    sets = [config.data[config.evaluation.probes[name]] for name in cell.probes]
    return not any(SEED in place for place in (config.models[cell.role], *sets))
