"""Where the units of a model lie: its neurons, its heads, its experts.

A unit is what belongs to it alone. What is told apart by the names and shapes of the layers of a
owner, never by a list of architectures:

    neuron   of an MLP: its row of every matrix that leads in (gate and up, or the one there is) and
             its column of the one that leads out; in a mixture, of the MLP of each expert
    head     of an attention: its columns of o and its rows of q, k and v. What heads share stays,
             because it is the others' too: k and v of groups, q and k under a norm over all heads
    expert   of a mixture: all weights of its matrices. Shared experts, which every token passes,
             are MLPs and none of its experts

A owner that is a half of one of these, or lies in the files in an order that is not known (fused q,
k and v, but for GPT-2's; experts of a class that does not say how gate and up lie), makes the model
one without such units, and the reason is kept with its scores: a cut that silently misses a layer
would make every later number wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import NamedTuple

from torch import Tensor, nn

from resect.model.places import Place
from resect.model.prunable import Coverage, PrunableWeight, find_prunable
from resect.records import CausalModel
from resect.weights.controls import random_mask, random_units
from resect.weights.mask import Mask
from resect.weights.scores import Scores
from resect.weights.units import Family, Piece, Units, families_of

# Names of the layers of an MLP, of an expert and of an attention.
LEAD_IN = (
    "gate_proj", "up_proj", "gate_up_proj", "c_fc", "fc1", "fc_in", "dense_h_to_4h", "w1", "w3",
)  # fmt: skip
LEAD_OUT = ("down_proj", "c_proj", "fc2", "fc_out", "dense_4h_to_h", "w2")
BOTH = "gate_up_proj"
HEADS_OUT = ("o_proj", "out_proj", "c_proj", "dense")
FUSED = "c_attn"
# Experts that are modules of their own: their list, and the number of one.
IN_LIST = re.compile(r"^(.*\bexperts)\.(\d+)$")


class _NoUnitsError(Exception):
    """Why units cannot be told apart."""


class _Span(NamedTuple):
    """Slices of one parameter: each unit has `width` of them, `step` apart, from `offset` on.

    Attributes:
        weight: The parameter.
        axis: Its axis that is divided.
        number: How many units.
        offset: First slice.
        width: Slices of each.
        step: Slices from one unit to the next.
        leads_out: These weights lead out of the units.
        expert: Place on axis 0 of a parameter of all experts; None for the whole parameter.
    """

    weight: PrunableWeight
    axis: int
    number: int
    offset: int = 0
    width: int = 1
    step: int = 1
    leads_out: bool = False
    expert: int | None = None


class _Part(NamedTuple):
    """The layers of one owner of a model.

    Attributes:
        name: Name of the module that holds them.
        layers: Last name of a layer, or of a parameter with an axis of experts, to its weight.
        modules: The modules of the model by name.
    """

    name: str
    layers: dict[str, PrunableWeight]
    modules: Mapping[str, nn.Module]

    @property
    def of_experts(self) -> bool:
        """Whether its parameters have an axis of experts."""
        return any(weight.layout.startswith("expert") for weight in self.layers.values())

    @property
    def class_name(self) -> str:
        """Class of the module."""
        return type(self.modules[self.name]).__name__

    def refusal(self, reason: str) -> _NoUnitsError:
        """Return the error that says what stands here."""
        return _NoUnitsError(f"{self.name} ({self.class_name}) {reason}")


def with_units(
    model: CausalModel, coverage: Coverage, scores: Mapping[str, Scores]
) -> dict[str, Scores]:
    """Return scores of which those of every weight say where the units of their model lie.

    Args:
        model: The model; one on the meta device will do.
        coverage: Its prunable weights.
        scores: Its scores, by reduction.
    """
    if not any(ranked.meta.keep == 1 for ranked in scores.values()):
        return dict(scores)
    units = find_units(model, coverage)
    return {
        reduction: replace(ranked, units=units) if ranked.meta.keep == 1 else ranked
        for reduction, ranked in scores.items()
    }


def find_units(model: CausalModel, coverage: Coverage) -> dict[str, Units]:
    """Return where the neurons, heads and experts of a model lie, or why it has none.

    Args:
        model: A Hugging Face causal LM; one on the meta device will do.
        coverage: Its prunable weights.
    """
    parts = _parts(model, coverage)
    finders: dict[str, Callable[[Sequence[_Part]], Iterator[Family]]] = {
        "neuron": _neurons,
        "head": _heads,
        "expert": _experts,
    }
    units = {}
    for unit, finder in finders.items():
        try:
            families = tuple(finder(parts))
        except _NoUnitsError as error:
            units[unit] = Units(refusal=str(error))
        else:
            units[unit] = Units(families, "" if families else f"a model without any {unit}")
    return units


def _parts(model: CausalModel, coverage: Coverage) -> list[_Part]:
    modules: dict[str, nn.Module] = dict(model.named_modules())
    parts: dict[str, _Part] = {}
    for weight in coverage.weights:
        name, _, layer = weight.module.rpartition(".")
        if weight.layout.startswith("expert"):
            name, layer = weight.module, weight.name.rpartition(".")[2]
        parts.setdefault(name, _Part(name, {}, modules)).layers[layer] = weight
    return list(parts.values())


def _neurons(parts: Sequence[_Part]) -> Iterator[Family]:
    for owner in parts:
        leading_in = [name for name in owner.layers if name in LEAD_IN]
        leading_out = [name for name in owner.layers if name in LEAD_OUT]
        if not leading_in:
            if owner.of_experts or re.search("MLP|FeedForward", owner.class_name):
                raise owner.refusal(f"holds {', '.join(owner.layers)}, which is no known MLP")
            continue
        if len(leading_out) != 1:
            raise owner.refusal(f"holds {', '.join(owner.layers)}: nothing there leads out")
        if re.search("MLP|FeedForward", owner.class_name) and _norms(owner):
            raise owner.refusal("has a norm over its neurons, so that each changes the others")
        weights = [owner.layers[name] for name in (*leading_in, leading_out[0])]
        experts = weights[0].shape[0] if owner.of_experts else 1
        for expert in range(experts):
            number = expert if owner.of_experts else None
            spans = [span for weight in weights for span in _mlp_spans(owner, weight, number)]
            count = spans[-1].number
            if any(span.number != count for span in spans):
                raise owner.refusal("has matrices that do not fit each other")
            name = owner.name if number is None else f"{owner.name}.{expert}"
            yield _family(name, spans)


def _mlp_spans(owner: _Part, weight: PrunableWeight, expert: int | None) -> Iterator[_Span]:
    """Yield what neurons have of one matrix of an MLP."""
    name = (weight.name if expert is not None else weight.module).rpartition(".")[2]
    into, out = _axes(owner, weight)
    if name in LEAD_OUT:
        yield _Span(weight, into, weight.shape[into], leads_out=True, expert=expert)
        return
    rows = weight.shape[out]
    if name != BOTH:
        yield _Span(weight, out, rows, expert=expert)
        return
    # Layers of this name halve what they give; experts may have gate and up in turns.
    apart = True if expert is None else getattr(owner.modules[owner.name], "is_concatenated", None)
    if apart is None:
        raise owner.refusal(f"does not say how gate and up lie in {weight.name}")
    for half in (0, 1):
        offset, step = (half * (rows // 2), 1) if apart else (half, 2)
        yield _Span(weight, out, rows // 2, offset, step=step, expert=expert)


class _Axes(NamedTuple):
    """The axes of a matrix along which it is led into and leads out."""

    into: int
    out: int


def _axes(owner: _Part, weight: PrunableWeight) -> _Axes:
    if weight.layout in ("out_in", "in_out"):
        return _Axes(1, 0) if weight.layout == "out_in" else _Axes(0, 1)
    # The layout of experts is a guess where their class says nothing.
    transposed = getattr(owner.modules[owner.name], "is_transposed", None)
    if transposed is None:
        raise owner.refusal(f"does not say which axis of {weight.name} is which")
    return _Axes(1, 2) if transposed else _Axes(2, 1)


def _heads(parts: Sequence[_Part]) -> Iterator[Family]:
    for owner in parts:
        out = next((name for name in HEADS_OUT if name in owner.layers), "")
        attends = "Attention" in owner.class_name
        if not attends and not {"q_proj", FUSED} & set(owner.layers):
            continue
        width = getattr(owner.modules[owner.name], "head_dim", None)
        if not out or not isinstance(width, int):
            raise owner.refusal(f"holds {', '.join(owner.layers)}, which is no known attention")
        last = owner.layers[out]
        sides = {name: _sides(owner, weight) for name, weight in owner.layers.items()}
        count, rest = divmod(sides[out].into, width)
        norms = [name for name, size in _norms(owner).items() if size > width]
        if set(norms) - {"q_norm", "k_norm"}:
            raise owner.refusal("has a norm over all heads, so that each changes the others")
        fused = owner.layers.get(FUSED)
        if fused is not None and fused.layout == "in_out" and sides[FUSED].out == 3 * count * width:
            thirds = [third * count * width for third in range(3)]
            spans = [_Span(fused, 1, count, start, width, width) for start in thirds]
        elif "q_proj" in sides and sides["q_proj"].out == count * width:
            spans = [
                _Span(
                    owner.layers[name], _axes(owner, owner.layers[name]).out, count, 0, width, width
                )
                for name in ("q_proj", "k_proj", "v_proj")
                if name in sides and sides[name].out == count * width
                if name.replace("proj", "norm") not in norms
            ]
        else:
            raise owner.refusal(f"holds {', '.join(owner.layers)}: no rows of one head are known")
        if rest:
            raise owner.refusal(f"leads out by {sides[out].into} columns, and a head has {width}")
        into = _axes(owner, last).into
        yield _family(owner.name, [*spans, _Span(last, into, count, 0, width, width, True)])


def _norms(owner: _Part) -> dict[str, int]:
    """Return the norms that stand beside the layers of an owner, and over how many numbers each."""
    return {
        name: sum(parameter.numel() for parameter in child.parameters())
        for name, child in owner.modules[owner.name].named_children()
        if "Norm" in type(child).__name__
    }


class _Sides(NamedTuple):
    """Numbers of what a matrix reads and of what it gives."""

    into: int
    out: int


def _sides(owner: _Part, weight: PrunableWeight) -> _Sides:
    axes = _axes(owner, weight)
    return _Sides(weight.shape[axes.into], weight.shape[axes.out])


def _experts(parts: Sequence[_Part]) -> Iterator[Family]:
    lists: dict[str, list[Piece]] = {}
    for owner in parts:
        listed = IN_LIST.match(owner.name)
        if not owner.of_experts and listed is None:
            continue
        if sum(name in LEAD_OUT for name in owner.layers) != 1:
            raise owner.refusal(f"holds {', '.join(owner.layers)}: which leads out is not known")
        name, first = (owner.name, 0) if listed is None else (listed[1], int(listed[2]))
        pieces = lists.setdefault(name, [])
        for layer, weight in owner.layers.items():
            for slot in weight.places:
                pieces.append(_expert(weight, slot, first, leads_out=layer in LEAD_OUT))
    for name, pieces in lists.items():
        yield Family(name, tuple(pieces))


def _expert(weight: PrunableWeight, slot: Place, first: int, *, leads_out: bool) -> Piece:
    """Return what experts have of one checkpoint tensor."""
    if not weight.layout.startswith("expert"):
        return Piece(slot.name, first, 1, 0, 0, slot.shape[0], slot.shape[0], leads_out)
    lying = _lying(weight, slot)
    start = lying.starts[0]
    if lying.axes[0] is None:
        return Piece(slot.name, start, 1, 0, 0, slot.shape[0], slot.shape[0], leads_out)
    return Piece(slot.name, start, slot.shape[lying.axes[0]], lying.axes[0], 0, 1, 1, leads_out)


def _family(name: str, spans: Sequence[_Span]) -> Family:
    return Family(name, tuple(piece for span in spans for piece in _pieces(span)))


class _Lying(NamedTuple):
    """How a checkpoint tensor lies in its parameter, by the axes of the parameter.

    Attributes:
        axes: The axis of the tensor that is this one; None where it has one slot on it.
        starts: The first slot on it.
    """

    axes: list[int | None]
    starts: list[int]


def _lying(weight: PrunableWeight, slot: Place) -> _Lying:
    steps = [prod(weight.shape[axis + 1 :]) for axis in range(len(weight.shape))]
    by_step = {
        step: axis
        for axis, (side, step) in enumerate(zip(slot.shape, slot.stride, strict=True))
        if side > 1
    }
    if not set(by_step) <= set(steps):
        raise _NoUnitsError(f"{slot.name} lies in {weight.name} across its axes")
    starts = [slot.offset // step % side for side, step in zip(weight.shape, steps, strict=True)]
    return _Lying([by_step.get(step) for step in steps], starts)


def _pieces(span: _Span) -> list[Piece]:
    """Return the places of a span in the checkpoint tensors of its parameter.

    Raises:
        _NoUnitsError: They do not hold it whole, or as no piece can say.
    """
    pieces = []
    for slot in span.weight.places:
        axes, starts = _lying(span.weight, slot)
        expert, axis = span.expert, axes[span.axis]
        if expert is not None and axes[0] is None:
            if starts[0] != expert:
                continue
            expert = None
        elif expert is not None:
            expert -= starts[0]
        offset = span.offset - starts[span.axis]
        length = 1 if axis is None else slot.shape[axis]
        last = offset + (span.number - 1) * span.step + span.width
        if axis is None or offset >= length or last <= 0:
            continue
        # Without the axis of experts, those behind it are numbered from the next one on.
        axis -= expert is not None
        pieces.append(
            Piece(
                slot.name, 0, span.number, axis, offset, span.width, span.step, span.leads_out,
                expert,
            )
        )  # fmt: skip
    shapes = {slot.name: slot.shape for slot in span.weight.places}
    wanted = prod(span.weight.shape) // span.weight.shape[span.axis] * span.width
    if span.expert is not None:
        wanted //= span.weight.shape[0]
    try:
        size = sum(piece.size(shapes) for piece in pieces)
    except ValueError as error:
        raise _NoUnitsError(f"{span.weight.name} lies in several tensors: {error}") from error
    if size != wanted:
        raise _NoUnitsError(f"{span.weight.name} lies in the files in an order that is not known")
    return pieces


def random_like(
    mask: Mask, model: CausalModel, weights: Mapping[str, Tensor], *, label: str, seed: int
) -> Mask:
    """Draw the random control of a mask: as many weights of every tensor, or as many whole units.

    Args:
        mask: The mask to match.
        model: Its model.
        weights: The prunable checkpoint tensors of that model.
        label: Name of the draw.
        seed: Seed of the draw.

    Raises:
        InputError: The model has no such units as the mask was made of.
        MismatchError: The mask belongs to another model, or holds parts of units.
    """
    unit = str(mask.meta.get("unit", "weight"))
    if unit == "weight":
        return random_mask(mask, weights, label=label, seed=seed)
    units = find_units(model, find_prunable(model, allow_partial=True))
    return random_units(mask, weights, families_of(units, unit), label=label, seed=seed)
