"""Another forward method for a module, and its own one back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from torch import nn


@contextlib.contextmanager
def forward_of(module: nn.Module, forward: Callable[..., object]) -> Iterator[None]:
    """Give one module another forward method while the block runs.

    A module may have a method of its own already: accelerate's hooks, which move tensors between
    devices, are set that way and must survive.
    """
    method = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.__dict__["forward"]
        if method is not None:
            module.forward = method
