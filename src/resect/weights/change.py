"""How much of a change of weights falls into a set of them.

Δ_w   value after minus value before
E_S   Σ_{w in S} Δ_w², the energy of the change in a set S of weights

Energies of disjoint sets, and of several tensors, add up.
"""

from __future__ import annotations

import torch
from torch import Tensor


def change(before: Tensor, after: Tensor) -> Tensor:
    """Return Δ [n] in fp32 on the device of `before`; both tensors are of one shape [*]."""
    return (after.to(before.device).float() - before.float()).reshape(-1)


def sum_over(
    values: Tensor, index: Tensor | None = None, *, dtype: torch.dtype = torch.float64
) -> float:
    """Return the sum of values [n] over a set, for instance of Δ².

    Args:
        values: One number a weight.
        index: Flat places [k] of the set; None for all weights.
        dtype: In which the sum is taken.
    """
    chosen = values if index is None else values[index.to(values.device)]
    if dtype == torch.float64:
        chosen = where_exact(chosen)
    return float(chosen.sum(dtype=dtype))


def where_exact(values: Tensor) -> Tensor:
    """Return values on a device that has fp64."""
    return values.to(exact_device(values.device))


def exact_device(device: torch.device) -> torch.device:
    """Return a device that has fp64: Apple's GPUs have none, and not all of Intel's do."""
    return device if device.type in ("cpu", "cuda") else torch.device("cpu")
