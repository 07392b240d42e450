"""Compute by NumPy what MKL computes otherwise on another processor, in the portable mode.

Products of matrices: MKL has no fast path that is common to all x86-64 processors. On those of AMD
its COMPATIBLE branch, with vectors of SSE2, is the only one that promises equal bits. OpenBLAS has
the kernels of the processor that `OPENBLAS_CORETYPE` names, and blocks of the sizes that its source
gives for that one; those of Haswell need AVX2 and FMA alone, and less than half of the time.

Functions of single numbers: for some MKL begins with the processor's estimate of 1/x or 1/√x, whose
bits each maker chooses, and the last bit of what comes out depends on it. One square root in five
is not the nearest number. NumPy's are made without such estimates (docs/design/organism.md).
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.library import Library

Elementwise = Callable[..., Any]

# Of those that torch has from MKL the ones whose bits an emulated processor with other estimates
# did not share, in float32 or float64.
ELEMENTWISE: dict[str, Elementwise] = {
    "atan": np.arctan,
    "log": np.log,
    "log10": np.log10,
    "log2": np.log2,
    "sqrt": np.sqrt,
    "tan": np.tan,
}
FLOATS = (torch.float32, torch.float64)


@functools.cache
def take_common_path() -> Library:
    """Have products and functions of numbers on the CPU go through NumPy, in one thread.

    What several threads sum depends on how many there are, which a machine's cores and `--jobs`
    decide. Of products, those of two float32 matrices: torch's layers and autograd both call this
    operator. Batches of matrices (attention) and other dtypes are left to torch.

    Returns:
        What holds the change; it lasts as long as the process.
    """
    torch.set_num_threads(1)
    kernels: dict[str, Callable[..., Tensor]] = {"mm": _product}
    for name, function in ELEMENTWISE.items():
        kernels[name] = functools.partial(_each, name, function)
        kernels[f"{name}_"] = functools.partial(_each_in_place, name)
    library = Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Warning only once for all op")
        for name, kernel in kernels.items():
            library.impl(name, kernel, "CPU", allow_override=True)  # type: ignore[no-untyped-call]
    return library


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Return the product [N, M] of `left` [N, K] and `right` [K, M], of their dtype."""
    plain = left.dtype == right.dtype == torch.float32 and left.dim() == right.dim() == 2
    if not plain or left.shape[1] != right.shape[0] or not left.shape[1]:
        # Its form with a place for the result is another operator, which was not changed.
        return torch.mm(left, right, out=left.new_empty(0))
    product = left.new_empty(left.shape[0], right.shape[1])
    np.matmul(left.numpy(force=True), right.numpy(force=True), out=product.numpy())
    return product


def _each(name: str, function: Elementwise, numbers: Tensor) -> Tensor:
    """Return a function of each number, of any shape and of the dtype that torch gives."""
    if numbers.dtype not in FLOATS:
        dtype = numbers.dtype if numbers.dtype.is_floating_point else torch.get_default_dtype()
        place = torch.empty(0, dtype=numbers.dtype if numbers.is_complex() else dtype)
        changed: Tensor = getattr(torch, name)(numbers, out=place)
        return changed
    results = torch.empty_like(numbers)
    # NaN and infinity are what torch gives, too, without a warning.
    with np.errstate(all="ignore"):
        function(numbers.numpy(force=True), out=results.numpy())
    return results


def _each_in_place(name: str, numbers: Tensor) -> Tensor:
    """Put a function of each number in its place."""
    return numbers.copy_(getattr(torch, name)(numbers))
