"""What the logs of other tools say about a cut, so that a number can be traced to its mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from resect.edit.live import removed
from resect.weights.fit import forced_in
from resect.weights.mask import Mask


def as_mask(given: Mask | str | Path | None) -> Mask | None:
    """Return a mask that was given as itself or as a file.

    Raises:
        InputError: The file is missing or not a mask.
    """
    return given if given is None or isinstance(given, Mask) else Mask.load(given)


def check_mask(model: Any, mask: Mask | None) -> None:
    """Refuse a mask that was made from another model, before anything is asked.

    Raises:
        MismatchError: Name, shape, dtype or a value at a removed place differs.
    """
    if mask is not None:
        with removed(model, mask):
            pass


def mask_facts(mask: Mask | None) -> dict[str, Any]:
    """Return what a log says about a cut; all null for an intact model."""
    if mask is None:
        return {"mask_hash": None, "mask_weights": 0, "mask_fraction": 0.0}
    return {
        "mask_hash": mask.hash,
        "mask_weights": mask.count,
        "mask_fraction": mask.fraction,
        **({"mask_forced": forced_in(mask.meta)} if forced_in(mask.meta) else {}),
    }
