"""Memory that is freed, and memory that there is none of."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator

import torch

from resect.errors import InputError

_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h
_LARGE = 128 * 1024  # where glibc begins
_MOST = 32 * 2**20  # up to where glibc raises it by itself


@contextlib.contextmanager
def returned() -> Iterator[None]:
    """Have memory of large tensors go back to the system as soon as it is freed.

    glibc keeps what was freed below a threshold that grows to 32 MB, in a heap that shrinks from
    its end alone. Small tensors that are kept (candidates) lie between large ones that are not, so
    that the heap of a model with blocks of a few MB grew with every block: by 48 MB over the 24
    blocks of one of 170 MB. Larger tensors never go there. Elsewhere than on glibc nothing is done.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        yield
        return
    mallopt(_THRESHOLD, _LARGE)
    try:
        yield
    finally:
        mallopt(_THRESHOLD, _MOST)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception says that there is no memory left."""
    # The CPU's allocator, Triton and the system have no class of their own for it.
    words = (
        "can't allocate memory",
        "[CUDA]: out of memory",
        "Cannot allocate memory",
        "can't start new thread",
    )
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and any(one in str(error) for one in words)


@contextlib.contextmanager
def sparing(what: str, fix: str) -> Iterator[None]:
    """Turn running out of memory into one message.

    Raises:
        InputError: The block ran out of memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        lines = str(error).strip().splitlines()
        raise InputError(what, got=lines[0] if lines else "no memory left", fix=fix) from error
