"""Which weights of a block write to the residual stream: found by derivatives, not by names.

A block adds to the stream what its last matrices give. Where nothing but a number stands between
such a matrix W and the output x of its block, the derivative of v . x by what W gives is a multiple
of v, for any vector v, at every token. So the derivative by W itself has no part across v: its
columns (nn.Linear), its rows (Conv1D) or those of each expert are multiples of v. Weights that
write by way of an activation or another matrix have no such derivative.

The reading paths are closed meanwhile: a norm is given its input as a constant, so that what
attention wrote reaches the end of the block along the stream alone. A norm whose own output has
that derivative stands between a matrix and the stream (OLMo 2, Gemma 2); its matrices are found in
the same way before it. Such a norm divides by a number and multiplies by a gain g, so that it
writes nothing along d where it is given nothing along g * d.

Legend: h the width of the stream, T tokens, * any further axes.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from resect.model.prunable import blocks
from resect.records import CausalModel

# Largest part across v, as a share of the derivative's length; weights that do not write have
# nearly all of theirs there.
ACROSS = 0.1
# Of what a block gives, the stream is the first tensor.
Stream = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Writer:
    """One parameter that writes to the residual stream.

    Attributes:
        name: Its name in memory.
        block: Position of its block.
        axis: Which of its axes is the stream's.
        gain: [h] of the norm by way of which it writes; None without one.
    """

    name: str
    block: int
    axis: int
    gain: Tensor | None = None


class Passed(NamedTuple):
    """What passed a norm: what it was given and what it gave, [*, h] both."""

    module: nn.Module
    given: Tensor
    gave: Tensor


class _Reach(NamedTuple):
    """Derivatives of the end of a block: by each parameter and by each norm's output."""

    parameters: list[Tensor | None]
    norms: list[Tensor | None]


def stream_of(output: Stream) -> Tensor:
    """Return the residual stream [*, h] of what a block was given or gives."""
    return output if isinstance(output, Tensor) else output[0]


@contextlib.contextmanager
def at_ends(model: CausalModel, on_end: Callable[[int, Tensor, Tensor], None]) -> Iterator[None]:
    """Call `on_end` with position, input and output [*, h] of every block while this one runs."""

    def hook(position: int) -> Callable[..., None]:
        def after(_: nn.Module, args: tuple[Tensor, ...], named: dict[str, Tensor], x: Stream):  # type: ignore[no-untyped-def]
            on_end(position, args[0] if args else named["hidden_states"], stream_of(x))

        return after

    hooks = [
        block.register_forward_hook(hook(position), with_kwargs=True)
        for position, block in enumerate(blocks(model))
    ]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def find_writers(model: CausalModel, inputs: dict[str, Tensor]) -> list[Writer]:
    """Find the parameters of all blocks that write to the residual stream, biases too.

    Args:
        model: A Hugging Face causal LM that is wholly in memory; left as it was.
        inputs: Token ids and attention mask [B, T] that are put to it. Experts that none of the
            tokens is sent to are taken for what the others of their block are.
    """
    parts = blocks(model)
    ends: dict[int, Tensor] = {}
    passed: dict[int, list[Passed]] = {position: [] for position in range(len(parts))}

    def on_end(position: int, _given: Tensor, gave: Tensor) -> None:
        ends[position] = gave

    with _open(model, parts), _norms_closed(parts, passed), at_ends(model, on_end):
        with torch.enable_grad():
            model(**inputs, use_cache=False)
        return [
            writer
            for position, block in enumerate(parts)
            for writer in _of_block(model, position, block, ends[position], passed[position])
        ]


def _of_block(
    model: CausalModel, position: int, block: nn.Module, end: Tensor, passed: Sequence[Passed]
) -> list[Writer]:
    inside = {id(parameter) for parameter in block.parameters()}
    width = end.shape[-1]
    named = {
        name: parameter
        for name, parameter in model.named_parameters()
        if id(parameter) in inside and width in parameter.shape and parameter.is_floating_point()
    }
    v = _probe(width, end)
    reach = _derivatives(end, v, named, passed)
    writers = _along(reach.parameters, named, v, position, None)
    for norm, gradient in zip(passed, reach.norms, strict=True):
        last = norm.gave.dim() - 1
        if gradient is not None and gradient.shape[last] == width and _is_along(gradient, last, v):
            before = _derivatives(norm.given, v, named, [])
            writers += _along(before.parameters, named, v, position, _gain(norm))
    own = {id(parameter) for norm in passed for parameter in norm.module.parameters()}
    return [writer for writer in writers if id(named[writer.name]) not in own]


