"""The memory of this machine: what is free, what a group leaves, what is given back."""

from __future__ import annotations

import contextlib
import ctypes
import math
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from resect.errors import InputError
from resect.machine.devices import FULL, free_on

_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h
_LARGE = 128 * 1024  # where glibc begins
_MOST = 32 * 2**20  # up to where glibc raises it by itself


@contextlib.contextmanager
def returned() -> Iterator[None]:
    """Have memory of large tensors go back to the system as soon as it is freed.

    glibc keeps freed memory below a threshold, which grows to 32 MB, in a heap that shrinks only
    from its end. Small tensors that are kept (candidates) lie between large ones that are freed, so
    the heap of a model with blocks of a few MB grew with every block: by 48 MB over the 24 blocks
    of a model of 170 MB. Larger tensors never go there. What is free in the heap before goes back
    first. Without glibc nothing is done.
    """
    glibc = ctypes.CDLL(None) if sys.platform == "linux" else None
    mallopt, trim = (getattr(glibc, name, None) for name in ("mallopt", "malloc_trim"))
    if mallopt is None or trim is None:
        yield
        return
    trim(0)
    mallopt(_THRESHOLD, _LARGE)
    try:
        yield
    finally:
        mallopt(_THRESHOLD, _MOST)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception says that there is no memory left."""
    # The CPU's allocator, Triton and the system have no class of their own for it.
    phrases = (
        "can't allocate memory",
        "[CUDA]: out of memory",
        "Cannot allocate memory",
        "can't start new thread",
        *FULL,
    )
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and any(
        phrase in str(error) for phrase in phrases
    )


@contextlib.contextmanager
def sparing(message: str, fix: str) -> Iterator[None]:
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
        raise InputError(message, got=lines[0] if lines else "no memory left", fix=fix) from error


GROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def left_of_group() -> float:
    """Return the bytes that a container or a batch system leaves to this process, or infinity.

    A group has what its own limit and those of all groups around it leave. Pages of files that
    nobody has mapped count as free: the kernel drops them before it refuses memory.
    """
    return min(map(_left_of, _groups()), default=math.inf)


class _Group(NamedTuple):
    """Files of a group of processes: the bytes that it may have, and those that it has."""

    limit: Path
    used: Path


def _groups() -> Iterator[_Group]:
    """Yield each group that this process is in."""
    try:
        lines = OWN.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        number, kinds, path = line.split(":", 2)
        if number == "0":  # version 2
            root, limit, used = GROUPS, "memory.max", "memory.current"
        elif "memory" in kinds.split(","):
            root = GROUPS / "memory"
            limit, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            yield _Group(folder / limit, folder / used)
            # In a container the path may be that of the machine, and its folders not be there.
            if folder == root:
                break


def _left_of(group: _Group) -> float:
    try:
        limit, current = float(group.limit.read_text()), float(group.used.read_text())
    except (OSError, ValueError):
        # No such file, or "max": no limit.
        return math.inf
    return limit - current + _droppable(group.used.parent / "memory.stat")


def _droppable(path: Path) -> float:
    """Return the bytes of a group's pages that are of files and not mapped."""
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return 0.0
    counts = {words[0]: float(words[1]) for words in lines if len(words) == 2}
    # Version 1 counts the groups inside under names of their own.
    prefix = "total_" if "total_cache" in counts else ""
    mapped = "total_mapped_file" if prefix else "file_mapped"
    pages = sum(counts.get(f"{prefix}{state}_file", 0.0) for state in ("inactive", "active"))
    return max(0.0, pages - counts.get(mapped, 0.0))


def left_of_limits() -> float:
    """Return the bytes that `ulimit -v` and `ulimit -d` leave to this process, or infinity."""
    import psutil

    try:
        import resource
    except ImportError:  # not Unix
        return math.inf
    used = psutil.Process().memory_info()
    free = math.inf
    for limited, in_use in ((resource.RLIMIT_AS, used.vms), (resource.RLIMIT_DATA, _data_of(used))):
        limit = resource.getrlimit(limited)[0]
        if limit != resource.RLIM_INFINITY:
            free = min(free, max(0.0, float(limit - in_use)))
    return free


def _data_of(used: object) -> int:
    return int(getattr(used, "data", 0))  # of Linux alone


@dataclass(frozen=True)
class Free:
    """Free memory in bytes.

    Attributes:
        device: Where the model runs.
        host: Memory of the CPU; 0 if the model runs there, since that is the same memory.
        holds_model: The model is loaded and not part of what is free.
    """

    device: float
    host: float
    holds_model: bool = False


def free_memory(devices: Collection[torch.device] | None = None) -> Free:
    """Return what is free on this machine.

    Args:
        devices: Where a loaded model is; None for all GPUs, or the CPU if there is none.
    """
    import psutil

    available = float(psutil.virtual_memory().available)
    host = min(available, left_of_group(), left_of_limits())
    if devices is None:
        devices = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    # A GPU without memory of its own, as Apple's, shares that of the machine.
    free = [room for device in set(devices) if (room := free_on(device)) is not None]
    return Free(device=float(sum(free)), host=host) if free else Free(device=host, host=0.0)
