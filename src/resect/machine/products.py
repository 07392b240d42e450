"""Which library multiplies float32 matrices on a CPU: torch's choice, or oneDNN.

torch leaves them to MKL, which on AMD's processors does without the wider vectors that they have.
oneDNN, which comes with torch too, takes less than half of the time there, and differs by rounding
(docs/design/products.md). Commands choose by the maker of the processor; a process that imports
resect as a library keeps what it has, unless the variable says otherwise.
"""

from __future__ import annotations

import os
from pathlib import Path

from resect.errors import InputError
from resect.machine.portable import is_pinned

# Worker processes inherit it.
CHOICE = "RESECT_PRODUCTS"
ONEDNN, TORCH = "onednn", "torch"
CPU = Path("/proc/cpuinfo")
# As processors name themselves.
SLOW_BY_MKL = ("AuthenticAMD", "HygonGenuine")


def choose_products() -> None:
    """Choose for this process and its workers, unless the user has."""
    os.environ.setdefault(CHOICE, ONEDNN if _vendor() in SLOW_BY_MKL else TORCH)


def are_by_onednn() -> bool:
    """Tell whether oneDNN is to multiply. The portable mode has a path of its own.

    Raises:
        InputError: The variable says something else than one of the two.
    """
    choice = os.environ.get(CHOICE) or TORCH
    if choice not in (ONEDNN, TORCH):
        raise InputError(
            f"{CHOICE} names no library", got=choice, allowed=f"{ONEDNN} or {TORCH}", fix="unset it"
        )
    return choice == ONEDNN and not is_pinned()


def _vendor() -> str:
    """Return the maker of the processor; nothing where the system does not say."""
    try:
        lines = CPU.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id"))
    return next(names, "")