def _probe(width: int, like: Tensor) -> Tensor:
    """Return a vector [h] that no weight is made for; the same in every call."""
    draw = torch.Generator().manual_seed(width)
    return torch.randn(width, generator=draw).to(like.device, like.dtype)


def _derivatives(
    end: Tensor, v: Tensor, named: dict[str, nn.Parameter], passed: Sequence[Passed]
) -> _Reach:
    """Return the derivatives of v . x, summed over tokens, by parameters and outputs of norms."""
    leaves = [*named.values(), *(norm.gave for norm in passed)]
    gradients = torch.autograd.grad((end * v).sum(), leaves, retain_graph=True, allow_unused=True)
    return _Reach(list(gradients[: len(named)]), list(gradients[len(named) :]))


def _along(
    gradients: Sequence[Tensor | None],
    named: dict[str, nn.Parameter],
    v: Tensor,
    position: int,
    gain: Tensor | None,
) -> list[Writer]:
    """Return the parameters whose derivatives lie along v, with their like that had none."""
    own: dict[str, int | None] = {}
    for name, gradient in zip(named, gradients, strict=True):
        if gradient is None or not bool(gradient.any()):
            continue
        along = [
            axis
            for axis, size in enumerate(gradient.shape)
            if size == len(v) and _is_along(gradient, axis, v)
        ]
        own[name] = along[-1] if along else None
    # Experts that no token reached are as those that one did.
    like = {_of_all_experts(name): axis for name, axis in own.items() if axis is not None}
    writers = []
    for name, parameter in named.items():
        axis = own[name] if name in own else like.get(_of_all_experts(name))
        if axis is not None and parameter.shape[axis] == len(v):
            writers.append(Writer(name, position, axis, gain))
    return writers


def _of_all_experts(name: str) -> str:
    """Return a parameter's name without numbers, which experts of a block have in common."""
    return re.sub(r"\.\d+(?=\.)", ".N", name)


def _is_along(gradient: Tensor, axis: int, v: Tensor) -> bool:
    """Tell whether a derivative has no part across v along one of its axes."""
    rows = gradient.float().movedim(axis, -1)
    unit = v.float() / v.float().norm()
    across = rows - (rows @ unit).unsqueeze(-1) * unit
    return bool(across.norm() <= ACROSS * rows.norm()) and bool(rows.any())


def _gain(norm: Passed) -> Tensor:
    """Return the gain [h] of a norm, up to a factor."""
    with torch.no_grad():
        ones = torch.ones_like(norm.given.detach()).flatten(0, -2)[:1]
        gain: Tensor = norm.module(ones)
    return gain.flatten().float()


@contextlib.contextmanager
def _open(model: CausalModel, parts: Sequence[nn.Module]) -> Iterator[None]:
    """Let the parameters of all blocks have derivatives while the block runs, without dropout."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    training = [module for module in model.modules() if module.training]
    inside = {id(parameter) for block in parts for parameter in block.parameters()}
    model.eval()
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(id(parameter) in inside and parameter.is_floating_point())
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module in training:
            module.training = True


@contextlib.contextmanager
def _norms_closed(parts: Sequence[nn.Module], passed: dict[int, list[Passed]]) -> Iterator[None]:
    """Give every norm its input as a constant while the block runs; note what passes it."""
    given: dict[int, Tensor] = {}
    hooks = []

    def close(module: nn.Module, args: tuple[object, ...]) -> tuple[object, ...] | None:
        if not args or not isinstance(args[0], Tensor):
            return None
        given[id(module)] = args[0]
        return (args[0].detach().requires_grad_(), *args[1:])

    def note(position: int) -> Callable[..., None]:
        def after(module: nn.Module, _args: object, output: object) -> None:
            if id(module) in given and isinstance(output, Tensor) and output.requires_grad:
                passed[position].append(Passed(module, given.pop(id(module)), output))

        return after

    for position, block in enumerate(parts):
        for module in block.modules():
            if "Norm" in type(module).__name__:
                hooks.append(module.register_forward_pre_hook(close))
                hooks.append(module.register_forward_hook(note(position)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
