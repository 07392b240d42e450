"""Orders of all weights of one planted model, by variant.

Weights are numbered over the prunable tensors in model order. A variant with rounds has an order of
its own for every depth, since its cut is scored again after each part.

Legend: N prunable weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resect.attribution.engine import attribute
from resect.attribution.rounds import contrasted
from resect.attribution.settings import AttributeSettings
from resect.data.encode import encode
from resect.data.load import BehaviourSet
from resect.edit.live import removed
from resect.model import prunable_tensors
from resect.planted.measures import Floats, Ints, first_of, order_of
from resect.planted.variants import DRIFT, ORACLE, Variant
from resect.records import Encoded
from resect.stats import rng
from resect.weights.mask import Mask, MaskTensor

# Of a cut model this fraction is scored: more than |S| and what is protected together.
REACH = 0.08


@dataclass
class Subject:
    """A planted model and what methods may look at.

    Attributes:
        model: The model.
        tokenizer: Its tokenizer.
        data: Behaviour sets `hazard`, `preserve` and `benign_style`.
        others: Prunable tensors of the checkpoints `oracle` and `drift` compare with.
        seed: Seed of the plant.
    """

    model: Any
    tokenizer: Any
    data: Mapping[str, BehaviourSet]
    others: Mapping[str, Mapping[str, Tensor]]
    seed: int
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    known: dict[Any, Floats] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Note the shapes, which number the weights."""
        self.shapes = {n: tuple(w.shape) for n, w in prunable_tensors(self.model).items()}

    @property
    def sizes(self) -> list[int]:
        """Number of weights of each tensor."""
        return [int(np.prod(shape)) for shape in self.shapes.values()]

    def mask(self, chosen: Ints) -> Mask:
        """Return the mask of weights by their numbers."""
        weights = prunable_tensors(self.model)
        starts = np.cumsum([0, *self.sizes])
        chosen, tensors = np.sort(chosen), {}
        for at, (name, shape) in enumerate(self.shapes.items()):
            low, high = np.searchsorted(chosen, [starts[at], starts[at + 1]])
            index = torch.from_numpy(chosen[low:high] - starts[at])
            value = weights[name].reshape(-1)[index].clone()
            number = torch.zeros(len(index), dtype=torch.uint8)
            tensors[name] = MaskTensor(shape, index, value, number)
        return Mask(tensors, {})

    def numbers(self, mask: Mask) -> Ints:
        """Return the numbers of a mask's weights."""
        starts = np.cumsum([0, *self.sizes])
        parts = [
            mask.tensors[name].index.numpy() + start
            for name, start in zip(self.shapes, starts[:-1], strict=True)
        ]
        return np.concatenate(parts).astype(np.int64)


def order(subject: Subject, variant: Variant) -> Ints:
    """Return the order of all weights [N] in one scoring."""
    return order_of(_key(subject, variant, None), _noise(subject, variant))


def first(subject: Subject, variant: Variant, whole: Ints, depth: int) -> Ints:
    """Return the numbers of the `depth` weights that a variant cuts.

    Args:
        subject: The planted model.
        variant: How to rank.
        whole: The variant's order from one scoring.
        depth: Number of weights.
    """
    if variant.rounds == 1:
        return whole[:depth]
    taken = whole[: depth // variant.rounds]
    for at in range(1, variant.rounds):
        key = _key(subject, variant, taken)
        key[taken] = -np.inf
        count = depth * (at + 1) // variant.rounds - len(taken)
        able = np.flatnonzero(np.isfinite(key))
        best = able[first_of(key[able], count, _noise(subject, variant))]
        taken = np.concatenate([taken, best])
    return taken


def with_rounds(whole: Ints, cuts: Sequence[Ints]) -> Ints:
    """Return an order in which smaller cuts come first, and what none of them takes last."""
    rank = np.empty(len(whole))
    rank[whole] = np.arange(len(whole))
    level = np.full(len(whole), len(cuts))
    for at in reversed(range(len(cuts))):
        level[cuts[at]] = at
    return np.lexsort((rank, level)).astype(np.int64)


def _noise(subject: Subject, variant: Variant) -> np.random.Generator:
    return rng(f"localise/ties/{variant.name}", subject.seed)


def _key(subject: Subject, variant: Variant, cut: Ints | None) -> Floats:
    """Return what the variant ranks by [N], higher first; tensors compared as its scope says."""
    if variant.method in (ORACLE, DRIFT):
        return _difference(subject, variant.method)
    key = _scores(subject, variant, cut)
    if variant.scope == "tensor":
        key = _within(key, subject.sizes)
    if variant.p:
        importance = _dense(subject, "snip", "mean_of_abs", "preserve", 0, None)
        safe = _within(importance, subject.sizes) if variant.scope == "tensor" else importance
        if variant.scope == "tensor":
            protected = safe > -variant.p
        else:
            count = int(variant.p * len(safe))
            protected = safe >= np.partition(safe, len(safe) - count)[len(safe) - count]
        known = key[np.isfinite(key)]
        key = np.where(protected, key - 2 * (known.max() - known.min() + 1), key)
    return key


def _within(key: Floats, sizes: Sequence[int]) -> Floats:
    """Return minus the share of its own tensor that stands before each weight; ties share."""
    parts, start = [], 0
    for size in sizes:
        own = key[start : start + size]
        finite = np.sort(own[np.isfinite(own)])
        above = np.where(
            np.isfinite(own), len(finite) - np.searchsorted(finite, own, side="right"), np.inf
        )
        parts.append(-above / size)
        start += size
    return np.concatenate(parts)


def _difference(subject: Subject, name: str) -> Floats:
    now, before = prunable_tensors(subject.model), subject.others[name]
    parts = [(now[tensor] - before[tensor]).abs().reshape(-1) for tensor in subject.shapes]
    return torch.cat(parts).double().numpy()


def _scores(subject: Subject, variant: Variant, cut: Ints | None) -> Floats:
    return _dense(
        subject, variant.method, "signed", f"hazard-{variant.contrast}", variant.skip, cut
    )


def _dense(
    subject: Subject, method: str, reduction: str, task: str, skip: int, cut: Ints | None
) -> Floats:
    """Return scores of all weights [N]; those of the intact model are kept.

    Of a cut model only the best are scored, -inf stands for the rest.
    """
    place = (method, reduction, task, skip)
    if cut is None and place in subject.known:
        return subject.known[place].copy()
    name, _, contrast = task.partition("-")
    rows = _encoded(subject, name, skip)
    if contrast:
        other = _encoded(subject, {"style": "benign_style"}.get(contrast, contrast), skip)
        rows = contrasted(rows, other)
    settings = AttributeSettings(
        method=method,
        reduction=reduction,
        dense=cut is None,
        keep=None if cut is None else REACH,
        seed=subject.seed,
    )
    with contextlib.nullcontext() if cut is None else removed(subject.model, subject.mask(cut)):
        found = attribute(subject.model, subject.tokenizer, rows, settings)
    parts = []
    for tensor in found.tensors.values():
        dense = np.full(tensor.size, -np.inf)
        dense[tensor.index.numpy()] = tensor.value.double().numpy()
        parts.append(dense)
    dense = np.concatenate(parts)
    if cut is None:
        subject.known[place] = dense.copy()
    return dense


def _encoded(subject: Subject, name: str, skip: int) -> list[Encoded]:
    return encode(subject.data[name].split("calibration").examples, subject.tokenizer, skip=skip)
