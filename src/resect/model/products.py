"""What multiplies float32 matrices on a CPU: torch, oneDNN, or the common path of all machines."""

from __future__ import annotations

import functools
import logging
import os
import warnings

import torch
from torch import Tensor
from torch.library import Library

from resect.machine.portable import is_pinned
from resect.machine.products import CHOICE, TORCH, are_by_onednn
from resect.model.common_path import take_common_path
from resect.model.packed import multiplied, packed_for

# Fewer multiplications than these are not worth the way through Python, and for fewer rows oneDNN
# is no faster.
LEAST, FEWEST_ROWS = 2**20, 4
# So far a product may be from the exact one, in roundings of its sum of sizes.
TOLERANCE = 8 * 2.0**-24
_log = logging.getLogger(__name__)


def take_path() -> None:
    """Multiply as `machine.portable` says where its pins hold, and else as `machine.products` does.

    Raises:
        InputError: As `resect.machine.products.are_by_onednn`.
    """
    if is_pinned():
        take_common_path()
    elif are_by_onednn():
        take_onednn()


@functools.cache
def take_onednn() -> Library | None:
    """Have products of float32 matrices on the CPU go through oneDNN, forward and backward.

    Others (of other dtypes, batches of matrices, small ones, few rows) stay where they are. torch
    has no public function for it; that of its compiler is tried first, and left alone where it is
    not there, fails or gives other numbers.

    Returns:
        What holds the change; it lasts as long as the process. None where it cannot be had.
    """
    if not _works():
        os.environ[CHOICE] = TORCH
        _log.warning("oneDNN cannot multiply here, so torch does")
        return None
    library = Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Warning only once for all op")
        for name, kernel in (("mm", _product), ("addmm", _product_and_bias)):
            library.impl(name, kernel, "CPU", allow_override=True)  # type: ignore[no-untyped-call]
    return library


def _works() -> bool:
    """Tell whether oneDNN multiplies, to rounding: with a bias, and in any order in memory."""
    draw = torch.Generator().manual_seed(0)
    inputs, weights, bias = (
        torch.randn(shape, generator=draw) for shape in ((48, 64), (64, 128), (128,))
    )
    double = inputs.double() @ weights.double()
    bound = TOLERANCE * (inputs.double().abs() @ weights.double().abs() + bias.double().abs())
    try:
        products = (
            (_by_onednn(inputs, weights), double),
            (_by_onednn(inputs, weights, bias), double + bias.double()),
            (_by_onednn(inputs.t().contiguous().t(), weights.t().contiguous().t()), double),
        )
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return all(bool(((got.double() - exact).abs() <= bound).all()) for got, exact in products)


def _by_onednn(inputs: Tensor, weights: Tensor, bias: Tensor | None = None) -> Tensor:
    ready = packed_for(weights)
    return multiplied(inputs, weights.t() if ready is None else ready, bias)


def _is_plain(inputs: Tensor, weights: Tensor) -> bool:
    """Tell whether oneDNN is to multiply these; of 16 bits it does so anyhow, faster if packed."""
    return (
        inputs.dtype == weights.dtype
        and (inputs.dtype == torch.float32 or packed_for(weights) is not None)
        and inputs.dim() == weights.dim() == 2
        and inputs.shape[1] == weights.shape[0]
        and inputs.shape[0] >= FEWEST_ROWS
        and inputs.shape[0] * inputs.shape[1] * weights.shape[1] >= LEAST
    )


def _product(inputs: Tensor, weights: Tensor) -> Tensor:
    """Return the product [N, M] of `inputs` [N, K] and `weights` [K, M]."""
    if _is_plain(inputs, weights):
        return _by_onednn(inputs, weights)
    # Its form with a place for the result is another operator, which was not changed.
    return torch.mm(inputs, weights, out=inputs.new_empty(0))


def _product_and_bias(
    bias: Tensor, inputs: Tensor, weights: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    """Return `beta` times a bias [M] or [N, M] and `alpha` times the product of two matrices."""
    plain = beta == alpha == 1 and bias.shape == weights.shape[1:] and bias.dtype == inputs.dtype
    if plain and _is_plain(inputs, weights):
        return _by_onednn(inputs, weights, bias)
    empty = inputs.new_empty(0)
    return torch.addmm(bias, inputs, weights, beta=beta, alpha=alpha, out=empty)
