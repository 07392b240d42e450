"""Exact zeros in quantised blocks: which bits are a weight's own, and which of their codes is 0.

A block of n weights holds scales, which all or some of them share, and a code of k bits for each.
Where a code lies is not written down here: it is found by asking the decoder of the package `gguf`
which weights change when a bit does. A bit that changes one weight alone, whatever the rest of the
block, is that weight's own. A weight is 0 exactly if some code of its own bits decodes to 0 under
the scales of its block; types without a minimum (Q4_0, Q5_0, Q8_0, Q3_K, Q6_K) have such a code in
every block, those with one (Q4_1, Q5_1, Q2_K, Q4_K, Q5_K) where the minimum is a multiple of the
scale, and IQ4_NL in none.

Legend: n weights of a block and w bytes; b blocks; p places; k bits of a code.
"""

from __future__ import annotations

import functools
import hashlib
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from resect.model.gguf import Bytes, GgufTensor, Values, dequantised

Index = npt.NDArray[np.int64]
# Blocks of bytes that mean nothing, to see which weights a bit changes: one may hide it, with a
# scale of 0 for instance.
_DRAWS = 24
# Places that say in which order codes are tried.
_SAMPLE = 64


class Zeroed(NamedTuple):
    """Blocks in which weights were made 0.

    Attributes:
        rows: [b] which blocks of the tensor these are, sorted.
        blocks: [b, w] their bytes.
        refused: [p] bool, true for the places that cannot hold a 0 there.
    """

    rows: Index
    blocks: Bytes
    refused: npt.NDArray[np.bool_]


def values_at(tensor: GgufTensor, index: Index) -> Values:
    """Return the weights [p] of a tensor at flat indices [p], as they decode."""
    rows, inverse = np.unique(index // tensor.block, return_inverse=True)
    values = _decoded(np.asarray(tensor.blocks[rows]), tensor)
    return np.asarray(values[inverse, index % tensor.block])


def zeroed(tensor: GgufTensor, index: Index) -> Zeroed:
    """Make weights of a tensor 0 within their blocks; no other weight changes.

    Args:
        tensor: The tensor, of any type.
        index: [p] flat indices in it, each once.
    """
    rows, row = np.unique(index // tensor.block, return_inverse=True)
    column = index % tensor.block
    blocks = np.array(tensor.blocks[rows])
    if tensor.block == 1:
        blocks[:] = 0
        return Zeroed(rows, blocks, np.zeros(len(index), dtype=np.bool_))
    before = _decoded(blocks, tensor)
    todo = before[row, column] != 0
    bits = _own_bits(tensor.type, tensor.block, blocks.shape[1])
    if bits.shape[1] and todo.any():
        sample = np.flatnonzero(todo)[:_SAMPLE]
        for code in _by_use(blocks, row[sample], column[sample], bits, tensor):
            left = np.flatnonzero(todo)
            if not len(left):
                break
            solved = _solved(blocks, row[left], column[left], bits, tensor, code)
            _put(blocks, row[left[solved]], bits[column[left[solved]]], code)
            todo[left[solved]] = False
    changed = before.copy()
    changed[row[~todo], column[~todo]] = 0
    after = _decoded(blocks, tensor)
    if not np.array_equal(after, changed, equal_nan=True):
        # The bits of this type are not what they seemed, so none of its places is to be had.
        todo = before[row, column] != 0
        blocks = np.array(tensor.blocks[rows])
    return Zeroed(rows, blocks, todo)


def _decoded(blocks: Bytes, tensor: GgufTensor) -> Values:
    """Return the values [b, n] of blocks [b, w]."""
    return dequantised(blocks, tensor.type, (len(blocks), tensor.block))


def _solved(
    blocks: Bytes, row: Index, column: Index, bits: Index, tensor: GgufTensor, code: int
) -> npt.NDArray[np.bool_]:
    """Tell which places [p] a code makes 0."""
    rows, within = np.unique(row, return_inverse=True)
    trial = blocks[rows]
    _put(trial, within, bits[column], code)
    solved: npt.NDArray[np.bool_] = _decoded(trial, tensor)[within, column] == 0
    return solved


def _by_use(blocks: Bytes, row: Index, column: Index, bits: Index, tensor: GgufTensor) -> list[int]:
    """Return all codes, those first that make most of some places 0."""
    uses = [
        int(_solved(blocks, row, column, bits, tensor, code).sum())
        for code in range(2 ** bits.shape[1])
    ]
    return sorted(range(len(uses)), key=lambda code: -uses[code])


def _put(blocks: Bytes, row: Index, bits: Index, code: int) -> None:
    """Write one code into the bits [p, k] of places [p] of blocks [b, w]."""
    for number in range(bits.shape[1]):
        byte, single = bits[:, number] // 8, (1 << bits[:, number] % 8).astype(np.uint8)
        # Two codes may share a byte, so each write sees the one before.
        np.bitwise_and.at(blocks, (row, byte), ~single)
        if code >> number & 1:
            np.bitwise_or.at(blocks, (row, byte), single)


@functools.cache
def _own_bits(type_name: str, block: int, width: int) -> Index:
    """Return for each weight of a block the numbers [n, k] of the bits that are its own."""
    touched = np.zeros((8 * width, block), dtype=np.bool_)
    masks = np.zeros((8 * width, width), dtype=np.uint8)
    numbers = np.arange(8 * width)
    masks[numbers, numbers // 8] = 1 << numbers % 8
    with np.errstate(all="ignore"):
        for draw in range(_DRAWS):
            base = _meaningless(f"{type_name}/{draw}", width)
            before = dequantised(base, type_name, (1, block))
            after = dequantised(base ^ masks, type_name, (8 * width, block))
            # A scale that is no number hides what the bits do.
            if np.isfinite(before).all():
                touched |= after != before
    alone = touched.sum(axis=1) == 1
    own = [np.flatnonzero(alone & touched[:, weight]) for weight in range(block)]
    fewest = min(len(bits) for bits in own)
    return np.array([bits[:fewest] for bits in own], dtype=np.int64).reshape(block, fewest)


def _meaningless(label: str, width: int) -> Bytes:
    """Return one block [1, w] of bytes that are always the same for a label."""
    digest = hashlib.shake_256(label.encode()).digest(width)
    return np.frombuffer(digest, dtype=np.uint8).reshape(1, width)
