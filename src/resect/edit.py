"""Cut weights of a live model, and put every bit back.

This is the one module that changes the weights of a model that is not being trained.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from resect.mask import Mask, places_in
from resect.model.prunable import prunable_tensors


@contextlib.contextmanager
def removed(model: Any, mask: Mask, *, alpha: float = 0.0) -> Iterator[Any]:
    """Multiply the masked weights by `alpha` while the block runs; restore every bit after it.

    Blocks may be nested, as long as their masks share no weight. Weights come back after an
    exception too.

    Args:
        model: A Hugging Face causal LM.
        mask: Which weights, in checkpoint coordinates.
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
    saved: list[tuple[Tensor, tuple[Tensor, ...], Tensor]] = []
    try:
        with torch.no_grad():
            for name, entry in wanted.items():
                places = places_in(tensors[name], entry.index)
                values = tensors[name][places]
                saved.append((tensors[name], places, values))
                tensors[name][places] = values * alpha if alpha else torch.zeros_like(values)
        yield model
    finally:
        with torch.no_grad():
            for tensor, places, values in reversed(saved):
                tensor[places] = values


@contextlib.contextmanager
def shrunk(weights: Mapping[str, Tensor], factor: float) -> Iterator[None]:
    """Multiply whole weights by `factor` while the block runs; restore every bit after it.

    Args:
        weights: The weights, of any shape; a copy of them is held meanwhile.
        factor: The factor.
    """
    saved = {name: weight.detach().clone() for name, weight in weights.items()}
    try:
        with torch.no_grad():
            for weight in weights.values():
                weight.mul_(factor)
        yield
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(saved[name])
