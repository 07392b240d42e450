"""Weight patches leave the house: `resect.edit.patch` behind the gate."""

from __future__ import annotations

from pathlib import Path

from resect.edit.patch import save_patch
from resect.export.gate import Gate, gate_of
from resect.weights.mask import Mask


def write_patch(
    mask: Mask,
    path: str | Path,
    *,
    revert: bool = False,
    alpha: float = 0.0,
    run: Path | Gate | None = None,
) -> int:
    """Write a weight patch for vLLM.

    Args:
        mask: Which weights.
        path: File to write, `*.safetensors`.
        revert: Put the original values in their places and not α times them.
        alpha: Factor of a cut; 0 removes.
        run: Folder of a run that measured this mask, or what `pass_gate` returned of it; a patch
            that puts values back needs none.

    Returns:
        Number of weights in the patch.

    Raises:
        InputError: The mask is empty, or holds a NaN, which the form means as "unchanged".
    """
    gate = Gate() if revert else gate_of(mask, run, alpha)
    return save_patch(mask, path, revert=revert, alpha=alpha, more=gate.facts())
