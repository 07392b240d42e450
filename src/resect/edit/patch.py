"""Weight patches: a mask in the form that vLLM documents for changes in checkpoint coordinates.

vLLM's `CheckpointWeightPatch(name, shape, dtype, values, indices)` says which flat elements of a
checkpoint tensor get which values; the model's own loader finds them in fused and sharded
parameters. The file holds these fields and nothing else: for entry n the tensors `n.indices`
(int32, or int64 for 2³¹ elements and more) and `n.values`, and as metadata names and shapes.
`resect.integrations.vllm_worker` reads it in vLLM's process.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from resect import files
from resect.errors import InputError
from resect.weights.mask import Mask

KIND = "resect.weight_patch"


def save_patch(
    mask: Mask,
    path: str | Path,
    *,
    revert: bool = False,
    alpha: float = 0.0,
    more: Mapping[str, object] | None = None,
) -> int:
    """Write a mask as a weight patch, whatever is known of the mask.

    Args:
        mask: Which weights.
        path: File to write, `*.safetensors`.
        revert: Put the original values in their places and not α times them.
        alpha: Factor of a cut; 0 removes.
        more: What else to say in the metadata.

    Returns:
        Number of weights in the patch.

    Raises:
        InputError: The mask is empty, or holds a NaN, which the form means as "unchanged".
    """
    entries = {name: entry for name, entry in mask.tensors.items() if entry.index.numel()}
    if not entries:
        raise InputError("the mask removes nothing", fix="patch with at least one weight")
    blobs: dict[str, Tensor] = {}
    tensors = []
    for number, (name, entry) in enumerate(entries.items()):
        # Zeros and not value · 0, which would be -0 or NaN.
        cut = entry.value * alpha if alpha else torch.zeros_like(entry.value)
        values = entry.value if revert else cut
        if values.isnan().any():
            raise InputError(f"{name} has a NaN, which a patch cannot hold")
        narrow = torch.int32 if entry.size < 2**31 else torch.int64
        blobs[f"{number}.indices"] = entry.index.to(narrow).contiguous()
        blobs[f"{number}.values"] = values.contiguous()
        tensors.append({"name": name, "shape": list(entry.shape)})
    facts = {
        "kind": KIND,
        "version": 1,
        "direction": "revert" if revert else "cut",
        "alpha": alpha,
        "mask": mask.hash,
        "tensors": tensors,
        **(more or {}),
    }
    files.write_tensors(path, blobs, facts)
    return mask.count
