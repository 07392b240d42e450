"""What stands in the place of cut weights where it is not zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from resect.stats import rng
from resect.weights.mask import Mask, places_in

# A factor of the weights themselves, the mean of their tensor, or values of it drawn at random.
Filling = float | Literal["mean", "resampled"]


@dataclass(frozen=True)
class Filled:
    """A mask and what stands in the place of its weights.

    Attributes:
        mask: Which weights.
        values: [k] for each tensor of the mask the values, in the order of its indices and in the
            model's dtype.
    """

    mask: Mask
    values: Mapping[str, Tensor]


def fill(
    mask: Mask, weights: Mapping[str, Tensor], filling: Filling, *, label: str = "", seed: int = 0
) -> Filled:
    """Return a mask with what is to stand in the place of its weights.

    Args:
        mask: Which weights.
        weights: Checkpoint tensors of its model by name, uncut.
        filling: A factor; `mean` of the tensor's weights, the masked ones included; or
            `resampled`, a weight of the tensor for each place, drawn with replacement.
        label: Name of the draw.
        seed: Seed of the draw.

    Raises:
        MismatchError: The mask belongs to another model.
    """
    values = {}
    for name, entry in mask.tensors.items():
        mask.check(name, weights.get(name))
        tensor = weights[name].detach()
        if filling == "mean":
            # In fp32: a mean of many values of bfloat16 would lose them.
            mean = tensor.mean(dtype=torch.float32).to(tensor.dtype)
            values[name] = mean.cpu().expand(entry.index.numel()).clone()
        elif filling == "resampled":
            draw = rng(f"instead/{label}/{name}", seed)
            index = torch.from_numpy(draw.integers(entry.size, size=entry.index.numel()))
            values[name] = tensor[places_in(tensor, index)].cpu()
        else:
            values[name] = entry.value * filling
    return Filled(mask, values)
