"""Parameters put in place of others, and back bit for bit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor

from resect.records import CausalModel

Model = TypeVar("Model", bound=CausalModel)


def snapshot(model: CausalModel) -> dict[str, Tensor]:
    """Return copies of all parameters by name, on their devices."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def put(model: CausalModel, values: dict[str, Tensor]) -> None:
    """Write values [*] into the parameters of these names, bit for bit."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)


@contextlib.contextmanager
def restoring(model: Model, saved: dict[str, Tensor] | None = None) -> Iterator[Model]:
    """Let the block change any weights; restore every bit after it.

    Args:
        model: The model.
        saved: A `snapshot` of it, if there is one already.

    Yields:
        The model. A copy of its weights is held meanwhile.
    """
    saved = snapshot(model) if saved is None else saved
    try:
        yield model
    finally:
        put(model, saved)


@contextlib.contextmanager
def swapped(model: Model, values: dict[str, Tensor]) -> Iterator[Model]:
    """Put values into a model while the block runs; restore every bit after it."""
    parameters = dict(model.named_parameters())
    saved = {name: parameters[name].detach().clone() for name in values}
    put(model, values)
    try:
        yield model
    finally:
        put(model, saved)


def changes(model: CausalModel, before: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of those parameters that differ from `before`."""
    return {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if not torch.equal(parameter, before[name])
    }
