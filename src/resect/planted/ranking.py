r"""How a variant ranks and cuts the weights of one planted model, by the code that users run.

A cut is a mask of `resect.weights.select.select`, or with rounds one of
`resect.attribution.rounds.locate`. The benchmark asks for a number of weights and those two for a
fraction q, so q is the largest whose cut has no more weights than that: within tensors ⌊q·n⌋ grows
in all tensors of a size at once, and a cut of some exact number need not exist. (In rounds, with a
preserve set, q is the one that gives the number without rounds.)

Membership needs an order of all weights, which is that of the least q at which T_q has a weight:

    (r + 1) / n   for the weight at place r of its tensor's or of the model's list, from 0

Weights that come in together are in random order; what is protected, and so never cut, comes last.
Of whole units all weights come in together, at the q that makes room for them (`weights/whole.py`),
and weights outside of all units are never cut.
Weights are numbered over the prunable tensors in model order.

Legend: N prunable weights; n those that are ranked together, of a tensor or of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from resect.attribution.engine import attribute
from resect.attribution.rounds import contrasted, locate
from resect.attribution.settings import AttributeSettings
from resect.data.encode import encode
from resect.data.load import BehaviourSet
from resect.model import LoadedModel, prunable_tensors
from resect.planted.measures import Floats, Ints, order_of
from resect.planted.variants import DRIFT, ORACLE, Variant
from resect.records import Encoded
from resect.stats import rng
from resect.weights.mask import Mask, MaskTensor
from resect.weights.scores import Scores
from resect.weights.select import select
from resect.weights.units import places_of
from resect.weights.whole import heads_of_units, unit_scores

# Data files of the contrasts.
CONTRASTS = {"style": "benign_style", "preserve": "preserve"}
# Relative step off a fraction that is a boundary: far below the distance of two boundaries, and far
# above the rounding of q·n.
STEP = 1e-12


@dataclass
class Subject:
    """A planted model and what methods may look at.

    Attributes:
        loaded: The model and its tokenizer.
        data: Behaviour sets `hazard`, `preserve` and `benign_style`.
        others: Prunable tensors of the checkpoints `oracle` and `drift` compare with.
        seed: Seed of the plant.
    """

    loaded: LoadedModel
    data: Mapping[str, BehaviourSet]
    others: Mapping[str, Mapping[str, Tensor]]
    seed: int
    shapes: dict[str, tuple[int, ...]] = field(init=False)
    _target: dict[Variant, Scores] = field(default_factory=dict, init=False)
    _preserve: Scores | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Note the shapes, which number the weights."""
        weights = prunable_tensors(self.loaded.model)
        self.shapes = {name: tuple(weight.shape) for name, weight in weights.items()}

    @property
    def starts(self) -> Ints:
        """Number of the first weight of each tensor, and N."""
        return np.cumsum([0, *(prod(shape) for shape in self.shapes.values())])

    def mask(self, numbers: Ints) -> Mask:
        """Return the mask of weights by their numbers."""
        weights = prunable_tensors(self.loaded.model)
        starts, numbers, tensors = self.starts, np.sort(numbers), {}
        for (name, shape), start, end in zip(
            self.shapes.items(), starts[:-1], starts[1:], strict=True
        ):
            low, high = np.searchsorted(numbers, [start, end])
            index = torch.from_numpy(numbers[low:high] - start)
            value = weights[name].reshape(-1)[index].clone()
            tensors[name] = MaskTensor(
                shape, index, value, torch.zeros(len(index), dtype=torch.uint8)
            )
        return Mask(tensors, {})

    def numbers(self, mask: Mask) -> Ints:
        """Return the numbers of a mask's weights."""
        return self.numbers_at({name: tensor.index for name, tensor in mask.tensors.items()})

    def encoded(self, name: str, skip: int) -> list[Encoded]:
        """Return the examples of a behaviour set that methods calibrate on."""
        examples = self.data[name].split("calibration").examples
        return encode(examples, self.loaded.tokenizer, skip=skip)

    def scores(self, variant: Variant) -> Scores:
        """Return the score of every weight of the intact model, as the variant makes it."""
        key = replace(variant, scope="tensor", p=0.0, rounds=1, unit="weight")
        # Only the latest are held: variants that share them follow each other.
        if key not in self._target:
            examples = contrasted(self.target(variant), self.contrast(variant))
            settings = replace(self.settings(variant), dense=True)
            self._target = {key: attribute(*self.loaded, examples, settings)}
        return self._target[key]

    def target(self, variant: Variant) -> list[Encoded]:
        """Return the examples of the hazard that the variant scores."""
        return self.encoded("hazard", variant.skip)

    def contrast(self, variant: Variant) -> list[Encoded]:
        """Return the examples whose scores are subtracted, if any are."""
        name = CONTRASTS.get(variant.contrast)
        return [] if name is None else self.encoded(name, variant.skip)

    def settings(self, variant: Variant) -> AttributeSettings:
        """Return how the variant scores."""
        return AttributeSettings(method=variant.method, skip=variant.skip, seed=self.seed)

    def protecting(self, variant: Variant) -> Scores | None:
        """Return the importance for the preserve set; None if the variant protects nothing."""
        if not variant.p:
            return None
        keep = variant.p if variant.unit == "weight" else 1.0
        if self._preserve is None or self._preserve.meta.keep != keep:
            settings = AttributeSettings(reduction="mean_of_abs", keep=keep, seed=self.seed)
            self._preserve = attribute(*self.loaded, self.encoded("preserve", 0), settings)
        return self._preserve

    def protected(self, variant: Variant) -> Ints:
        """Return the numbers of the weights that the variant never cuts."""
        if variant.unit != "weight":
            return self._outside_units(variant)
        scores = self.protecting(variant)
        if scores is None:
            return np.empty(0, dtype=np.int64)
        heads = scores.heads(variant.p, variant.scope)
        return self.numbers_at(
            {
                name: tensor.index[:head]
                for (name, tensor), head in zip(scores.tensors.items(), heads, strict=True)
            }
        )

    def _outside_units(self, variant: Variant) -> Ints:
        """Return the numbers of the weights that are in no unit, or in a protected one."""
        families = self.scores(variant).units[variant.unit].families
        free = [torch.ones(family.count, dtype=torch.bool) for family in families]
        scores = self.protecting(variant)
        if scores is not None:
            safe = heads_of_units(scores, variant.unit, variant.p, variant.scope)
            for units, protected in zip(free, safe, strict=True):
                units[protected] = False
        numbers = [units.nonzero().squeeze(1) for units in free]
        inside = self.numbers_at(places_of(families, numbers, self.shapes))
        return np.setdiff1d(np.arange(self.starts[-1]), inside)

    def listed(self, scores: Scores) -> list[Ints]:
        """Return the numbers of each tensor's weights by falling score."""
        return [
            scores.tensors[name].index.numpy() + start
            for name, start in zip(self.shapes, self.starts[:-1], strict=True)
        ]

    def numbers_at(self, places: Mapping[str, Tensor]) -> Ints:
        """Return the numbers of weights that are given by tensor and flat index."""
        starts = zip(self.shapes, self.starts[:-1], strict=True)
        return np.concatenate([places[name].numpy() + start for name, start in starts])


