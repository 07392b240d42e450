"""What is left of the memory that this process may use."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def left_of_group() -> float:
    """Return the bytes that a container or a batch system leaves to this process; infinity for all.

    A group has what its own limit and those of all groups around it leave. Pages of files that
    nobody has mapped count as free: the kernel drops them before it refuses memory.
    """
    return min((_left_of(most, used) for most, used in _groups()), default=math.inf)


def _groups() -> Iterator[tuple[Path, Path]]:
    """Yield the files of limit and use of each group that this process is in."""
    try:
        lines = OWN.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        number, kinds, path = line.split(":", 2)
        if number == "0":  # version 2
            root, most, used = GROUPS, "memory.max", "memory.current"
        elif "memory" in kinds.split(","):
            root = GROUPS / "memory"
            most, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        own = root / path.lstrip("/")
        for folder in (own, *own.parents):
            yield folder / most, folder / used
            # In a container the path may be that of the machine, and its folders not be there.
            if folder == root:
                break


def _left_of(most: Path, used: Path) -> float:
    try:
        limit, current = float(most.read_text()), float(used.read_text())
    except (OSError, ValueError):
        # No such file, or "max": no limit.
        return math.inf
    return limit - current + _droppable(used.parent / "memory.stat")


def _droppable(path: Path) -> float:
    """Return the bytes of a group's pages that are of files and not mapped."""
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return 0.0
    facts = {words[0]: float(words[1]) for words in lines if len(words) == 2}
    # Version 1 counts the groups inside under names of their own.
    first = "total_" if "total_cache" in facts else ""
    mapped = "total_mapped_file" if first else "file_mapped"
    pages = sum(facts.get(f"{first}{kind}_file", 0.0) for kind in ("inactive", "active"))
    return max(0.0, pages - facts.get(mapped, 0.0))


def left_of_limits() -> float:
    """Return the bytes that `ulimit -v` and `ulimit -d` leave to this process, infinity for all."""
    import psutil

    try:
        import resource
    except ImportError:  # not Unix
        return math.inf
    used = psutil.Process().memory_info()
    left = math.inf
    for kind, held in ((resource.RLIMIT_AS, used.vms), (resource.RLIMIT_DATA, _data_of(used))):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY:
            left = min(left, max(0.0, float(limit - held)))
    return left


def _data_of(used: object) -> int:
    return int(getattr(used, "data", 0))  # of Linux alone
