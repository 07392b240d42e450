"""Run with the same bits on every x86-64 machine that has AVX2.

What a library computes depends on the instructions that it finds: vectors of another width add up
in another order. `pin` has all of them take one path, before they are loaded:

- torch's own kernels and oneDNN the one for AVX2, which newer processors have too;
- MKL its COMPATIBLE branch. Its AVX2 branch is a common path on Intel's processors alone: on those
  of AMD MKL takes AUTO in its place.
- NumPy and OpenBLAS the ones for AVX2 (Haswell). torch's products of matrices go through these
  (`resect.model.common_path`), since MKL's COMPATIBLE branch has vectors of SSE2.

It is for commands on the organism, whose results are meant to be the same everywhere; a user's own
model is computed by what is fastest here (`resect.machine.products`).
"""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Whether commands on the organism ask for this at all.
PORTABLE = True

# Set where the pins hold, for provenance; worker processes inherit it together with the pins.
MARK = "RESECT_PORTABLE"
PATH = "avx2, products by OpenBLAS"
# As NumPy names the library of its wheels from PyPI.
BLAS = "scipy-openblas"

PINS = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    "OPENBLAS_NUM_THREADS": "1",
    # As NumPy 2.4 and later name them.
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
}
# What would limit or choose instructions in another way.
DROPPED = (
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_DEBUG_CPU_TYPE",
    "DNNL_MAX_CPU_ISA",
    "NPY_ENABLE_CPU_FEATURES",
)
# These read the environment when they are loaded, and never again.
READERS = ("torch", "numpy")
NEEDED = frozenset({"avx2", "fma"})
CPU = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Portable:
    """Whether results are the same on every machine.

    Attributes:
        holds: Whether they are.
        reason: Why not; empty if they are.
    """

    holds: bool
    reason: str = ""


def pin() -> Portable:
    """Take the common path, over what the environment says; workers inherit it.

    Call it before torch and NumPy are loaded. Where the path cannot be had nothing is changed but
    the mark, and the answer says why.
    """
    reason = _obstacle()
    if reason:
        os.environ.pop(MARK, None)
        return Portable(holds=False, reason=reason)
    before = {name: os.environ.get(name) for name in (*PINS, *DROPPED)}
    os.environ.update(PINS)
    for name in DROPPED:
        os.environ.pop(name, None)
    blas = BLAS if is_pinned() else _blas()
    if blas != BLAS:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({} if value is None else {name: value})
        return Portable(holds=False, reason=f"NumPy multiplies by {blas} here and not by {BLAS}")
    os.environ[MARK] = PATH
    return Portable(holds=True)


def is_pinned() -> bool:
    """Tell whether the pins were set before, in this process or in one that started it."""
    pinned = all(os.environ.get(name) == value for name, value in PINS.items())
    return pinned and os.environ.get(MARK) == PATH and not any(map(os.environ.get, DROPPED))


def _blas() -> str:
    """Return the name of the library that NumPy multiplies matrices with."""
    import numpy as np

    built: Any = np.show_config(mode="dicts")
    return str(built.get("Build Dependencies", {}).get("blas", {}).get("name", "no library"))


def _obstacle() -> str:
    """Say what stands against the common path, or nothing."""
    if not PORTABLE:
        return "switched off in this version"
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return f"this is no x86-64 machine but {platform.machine()}"
    if not _features() >= NEEDED:
        return "this processor is not known to have AVX2 and FMA"
    if is_pinned():
        return ""
    loaded = [name for name in READERS if name in sys.modules]
    return f"{' and '.join(loaded)} had been loaded with other settings" if loaded else ""


def _features() -> set[str]:
    """Return the names of what the processor can do; none where the system does not say."""
    try:
        lines = CPU.read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())