class Ranking(NamedTuple):
    """All weights of a model in the order in which a variant would cut them.

    Attributes:
        order: Numbers of the weights [N], the first to go at place 0.
        entry: For each place of `order` [K ≤ N] the least q at which the weight there is cut; the
            places beyond are of weights that never are.
    """

    order: Ints
    entry: Floats

    def fraction(self, count: int) -> float:
        """Return the largest q that cuts at most `count` weights, or else the least that cuts one.

        `count` is at least 1.
        """
        if count >= len(self.entry):
            return 1.0
        beyond = self.entry[count]
        if beyond > self.entry[0]:
            return float(beyond * (1 - STEP))
        return min(1.0, float(beyond * (1 + STEP)))


def rank(subject: Subject, variant: Variant) -> Ranking:
    """Return the order of all weights from one scoring of the intact model."""
    noise = rng(f"localise/ties/{variant.name}", subject.seed)
    if variant.method in (ORACLE, DRIFT):
        order = order_of(_difference(subject, variant.method), noise)
        return Ranking(order, np.arange(1, len(order) + 1) / len(order))
    entry = _entries(subject, subject.scores(variant), variant)
    protected = subject.protected(variant)
    late = entry.copy()
    late[protected] += 1  # no fraction is above 1
    order = order_of(-late, noise)
    return Ranking(order, entry[order[: len(order) - len(protected)]])


