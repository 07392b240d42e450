"""What the logs of other tools say about a cut, so that a number can be traced to its mask."""

from __future__ import annotations

from pathlib import Path

from resect.edit.live import removed
from resect.records import CausalModel
from resect.weights.fit import forced_in
from resect.weights.mask import Mask


def as_mask(mask: Mask | str | Path | None) -> Mask | None:
    """Return a mask that is given as itself or as a file.

    Raises:
        InputError: The file is missing or not a mask.
    """
    return mask if mask is None or isinstance(mask, Mask) else Mask.load(mask)


def check_mask(model: CausalModel, mask: Mask | None) -> None:
    """Refuse a mask that was made from another model, before anything is asked.

    Raises:
        MismatchError: Name, shape, dtype or a value at a removed place differs.
    """
    if mask is not None:
        with removed(model, mask):
            pass


def mask_facts(mask: Mask | None) -> dict[str, object]:
    """Return what a log says about a cut; all null for an intact model."""
    if mask is None:
        return {"mask_hash": None, "mask_weights": 0, "mask_fraction": 0.0}
    forced = forced_in(mask.meta)
    return {
        "mask_hash": mask.hash,
        "mask_weights": mask.count,
        "mask_fraction": mask.fraction,
        **({"mask_forced": forced} if forced else {}),
    }
