"""A model named by its content: 32 hex digits, of two hashes of 16.

The first is over at most `SAMPLE` values of each parameter. It tells two training runs apart, and
versions up to 0.1.0 wrote nothing else (`resect.files.origin.same_print` compares with those). A
cut of few weights, or an edit of one fact, passes between the values that it reads.

The second is over every byte. The bytes of a parameter are read as integers x [n] of 32 bits, and
of each piece of `PIECE` of them the sum of wᵢ·xᵢ modulo 2⁶⁴ is hashed. The wᵢ are odd numbers that
look drawn: one changed integer always changes its sum, and several balance by chance alone, of
about 2⁻⁴⁸. Such sums take less time than loading, are made where the weights lie, and are the same
everywhere, since integers do not round. They stop nobody who makes two models collide on purpose.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from resect.machine.processes import gathered

SAMPLE = 4096
# The products of a piece stay in the cache of a processor.
PIECE = 2**18
_WIDTH = 4


def fingerprint_of(parameters: Iterable[tuple[str, Tensor]]) -> str:
    """Return the fingerprint of a model of which one parameter at a time is there."""
    sampled, whole = hashlib.sha256(), hashlib.sha256()
    for name, parameter in parameters:
        header = f"{name}/{tuple(parameter.shape)}/{parameter.dtype}".encode()
        flat = gathered(parameter.detach()).reshape(-1)
        step = max(1, flat.numel() // SAMPLE)
        # Through float32, because numpy has no bfloat16; the conversion loses nothing.
        sampled.update(header + flat[::step].float().cpu().numpy().tobytes())
        whole.update(header + sums_of(flat).cpu().numpy().tobytes())
    return sampled.hexdigest()[:16] + whole.hexdigest()[:16]


def sums_of(flat: Tensor) -> Tensor:
    """Return the sums [pieces] of the module's header, int64, of the bytes of a tensor [*]."""
    # Other devices than these lack products of such integers, or add them up in another width.
    if flat.device.type not in ("cpu", "cuda"):
        flat = flat.cpu()
    content = flat.contiguous().view(torch.uint8)
    factors = _factors().to(content.device)
    sums = []
    # A tensor without values has one piece, too.
    for start in range(0, max(1, content.numel()), _WIDTH * PIECE):
        words = _words(content[start : start + _WIDTH * PIECE])
        sums.append((words * factors[: words.numel()]).sum())
    return torch.stack(sums)


def _words(piece: Tensor) -> Tensor:
    """Return bytes [n] as integers of 32 bits [⌈n/4⌉], with zeros behind them."""
    lacking = -piece.numel() % _WIDTH
    # A parameter may be a view that starts between two such integers.
    if lacking or piece.storage_offset() % _WIDTH:
        piece = torch.cat([piece, piece.new_zeros(lacking)])
    return piece.view(torch.int32)


@functools.cache
def _factors() -> Tensor:
    """Return odd integers [PIECE], int64: the first of SplitMix64 (Steele et al. 2014)."""
    state = np.arange(1, PIECE + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    return torch.from_numpy((state | np.uint64(1)).view(np.int64))
