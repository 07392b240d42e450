"""Multiply matrices by NumPy's OpenBLAS, where results are to be the same on every processor.

MKL has no fast path that is common to all x86-64 processors: on those of AMD its COMPATIBLE branch,
with vectors of SSE2, is the only one that promises equal bits. OpenBLAS takes the kernels of the
processor that `OPENBLAS_CORETYPE` names and blocks of the sizes that its source has for that one;
those of Haswell need AVX2 and FMA alone, and less than half of the time (docs/design/organism.md).
"""

from __future__ import annotations

import functools
import warnings

import numpy as np
import torch
from torch import Tensor
from torch.library import Library

from resect.machine.portable import is_pinned


def pin_products() -> None:
    """Where the common path of `machine.portable` was taken, have products take it as well."""
    if is_pinned():
        take_common_products()


@functools.cache
def take_common_products() -> Library:
    """Have every float32 product of two matrices on the CPU go through NumPy from here on.

    Autograd's own products are among them: it calls the same operator. What is left to torch are
    products of other dtypes and batches of matrices (attention).

    Returns:
        What holds the change; it lasts as long as the process.
    """
    library = Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Warning only once for all op")
        library.impl(  # type: ignore[no-untyped-call]
            "mm", _product, "CPU", allow_override=True
        )
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
