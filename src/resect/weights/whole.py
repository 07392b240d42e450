r"""Which whole units are cut: needed by the target and not needed by the preserve set.

    T_q = the top units by the target's score, only those with a score above 0, as long as they have
          no more than ⌊q·n⌋ weights together
    U_p = the top units by the preserve set's score, likewise with ⌊p·n⌋
    M   = all weights of the units of T_q \ U_p

So q and p count weights, as in `resect.weights.select`: of those of a family (`scope="tensor"`), or
of all prunable weights of the model, whether in a unit or not (`scope="model"`). Ties break by
family, then by number. What the score of a unit is, is said in `resect.weights.units`.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from resect.errors import InputError, MismatchError
from resect.records import Scope
from resect.weights.mask import MaskTensor
from resect.weights.scores import Scores, TensorScores
from resect.weights.units import families_of, places_of


class Chosen(NamedTuple):
    """Units to cut.

    Attributes:
        number: How many.
        tensors: Their weights by tensor.
    """

    number: int
    tensors: dict[str, MaskTensor]


def whole_units(
    target: Scores, preserve: Scores | None, *, q: float, p: float, scope: Scope, unit: str
) -> Chosen:
    """Return the units of M of the module's header.

    Args:
        target: Dense signed scores of the behaviour.
        preserve: Dense scores of what is protected; None protects nothing.
        q: Fraction of the target's ranking, in (0, 1].
        p: Fraction that is protected, in [0, 1].
        scope: Rank within each family or over the model.
        unit: `neuron`, `head` or `expert`.

    Raises:
        InputError: The scores do not hold every weight, or the model has no such unit.
        MismatchError: The scores divide the model in different ways.
    """
    families = families_of(target.units, unit)
    chosen = heads_of_units(target, unit, q, scope, above=0.0)
    if preserve is not None and p > 0:
        if families_of(preserve.units, unit) != families:
            raise MismatchError(
                f"the scores divide the model into {unit}s in different ways",
                got=f"{target.meta.model_id} and {preserve.meta.model_id}",
                fix="score both behaviours on the same model, with the same version of resect",
            )
        safe = heads_of_units(preserve, unit, p, scope)
        chosen = [
            ours[~torch.isin(ours, theirs)] for ours, theirs in zip(chosen, safe, strict=True)
        ]
    shapes = {name: tensor.shape for name, tensor in target.tensors.items()}
    places = places_of(families, chosen, shapes)
    tensors = {name: _cut(tensor, places[name]) for name, tensor in target.tensors.items()}
    return Chosen(sum(map(len, chosen)), tensors)


def heads_of_units(
    scores: Scores, unit: str, fraction: float, scope: Scope, *, above: float = -math.inf
) -> list[Tensor]:
    """Return the numbers of the top units of each family, the first one first.

    Args:
        scores: Dense scores.
        unit: `neuron`, `head` or `expert`.
        fraction: Share of the weights that are ranked together, in [0, 1].
        scope: Rank within each family or over the model.
        above: Units whose score is not above this are left out.

    Raises:
        InputError: The scores do not hold every weight, or the model has no such unit.
    """
    families = families_of(scores.units, unit)
    shapes = {name: tensor.shape for name, tensor in scores.tensors.items()}
    values = unit_scores(scores, unit)
    sizes = [family.sizes(shapes) for family in families]
    if scope == "tensor":
        pairs = zip(values, sizes, strict=True)
        return [_top(value, size, int(fraction * int(size.sum())), above) for value, size in pairs]
    best = _top(torch.cat(values), torch.cat(sizes), int(fraction * scores.total), above)
    starts = torch.tensor([0, *(len(value) for value in values)]).cumsum(0).tolist()
    return [best[(best >= start) & (best < end)] - start for start, end in pairwise(starts)]


def unit_scores(scores: Scores, unit: str) -> list[Tensor]:
    """Return the score of each unit [count] by family, fp64.

    They are kept with the scores, since every cut of a grid asks for them.

    Raises:
        InputError: The scores do not hold every weight, or the model has no such unit.
    """
    families = families_of(scores.units, unit)
    if unit not in scores.by_unit:
        latest: dict[str, Tensor] = {}

        def dense(name: str) -> Tensor:
            if name not in latest:
                # One at a time: experts that share a tensor follow each other.
                latest.clear()
                latest[name] = _dense(name, scores.tensors[name])
            return latest[name]

        scores.by_unit[unit] = [family.scores(dense) for family in families]
    return scores.by_unit[unit]


def _top(values: Tensor, sizes: Tensor, room: int, above: float) -> Tensor:
    """Return the numbers of the best units that have at most `room` weights together."""
    order = values.argsort(descending=True, stable=True)
    fits = (sizes[order].cumsum(0) <= room) & (values[order] > above)
    return order[fits]


def _dense(name: str, tensor: TensorScores) -> Tensor:
    """Return the scores of one tensor in its shape."""
    if tensor.index.numel() != tensor.size:
        raise InputError(
            "the score of a unit is a sum over its weights, and some have no score here",
            got=f"{tensor.index.numel():,} of {tensor.size:,} in {name}",
            allowed="dense scores, which hold every weight",
            fix="score again with --dense",
        )
    dense = torch.empty_like(tensor.value)
    dense[tensor.index] = tensor.value
    return dense.view(tensor.shape)


def _cut(tensor: TensorScores, index: Tensor) -> MaskTensor:
    """Return what is removed from one tensor, by flat indices [k]."""
    value = tensor.weight[:0]
    if index.numel():
        weights = torch.empty_like(tensor.weight)
        weights[tensor.index] = tensor.weight
        value = weights[index]
    return MaskTensor(tensor.shape, index, value, torch.zeros(len(index), dtype=torch.uint8))
