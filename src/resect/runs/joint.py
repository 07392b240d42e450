"""Which cells of a run share passes (`evaluation.together`), and what is written about it.

For each cell of such a run a file in `together/` says with how many others it was asked, or why it
was asked alone, and, where that was checked, what the difference is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

from resect.evaluation.attacks import AttackSettings
from resect.evaluation.drift import Drift
from resect.files.reading import read_json
from resect.files.writing import write_json
from resect.studies.cells import Cell

FOLDER = "together"
# Corrections of more than this part of the weights cost what the weights themselves do.
MOST_CUT = 0.03
ALONE = "no other cell was left to share its passes with"
TOO_LARGE = f"more than {100 * MOST_CUT:g} % of the weights are cut"


def why_alone(cell: Cell, attack: AttackSettings) -> str:
    """Return why a cell cannot share passes, as a clause; "" if it might."""
    if cell.tuning is not None:
        return "it is fine-tuned"
    if attack.model != "none":
        return "an attack changes its weights"
    if attack.suffix is not None:
        return "a suffix is sought against it"
    if cell.cut is not None and cell.cut.kind == "direction":
        return "a direction is taken out of it"
    return ""


def alike(cell: Cell, peer: Cell) -> bool:
    """Tell whether two cells are of the same model, and asked the same in the same way."""
    return replace(cell, cut=None) == replace(peer, cut=None)


class _Turn(NamedTuple):
    """Sorts cuts so that neighbours have most in common."""

    ranking: str
    q: float


def _turn(cell: Cell) -> _Turn:
    return _Turn("", 0.0) if cell.cut is None else _Turn(str(replace(cell.cut, q=1.0)), cell.cut.q)


def companions(cell: Cell, peers: Sequence[Cell], count: int) -> list[Cell]:
    """Return a cell and those that share its passes, at most `count`, nested cuts side by side.

    Args:
        cell: The cell.
        peers: Cells that are asked like it, itself among them.
        count: Most cells of a pass.
    """
    queue = sorted(peers, key=_turn)
    start = queue.index(cell) // count * count
    return queue[start : start + count]


@dataclass(frozen=True)
class Shared:
    """How a cell was asked.

    Attributes:
        cells: Cells that shared its passes, itself included.
        alone: Why it was asked alone; "" if it was not.
        drift: How its replies differ from those of the same cell asked alone; None if that was not
            checked.
    """

    cells: int
    alone: str = ""
    drift: Drift | None = None


def note_shared(run: Path, cell: Cell, shared: Shared) -> None:
    """Write down how a cell was asked."""
    write_json(run / FOLDER / f"{cell.key}.json", asdict(shared))


def facts_of(run: Path, most: int) -> dict[str, object]:
    """Return what `results.json` says of shared passes; nothing where cells were not to share any.

    Args:
        run: Folder of the run.
        most: `evaluation.together`.
    """
    if most <= 1:
        return {}
    notes = [read_json(path) for path in sorted((run / FOLDER).glob("*.json"))]
    drifts = [note["drift"] for note in notes if note["drift"] is not None]
    values: dict[str, object] = {
        "most": most,
        "cells": sum(not note["alone"] for note in notes),
        "alone": dict(Counter(note["alone"] for note in notes if note["alone"])),
    }
    if drifts:
        nlls = [entry["nll"] for entry in drifts if entry["nll"] is not None]
        values["checked"] = {
            "cells": len(drifts),
            "replies": sum(entry["replies"] for entry in drifts),
            "tokens": sum(entry["tokens"] for entry in drifts),
            "different": sum(entry["different"] for entry in drifts),
            "nll": max(nlls, default=None),
        }
    return {FOLDER: values}
