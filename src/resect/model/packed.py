"""Weights in oneDNN's own order while a model is called many times.

oneDNN puts a matrix into an order of its own before it multiplies, in every call. For few rows that
takes as long as the product. Here it is done once for as long as the weights stay what they are.
The products are the same to the bit, which is tried before. Legend: K inputs, M outputs.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from resect.machine.memory import free_memory
from resect.machine.products import are_by_onednn
from resect.records import CausalModel

# Calls that make up for the packing: 20 to 50 do.
LEAST_CALLS = 64
# The part of the free memory that packed weights may take.
MOST_MEMORY = 0.5
# Rows of the products that are tried.
TRIED = (4, 33, 128)
DTYPES = (torch.float32, torch.bfloat16)


class _Key(NamedTuple):
    """Where a matrix [K, M] lies."""

    start: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Packed(NamedTuple):
    """A weight as the model has it, how often it had been changed, and its packed form."""

    weight: Tensor
    version: int
    matrix: Tensor


_PACKED: dict[_Key, _Packed] = {}


def packed_for(weights: Tensor) -> Tensor | None:
    """Return the packed form of a matrix [K, M] that inputs are multiplied with, if there is one.

    There is none of a matrix that was changed since.
    """
    if not _PACKED:
        return None
    found = _PACKED.get(_key(weights))
    if found is None or found.weight._version != found.version:
        return None
    return found.matrix


@contextlib.contextmanager
def packed(model: CausalModel, calls: int) -> Iterator[None]:
    """Have the matrices of a model packed while the block runs, where oneDNN multiplies.

    Args:
        model: A model whose weights stay as they are in the block.
        calls: How often it will be called; packing is not worth it for few.

    Yields:
        Nothing. Weights are packed if they are in the memory of the CPU, in float32 or bfloat16,
        and if their packed copies take no more than half of what is free.
    """
    if _PACKED or calls < LEAST_CALLS or not are_by_onednn():
        yield
        return
    weights = [weight for weight in _matrices(model) if _same_bits(weight.dtype)]
    size = sum(weight.numel() * weight.element_size() for weight in weights)
    if size > MOST_MEMORY * free_memory([torch.device("cpu")]).device:
        weights = []
    try:
        for weight in weights:
            matrix = weight.detach()
            _PACKED[_key(matrix.t())] = _Packed(weight, weight._version, _reordered(matrix))
        yield
    finally:
        _PACKED.clear()


def _matrices(model: CausalModel) -> list[Tensor]:
    """Return the weights [M, K] of plain linear layers on the CPU, each once."""
    found: dict[int, Tensor] = {}
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if (
            isinstance(module, nn.Linear)
            and type(weight) is nn.Parameter
            and weight.device.type == "cpu"
            and weight.is_contiguous()
            and not weight.is_inference()
        ):
            found[id(weight)] = weight
    return [*found.values()]


def _key(weights: Tensor) -> _Key:
    return _Key(weights.data_ptr(), tuple(weights.shape), weights.stride())


def _reordered(matrix: Tensor) -> Tensor:
    """Return a weight [M, K] in the order of oneDNN, for any number of rows."""
    ordered: Tensor = torch.ops.mkldnn._reorder_linear_weight(matrix, TRIED[-1])
    return ordered


def multiplied(inputs: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return inputs [N, K] times a weight [M, K], packed or not, with a bias [M], by oneDNN."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, matrix, bias, "none", [], "")
    return product


@functools.cache
def _same_bits(dtype: torch.dtype) -> bool:
    """Tell whether products with packed weights are those with plain ones, to the bit."""
    if dtype not in DTYPES:
        return False
    draw = torch.Generator().manual_seed(0)
    weight, bias = (torch.randn(shape, generator=draw).to(dtype) for shape in ((512, 576), (512,)))
    try:
        ordered = _reordered(weight)
        for rows in TRIED:
            inputs = torch.randn(rows, 576, generator=draw).to(dtype)
            for offset in (None, bias):
                usual = nn.functional.linear(inputs, weight, offset)
                if not torch.equal(multiplied(inputs, ordered, offset), usual):
                    return False
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return True