def cut(subject: Subject, variant: Variant, ranking: Ranking, count: int) -> Mask:
    """Return the largest cut of a variant that has at most `count` weights.

    Args:
        subject: The planted model.
        variant: How to rank and cut.
        ranking: The variant's order of all weights.
        count: Number of weights, at least 1.
    """
    if variant.method in (ORACLE, DRIFT):
        return subject.mask(ranking.order[:count])
    q, p, scope = ranking.fraction(count), variant.p, variant.scope
    preserve = subject.protecting(variant)
    if variant.rounds == 1:
        return select(subject.scores(variant), preserve, q=q, p=p, scope=scope, unit=variant.unit)
    return locate(
        *subject.loaded,
        subject.target(variant),
        preserve,
        contrast=subject.contrast(variant),
        q=q,
        p=p,
        scope=scope,
        rounds=variant.rounds,
        settings=subject.settings(variant),
    )


def with_rounds(order: Ints, cuts: Sequence[Ints]) -> Ints:
    """Return an order in which smaller cuts come first, and what none of them takes last."""
    rank = np.empty(len(order))
    rank[order] = np.arange(len(order))
    level = np.full(len(order), len(cuts))
    for number in reversed(range(len(cuts))):
        level[cuts[number]] = number
    return np.lexsort((rank, level)).astype(np.int64)


def _entries(subject: Subject, scores: Scores, variant: Variant) -> Floats:
    """Return for each weight [N] the least q at which T_q has it, were scores below 0 to count."""
    if variant.unit != "weight":
        return _entries_of_units(subject, scores, variant)
    lists = subject.listed(scores)
    if variant.scope == "model":
        values = torch.cat([scores.tensors[name].value for name in subject.shapes])
        falling = values.argsort(descending=True, stable=True).numpy()
        lists = [np.concatenate(lists)[falling]]
    entry = np.empty(scores.total)
    for numbers in lists:
        entry[numbers] = np.arange(1, len(numbers) + 1) / len(numbers)
    return entry


def _entries_of_units(subject: Subject, scores: Scores, variant: Variant) -> Floats:
    """Return the same where whole units are cut; it is 1 for weights outside of all units."""
    families = scores.units[variant.unit].families
    values = unit_scores(scores, variant.unit)
    sizes = [family.sizes(subject.shapes) for family in families]
    if variant.scope == "model":
        by_unit = _room(torch.cat(values), torch.cat(sizes)) / scores.total
        rooms = torch.split(by_unit, [len(value) for value in values])
    else:
        pairs = zip(values, sizes, strict=True)
        rooms = tuple(_room(value, size) / int(size.sum()) for value, size in pairs)
    entry = np.ones(scores.total)
    for family, room in zip(families, rooms, strict=True):
        for number, fraction in enumerate(room.tolist()):
            places = places_of([family], [torch.tensor([number])], subject.shapes)
            entry[subject.numbers_at(places)] = fraction
    return entry


def _room(values: Tensor, sizes: Tensor) -> Tensor:
    """Return for each unit how many weights it and all before it have [count], fp64."""
    order = values.argsort(descending=True, stable=True)
    room = torch.empty(len(order), dtype=torch.float64)
    room[order] = sizes[order].cumsum(0).double()
    return room


def _difference(subject: Subject, name: str) -> Floats:
    now, before = prunable_tensors(subject.loaded.model), subject.others[name]
    parts = [(now[tensor] - before[tensor]).abs().reshape(-1) for tensor in subject.shapes]
    return torch.cat(parts).double().numpy()
