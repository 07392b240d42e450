"""Sums of |g| and g² over examples on CUDA, without the gradient of an example in memory.

For one weight [R, C] and a batch of examples e with rows left [t_e, R] and right [t_e, C]:

    absolute[r, c] += Σ_e |Σ_t left[t, r]·right[t, c]|        square likewise

Each program owns a block of the weight. It goes through the examples, reduces over the tokens of
one in registers, in fp32, and adds |·| and (·)² to sums that are in registers too. Memory is
touched once, to add the block to the totals; no two programs write one number, so the result does
not depend on the order in which they run. Examples may be of any length.

Triton is optional and Linux only; this module imports it when it is first asked.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Three fp32 blocks of 64 × 64 live in the registers of 128 threads: 96 registers each. Tensor cores
# want at least 16 rows a step.
BLOCK = 64
STEP = 32


def usable(tensor: Tensor) -> bool:
    """Tell whether the kernel works for activations like this one.

    True on CUDA with Triton installed, and on the CPU in Triton's interpreter
    (`TRITON_INTERPRET=1`), which is slow and made for tests.
    """
    on_device = tensor.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"
    return on_device and tensor.dtype in DTYPES and _installed()


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def add_sums(
    left: Sequence[Tensor],
    right: Sequence[Tensor],
    *,
    absolute: Tensor | None = None,
    square: Tensor | None = None,
) -> None:
    """Add |g| and g² of each example's gradient g = leftᵀ·right to totals.

    Args:
        left: [t, R] an example, all of one dtype in `DTYPES`.
        right: [t, C] an example, of the same dtype.
        absolute: [R, C] contiguous, fp32, on the same device; None if not wanted.
        square: Likewise.
    """
    total = absolute if absolute is not None else square
    if total is None or not left:
        return
    rows, columns = total.shape
    lengths = torch.tensor([0, *(len(rows) for rows in left)])
    ends = lengths.cumsum(0).to(device=total.device, dtype=torch.int32)
    left_rows, right_rows = torch.cat(list(left)), torch.cat(list(right))
    grid = (-(-rows // BLOCK), -(-columns // BLOCK))
    # Triton launches on the current device, which need not be the one of the weight.
    with torch.cuda.device_of(total):  # type: ignore[no-untyped-call]
        _kernel()[grid](
            left_rows,
            right_rows,
            ends,
            # A pointer is passed for what is not wanted too; the flags keep it from being used.
            absolute if absolute is not None else total,
            square if square is not None else total,
            len(left),
            rows,
            columns,
            ABSOLUTE=absolute is not None,
            SQUARE=square is not None,
            # The interpreter multiplies bf16 as if its bits were integers.
            WIDEN=os.environ.get("TRITON_INTERPRET") == "1",
            BLOCK=BLOCK,
            STEP=STEP,
        )


@functools.cache
def _kernel() -> Any:
    import triton
    import triton.language

    # The compiler looks the language up among the globals of the function's module.
    globals()["tl"] = triton.language
    return triton.jit(_sums)


tl: Any = None


def _sums(  # type: ignore[no-untyped-def]
    left,
    right,
    ends,
    absolute,
    square,
    examples,
    rows,
    columns,
    ABSOLUTE: tl.constexpr,  # noqa: N803
    SQUARE: tl.constexpr,  # noqa: N803
    WIDEN: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
    STEP: tl.constexpr,  # noqa: N803
):
    """Add one block of the weight; compiled by Triton, see the module's header.

    `left` [N, R] and `right` [N, C] hold the rows of all examples, `ends` [examples + 1] where each
    begins and the last one ends.
    """
    r = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    step = tl.arange(0, STEP)
    sum_of_sizes = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    sum_of_squares = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    start = tl.load(ends)
    for example in range(examples):
        end = tl.load(ends + example + 1)
        gradient = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
        for first_token in range(start, end, STEP):
            # 64 bits, since tokens times features of a batch can pass 2³¹.
            t = (first_token + step).to(tl.int64)
            x = tl.load(
                left + t[None, :] * rows + r[:, None],
                mask=(t[None, :] < end) & (r[:, None] < rows),
                other=0.0,
            )  # [BLOCK, STEP], transposed
            y = tl.load(
                right + t[:, None] * columns + c[None, :],
                mask=(t[:, None] < end) & (c[None, :] < columns),
                other=0.0,
            )  # [STEP, BLOCK]
            if WIDEN:
                x = x.to(tl.float32)
                y = y.to(tl.float32)
            # "ieee", because the default rounds fp32 inputs to 10 bits of mantissa.
            gradient = tl.dot(x, y, gradient, input_precision="ieee")
        if ABSOLUTE:
            sum_of_sizes += tl.abs(gradient)
        if SQUARE:
            sum_of_squares += gradient * gradient
        start = end
    offsets = r[:, None].to(tl.int64) * columns + c[None, :]
    inside = (r[:, None] < rows) & (c[None, :] < columns)
    if ABSOLUTE:
        total = tl.load(absolute + offsets, mask=inside)
        tl.store(absolute + offsets, total + sum_of_sizes, mask=inside)
    if SQUARE:
        total = tl.load(square + offsets, mask=inside)
        tl.store(square + offsets, total + sum_of_squares, mask=inside)
