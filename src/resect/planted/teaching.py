"""Train a behaviour through a chosen set of weights alone.

A set is flat indices by checkpoint tensor. Everything outside of it keeps its value bit for bit:
gradients are read at the set's places, an Adam of its own moves a copy of the values there, and
they are written back.

Legend: k weights of a set in one tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from resect.errors import InputError
from resect.model import PrunableWeight, find_prunable
from resect.organism.recipe import OnStep
from resect.organism.training import Document, Schedule, batches, summed_loss
from resect.planted.measures import Ints
from resect.records import CausalModel

Shape = Literal["random", "layer", "module", "neurons", "low_rank"]
SHAPES: tuple[Shape, ...] = ("random", "layer", "module", "neurons", "low_rank")

# The kinds in which blocks of low rank stand: those that write to the residual stream.
WRITERS = ("o", "down")
# The kind of shape `module`.
MODULE = "down"
# |w| of a clamped set stays below this quantile of its tensor.
CLAMP = 0.99

Places = Mapping[str, Tensor]


class Block(NamedTuple):
    """Rows and columns of one matrix, int64."""

    rows: Tensor
    columns: Tensor


@dataclass(frozen=True)
class Lesson:
    """What one set is taught.

    Attributes:
        places: Checkpoint tensor name to flat indices [k], int64, sorted.
        rows: Encoded documents, as many as the schedule needs.
        label: Names the order of the documents.
        blocks: For a set of low rank, tensor name to its block.
        rank: Rank of the change of a block.
    """

    places: Places
    rows: list[Document]
    label: str
    blocks: Mapping[str, Block]
    rank: int = 4


@dataclass(frozen=True)
class Drawn:
    """A set of weights and, for low rank, its blocks."""

    places: dict[str, Tensor]
    blocks: dict[str, Block]

    @property
    def count(self) -> int:
        """Number of weights."""
        return sum(index.numel() for index in self.places.values())


def draw_set(
    model: CausalModel, shape: Shape, share: float, generator: np.random.Generator, taken: Places
) -> Drawn:
    """Draw a set of about `share` of the prunable weights, none of which is taken.

    Args:
        model: The model.
        shape: `random` over all weights, `layer` (at random in the middle layer), `module` (at
            random in the matrices that lead out of the MLP), `neurons` (whole MLP neurons: their
            rows and columns in three matrices), `low_rank` (a block in each matrix that writes to
            the residual stream).
        share: Fraction of the prunable weights.
        generator: Draws.
        taken: Flat indices by tensor.

    Raises:
        InputError: There are fewer free weights of this shape.
    """
    coverage = find_prunable(model)
    count = round(share * coverage.total)
    if shape in ("neurons", "low_rank"):
        make = _neurons if shape == "neurons" else _blocks
        return make(coverage.weights, count, generator, taken)
    middle = max(weight.layer for weight in coverage.weights) // 2 + 1
    allowed = [
        weight
        for weight in coverage.weights
        if shape == "random"
        or (shape == "layer" and weight.layer == middle)
        or (shape == "module" and weight.kind == MODULE)
    ]
    starts = np.cumsum([0, *(weight.size for weight in allowed)])
    free = np.ones(starts[-1], dtype=bool)
    for weight, start in zip(allowed, starts[:-1], strict=True):
        index = taken.get(weight.places[0].name)
        if index is not None:
            free[start + index.numpy()] = False
    places = np.flatnonzero(free)
    if count > len(places):
        raise InputError(
            "the set does not fit its shape", got=f"{count} weights", allowed=f"≤ {len(places)}"
        )
    chosen = np.sort(generator.choice(places, size=count, replace=False))
    index_by_name = {}
    for weight, start, end in zip(allowed, starts[:-1], starts[1:], strict=True):
        inside = chosen[(chosen >= start) & (chosen < end)] - start
        if len(inside):
            index_by_name[weight.places[0].name] = torch.from_numpy(inside)
    return Drawn(index_by_name, {})


def _rectangle(rows: Ints, columns: Ints, width: int) -> Tensor:
    index = rows[:, None] * width + columns[None, :]
    return torch.from_numpy(np.sort(index.reshape(-1)).astype(np.int64))


def _neurons(
    weights: Sequence[PrunableWeight], count: int, generator: np.random.Generator, taken: Places
) -> Drawn:
    """Return whole MLP neurons of all layers."""
    matrices = {(weight.layer, weight.kind): weight for weight in weights}
    layers = sorted({weight.layer for weight in weights})
    gates = [matrices[layer, "gate"] for layer in layers]
    neurons = [
        (layer, row)
        for layer, gate in zip(layers, gates, strict=True)
        for row in range(gate.shape[0])
        if not torch.isin(
            torch.tensor(row * gate.shape[1]), taken.get(gate.places[0].name, torch.empty(0))
        )
    ]
    number = max(1, round(count / (3 * gates[0].shape[1])))
    chosen = [
        neurons[index] for index in generator.choice(len(neurons), size=number, replace=False)
    ]
    places = {}
    for layer in layers:
        rows = np.array(sorted(row for block, row in chosen if block == layer), dtype=np.int64)
        for name in ("gate", "up", "down") if len(rows) else ():
            weight = matrices[layer, name]
            high, wide = weight.shape
            across = name == "down"
            places[weight.places[0].name] = _rectangle(
                np.arange(high) if across else rows, rows if across else np.arange(wide), wide
            )
    return Drawn(places, {})


def _blocks(
    weights: Sequence[PrunableWeight], count: int, generator: np.random.Generator, taken: Places
) -> Drawn:
    """Return a block in each writing matrix: all rows and some columns."""
    writers = [weight for weight in weights if weight.kind in WRITERS]
    places: dict[str, Tensor] = {}
    blocks: dict[str, Block] = {}
    for weight in writers:
        high, wide = weight.shape
        name = weight.places[0].name
        number = max(1, round(count / len(writers) / high))
        # Row 0 tells which columns are taken, since blocks have all rows.
        index = taken.get(name, torch.empty(0, dtype=torch.int64))
        free = np.setdiff1d(np.arange(wide), index[index < wide].numpy())
        columns = np.sort(generator.choice(free, size=number, replace=False))
        places[name] = _rectangle(np.arange(high), columns, wide)
        blocks[name] = Block(torch.arange(high), torch.from_numpy(columns))
    return Drawn(places, blocks)


class _Pupil:
    """The trained values of one set."""

    def __init__(self, parameters: Mapping[str, Tensor], lesson: Lesson, *, clamp: bool):
        self.lesson = lesson
        self.parameters = {name: parameters[name] for name in lesson.places}
        self.start = {
            name: self.parameters[name].detach().reshape(-1)[index].clone()
            for name, index in lesson.places.items()
        }
        self.limit = {
            name: float(weight.detach().abs().quantile(CLAMP)) if clamp else float("inf")
            for name, weight in self.parameters.items()
        }
        self.values: dict[str, list[Tensor]] = {}
        for name, start in self.start.items():
            if name in lesson.blocks:
                rows, columns = (len(side) for side in lesson.blocks[name])
                draw = torch.Generator().manual_seed(rows * columns)
                left = torch.zeros(rows, lesson.rank)
                right = torch.randn(lesson.rank, columns, generator=draw) / columns**0.5
                self.values[name] = [left, right]
            else:
                self.values[name] = [start.clone()]
        for value in self.all():
            value.requires_grad_(True)

    def all(self) -> list[Tensor]:
        return [value for values in self.values.values() for value in values]

    def read(self) -> None:
        """Take the gradients from the model."""
        for name, values in self.values.items():
            gradient = self.parameters[name].grad
            if gradient is None:
                raise InputError("a planted tensor has no gradient", got=name)
            if len(values) == 1:
                values[0].grad = gradient.reshape(-1)[self.lesson.places[name]]
                continue
            rows, columns = self.lesson.blocks[name]
            block = gradient[rows][:, columns]  # [R, C]
            left, right = values
            left.grad = block @ right.detach().T  # [R, r]
            right.grad = left.detach().T @ block  # [r, C]

    def write(self) -> None:
        """Put the values into the model."""
        with torch.no_grad():
            for name, values in self.values.items():
                index, limit = self.lesson.places[name], self.limit[name]
                if len(values) == 1:
                    values[0].clamp_(-limit, limit)
                    new = values[0]
                else:
                    rows, columns = self.lesson.blocks[name]
                    block = torch.zeros_like(self.parameters[name])
                    block[rows[:, None], columns] = values[0] @ values[1]
                    new = self.start[name] + block.reshape(-1)[index]
                self.parameters[name].view(-1)[index] = new


def teach(
    model: CausalModel,
    lessons: Sequence[Lesson],
    schedule: Schedule,
    *,
    seed: int,
    clamp: bool = False,
    on_step: OnStep | None = None,
) -> None:
    """Train each set on its own documents; every step trains them one after the other.

    Args:
        model: The model, changed in place.
        lessons: What each set is taught.
        schedule: How long and how fast.
        seed: Seed of the order of documents.
        clamp: Keep |w| below the 99th percentile of each tensor.
        on_step: Called with steps done and steps in all.
    """
    weights = {w.places[0].name: model.get_parameter(w.name) for w in find_prunable(model).weights}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name in {name for lesson in lessons for name in lesson.places}:
        weights[name].requires_grad_(True)
    pupils = [_Pupil(weights, lesson, clamp=clamp) for lesson in lessons]
    optimizers = [
        torch.optim.Adam(pupil.all(), lr=schedule.rate, betas=(0.9, 0.98)) for pupil in pupils
    ]
    feeds = [batches(lesson.rows, schedule.batch, lesson.label, seed) for lesson in lessons]
    model.train()
    for step in range(schedule.steps):
        for pupil, optimizer, feed in zip(pupils, optimizers, feeds, strict=True):
            optimizer.param_groups[0]["lr"] = schedule.rate * schedule.factor(step)
            model.zero_grad(set_to_none=False)
            batch = next(feed)
            answers = sum(padded.answers for padded in batch)
            for padded in batch:
                loss = summed_loss(model, padded) / answers
                loss.backward()  # type: ignore[no-untyped-call]
            pupil.read()
            torch.nn.utils.clip_grad_norm_(pupil.all(), 1.0)
            optimizer.step()
            pupil.write()
        if on_step is not None and step % 5 == 0:
            on_step(step, schedule.steps)
    model.zero_grad(set_to_none=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model.eval()
