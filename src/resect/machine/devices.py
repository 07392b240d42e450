"""Which devices there are, and what torch calls the same thing on each kind of them.

CUDA is what is tested. Apple's and Intel's GPUs (`mps`, `xpu`) go the same way where torch has
them, and nobody has tried them: they are taken where they are named, never by themselves.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from resect.errors import InputError

KINDS = ("cuda", "mps", "xpu")
# Names the device of every command; `--device` goes before it.
DEVICE = "RESECT_DEVICE"
# What torch says of a device that is full, where it has no class of its own for it.
FULL = ("MPS backend out of memory", "XPU out of memory")


def is_accelerator(device: torch.device) -> bool:
    """Tell whether a device is a GPU of any kind."""
    return device.type in KINDS


def count_of(family: str) -> int:
    """Return how many devices of a kind torch can use on this machine."""
    count: int = _module(family).device_count()
    return count


def usual_device() -> str:
    """Return the device to use where none is named: that of RESECT_DEVICE, else CUDA or the CPU."""
    return os.environ.get(DEVICE) or ("cuda" if torch.cuda.is_available() else "cpu")


def check_device(device: str) -> str:
    """Return a device that is there.

    Raises:
        InputError: torch cannot use it here, or it is none.
    """
    allowed = ["cpu", "auto"]
    allowed += [f"{family}:{number}" for family in KINDS for number in range(count_of(family))]
    message = ""
    try:
        parsed = torch.device(device)
    except RuntimeError as error:
        raise InputError("unknown device", got=device, allowed=", ".join(allowed)) from error
    if parsed.type != "cpu" and parsed.type not in KINDS:
        message = "models are run on the CPU and on CUDA, MPS and XPU devices"
    elif parsed.type in KINDS and (parsed.index or 0) >= count_of(parsed.type):
        message = "this machine has no such device, or its torch cannot use it"
    if message:
        raise InputError(
            message,
            got=device,
            allowed=", ".join(allowed),
            fix=f"leave --device and {DEVICE} out to take what there is",
        )
    return device


def free_on(device: torch.device) -> float | None:
    """Return the free bytes of a GPU that has memory of its own, None for any other device."""
    if device.type not in ("cuda", "xpu"):
        return None
    return float(_module(device.type).mem_get_info(device)[0])


def empty_caches() -> None:
    """Give back what torch keeps of the memory of GPUs for later."""
    for family in KINDS:
        if count_of(family):
            _module(family).empty_cache()


def _module(family: str) -> Any:
    """Return torch's module for a kind of GPU; they have the same functions, and no common type."""
    return getattr(torch, family)
