"""Cut weights of a live model, and put every bit back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from resect.mask import Mask
from resect.model.prunable import prunable_tensors


@contextlib.contextmanager
def removed(model: Any, mask: Mask, *, alpha: float = 0.0) -> Iterator[Any]:
    """Multiply the masked weights by `alpha` while the block runs; restore every bit after it.

    Blocks may be nested, as long as their masks share no weight. Weights come back after an
    exception too.

    Args:
        model: A Hugging Face causal LM.
        mask: Which weights.
        alpha: Factor; 0 removes.

    Yields:
        The model.

    Raises:
        MismatchError: The mask belongs to another model; nothing was changed.
    """
    tensors = prunable_tensors(model)
    wanted = {name: entry for name, entry in mask.tensors.items() if entry.index.numel()}
    for name in wanted:
        mask.check(name, tensors.get(name))
    saved: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    try:
        with torch.no_grad():
            for name, entry in wanted.items():
                flat = tensors[name].view(-1)
                index = entry.index.to(flat.device)
                values = flat[index].clone()
                saved.append((flat, index, values))
                flat[index] = values * alpha if alpha else torch.zeros_like(values)
        yield model
    finally:
        with torch.no_grad():
            for flat, index, values in reversed(saved):
                flat[index] = values
