"""What a model attack leaves behind, and how everything else about a model is put back."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from resect.records import CausalModel


@dataclass(frozen=True)
class Patch:
    """A change of a model that is held apart from it.

    Attributes:
        applied: Returns a context in which the model is changed, in place and quickly; it may be
            entered many times. No bit of a weight differs after it.
        facts: What was done: settings, counts, losses.
    """

    applied: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
    facts: Mapping[str, object] = field(default_factory=dict)


class Replacement(NamedTuple):
    """A submodule that stands in for another one."""

    parent: nn.Module
    name: str
    module: nn.Module


def replacements(before: Mapping[nn.Module, Mapping[str, nn.Module | None]]) -> list[Replacement]:
    """Return the submodules that differ from those in `before`, from `children_of`."""
    return [
        Replacement(parent, name, child)
        for parent, children in before.items()
        for name, child in parent._modules.items()
        if child is not None and child is not children.get(name)
    ]


def children_of(model: CausalModel) -> dict[nn.Module, dict[str, nn.Module | None]]:
    """Return the direct submodules of every module."""
    return {module: dict(module._modules) for module in model.modules()}


@contextlib.contextmanager
def replaced(changes: list[Replacement]) -> Iterator[None]:
    """Put submodules in place while the block runs; the old ones come back after it."""
    old = [(change, change.parent._modules[change.name]) for change in changes]
    try:
        for change in changes:
            change.parent._modules[change.name] = change.module
        yield
    finally:
        for change, module in old:
            change.parent._modules[change.name] = module


@contextlib.contextmanager
def unchanged(model: CausalModel) -> Iterator[None]:
    """Undo what a trainer does to a model apart from training it.

    TRL, PEFT and transformers set more than adapters: a new `forward`, hooks, frozen weights,
    token ids in the configurations, the global random state. All of it is put back, also after an
    exception. Weight values are not copied: adapters leave them alone (a test says so).

    Args:
        model: The model; its modules keep their identity.
    """
    attributes = [
        (module, {key: _shallow(value) for key, value in vars(module).items()})
        for module in model.modules()
    ]
    flags = [(weight, weight.requires_grad, weight.grad) for weight in model.parameters()]
    configs = [(config, _config_state(config)) for config in _configs(model)]
    try:
        with _same_random_state():
            yield
    finally:
        for module, state in attributes:
            vars(module).clear()
            vars(module).update(state)
        for weight, flag, gradient in flags:
            weight.requires_grad_(flag)
            weight.grad = gradient
        for config, values in configs:
            vars(config).clear()
            vars(config).update(values)


def _shallow(value: object) -> object:
    # The tables of a module (submodules, hooks, parameters) are changed in place.
    return copy.copy(value) if isinstance(value, dict | list | set) else value


def _configs(model: CausalModel) -> list[object]:
    """Return every configuration object of the model and of its parts, each once."""
    configs: dict[int, object] = {}
    waiting = [
        getattr(module, name, None)
        for module in model.modules()
        for name in ("config", "generation_config")
    ]
    while waiting:
        config = waiting.pop()
        if config is None or id(config) in configs or not hasattr(config, "to_dict"):
            continue
        configs[id(config)] = config
        waiting += list(vars(config).values())
    return list(configs.values())


def _config_state(config: object) -> dict[str, object]:
    # Nested configurations keep their identity, because modules hold them too.
    return {
        key: value if hasattr(value, "to_dict") else copy.deepcopy(value)
        for key, value in vars(config).items()
    }


@contextlib.contextmanager
def _same_random_state() -> Iterator[None]:
    """Give Python, numpy and torch their random states back after the block."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - a trainer seeds it
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
