"""Sets of the same size as a mask: random ones, and ones matched in magnitude."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from resect.stats import rng
from resect.weights.mask import Mask, MaskTensor
from resect.weights.select import Draw

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


def _control(
    mask: Mask, weights: Mapping[str, Tensor], control: str, draw: Draw, label: str, seed: int
) -> Mask:
    tensors = {}
    for name, tensor in mask.tensors.items():
        mask.check(name, weights.get(name))
        flat = weights[name].reshape(-1)
        generator = rng(f"control/{label}/{name}", seed)
        index = draw(tensor, flat, generator).sort().values
        value = flat[index.to(flat.device)].detach().cpu().clone()
        tensors[name] = MaskTensor(
            tensor.shape, index, value, torch.zeros(index.numel(), dtype=torch.uint8)
        )
    return Mask(tensors, {**mask.meta, "control": control, "label": label, "control_seed": seed})


def random_mask(
    mask: Mask, weights: Mapping[str, Tensor], *, label: str = "random", seed: int = 0
) -> Mask:
    """Draw as many weights of every tensor at random, none of them in `mask`.

    Args:
        mask: The mask to match.
        weights: Checkpoint tensors of its model by name.
        label: Name of the draw.
        seed: Seed of the draw.

    Raises:
        MismatchError: The mask belongs to another model.
    """

    def draw(tensor: MaskTensor, _: Tensor, generator: np.random.Generator) -> Tensor:
        count, free = tensor.index.numel(), tensor.size - tensor.index.numel()
        ranks = np.sort(generator.choice(free, size=min(count, free), replace=False))
        # The r-th weight outside of the mask: each removed weight before it shifts it by one.
        gaps = tensor.index.numpy() - np.arange(count)
        return torch.from_numpy(ranks + np.searchsorted(gaps, ranks, side="right"))

    return _control(mask, weights, "random", draw, label, seed)


def magnitude_matched(
    mask: Mask, weights: Mapping[str, Tensor], *, label: str = "magnitude", seed: int = 0
) -> Mask:
    """Draw for every removed weight another one of the same tensor with nearly its magnitude.

    The weights outside of the mask are sorted by |w|; each removed weight draws one of the 16
    nearest places that are still free, so the two sets agree in every quantile of |w|.

    Args:
        mask: The mask to match.
        weights: Checkpoint tensors of its model by name.
        label: Name of the draw.
        seed: Seed of the draw.

    Raises:
        MismatchError: The mask belongs to another model.
    """

    def draw(tensor: MaskTensor, flat: Tensor, generator: np.random.Generator) -> Tensor:
        magnitude = flat.detach().abs().float().cpu().numpy()
        inside = np.zeros(tensor.size, dtype=bool)
        inside[tensor.index.numpy()] = True
        free = np.flatnonzero(~inside)
        free = free[np.argsort(magnitude[free], kind="stable")]
        return torch.from_numpy(
            _nearest(magnitude[free], magnitude[tensor.index.numpy()], free, generator)
        )

    return _control(mask, weights, "magnitude", draw, label, seed)


NEIGHBOURS = 16


def _nearest(
    sorted_magnitudes: Floats, magnitudes: Floats, free: Ints, generator: np.random.Generator
) -> Ints:
    """Draw for each magnitude a free index of nearly that magnitude, no index twice.

    Args:
        sorted_magnitudes: [f] rising magnitudes of the weights that may be drawn.
        magnitudes: [k] what is to be matched.
        free: [f] flat indices of the weights that may be drawn.
        generator: Where chance comes from.
    """
    used: set[int] = set()
    chosen = []
    for magnitude in magnitudes[generator.permutation(len(magnitudes))]:
        centre = int(np.searchsorted(sorted_magnitudes, magnitude))
        width = NEIGHBOURS // 2
        near: list[int] = []
        while not near and width < 2 * len(free):
            ranks = range(max(0, centre - width), min(len(free), centre + width))
            near = [rank for rank in ranks if rank not in used]
            width *= 2
        if not near:
            break
        rank = near[int(generator.integers(len(near)))]
        used.add(rank)
        chosen.append(int(free[rank]))
    return np.array(chosen, dtype=np.int64)
