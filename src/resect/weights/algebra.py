"""Masks as sets: union, intersection, difference and overlap, with the origin of every parent.

Two masks can be combined if they are of the same model: the same fingerprint, tensors and dtypes,
and the same value at every place that both remove. The result names its operation and holds of each
parent its name, hash, count and whole origin, so that nothing about it has to be remembered.

Overlap against chance: two random sets that take k₁ and k₂ of the n weights of each tensor share
Σ k₁·k₂/n weights on average; enrichment is the number shared over that. The p-value is that of the
hypergeometric distribution over the whole model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
from scipy import stats as scipy_stats

from resect.errors import InputError, unknown_name
from resect.stats import overlap_p_value
from resect.weights.mask import Mask

Operation = Literal["union", "intersect", "subtract"]
_RULES = {"union": Mask.union, "intersect": Mask.intersect, "subtract": Mask.subtract}
# What the parents have in common and the result keeps.
_SHARED = ("model_id", "model_fingerprint", "tokenizer_fingerprint")


@dataclass(frozen=True)
class Overlap:
    """How much two masks share, against chance.

    Attributes:
        first: Name of one mask.
        second: Name of the other.
        shared: Weights that both remove.
        jaccard: Shared over all that either removes, in [0, 1]; 0 if both are empty.
        expected: Mean shared weights of two random sets with the same counts in every tensor.
        enrichment: `shared` over `expected`; None if nothing is expected.
        p_value: Probability that random sets of these sizes share as many.
    """

    first: str
    second: str
    shared: int
    jaccard: float
    expected: float
    enrichment: float | None
    p_value: float


def combine(operation: Operation, masks: Mapping[str, Mask]) -> Mask:
    """Combine two or more masks; `subtract` takes all others away from the first.

    Args:
        operation: `union`, `intersect` or `subtract`.
        masks: Name, a file name for instance, to mask, in order.

    Returns:
        The set; where both hold a weight its value and round are those of the first.

    Raises:
        InputError: The operation is unknown, or fewer than two masks are given.
        MismatchError: The masks belong to different models.
    """
    if operation not in _RULES:
        raise unknown_name("operation", operation, list(_RULES))
    if len(masks) < 2:
        raise InputError("two masks or more are needed", got=", ".join(masks) or "none")
    first, *others = masks.values()
    result = first
    for other in others:
        # Every pair, because a subset may share nothing with a mask of another model.
        first.refuse_other_model(other)
        result = _RULES[operation](result, other)
    return Mask(result.tensors, _origin(operation, masks))


def _origin(operation: Operation, masks: Mapping[str, Mask]) -> dict[str, Any]:
    first = next(iter(masks.values()))
    forced = "; ".join(
        dict.fromkeys(str(m.meta["forced"]) for m in masks.values() if "forced" in m.meta)
    )
    shared = {key: first.meta[key] for key in _SHARED if key in first.meta}
    return (
        shared
        | ({"forced": forced} if forced else {})
        | {
            "operation": operation,
            "parents": [
                {"name": name, "hash": mask.hash, "count": mask.count, "meta": dict(mask.meta)}
                for name, mask in masks.items()
            ],
        }
    )


def overlaps(masks: Mapping[str, Mask]) -> list[Overlap]:
    """Return the overlap of every pair.

    Raises:
        InputError: Fewer than two masks are given.
        MismatchError: The masks belong to different models.
    """
    if len(masks) < 2:
        raise InputError("two masks or more are needed", got=", ".join(masks) or "none")
    return [_overlap(one, other, masks) for one, other in combinations(masks, 2)]


def _overlap(one: str, other: str, masks: Mapping[str, Mask]) -> Overlap:
    first, second = masks[one], masks[other]
    shared = first.intersect(second).count
    expected = sum(
        tensor.index.numel() * second.tensors[name].index.numel() / tensor.size
        for name, tensor in first.tensors.items()
        if tensor.size
    )
    return Overlap(
        first=one,
        second=other,
        shared=shared,
        jaccard=first.overlap(second),
        expected=expected,
        enrichment=shared / expected if expected else None,
        p_value=overlap_p_value(first.total, first.count, second.count, shared),
    )


def chance_overlap(first: Mask, second: Mask) -> dict[str, float]:
    """Return overlap of two masks against chance within each tensor.

    Two random sets of k and m of a tensor's n weights share k·m/n in the mean (hypergeometric).
    The sum over tensors is close to Poisson for sparse sets, which gives the p-value. The masks may
    be of two models of one origin, so places are compared and not values, which `Mask.intersect`
    would refuse.
    """
    shared = sum(
        np.intersect1d(tensor.index.numpy(), second.tensors[name].index.numpy()).size
        for name, tensor in first.tensors.items()
        if name in second.tensors
    )
    expected = sum(
        first.tensors[name].index.numel() * second.tensors[name].index.numel() / tensor.size
        for name, tensor in first.tensors.items()
        if name in second.tensors
    )
    union = first.count + second.count - shared
    return {
        "jaccard": shared / union if union else 0.0,
        "expected_jaccard": expected / (first.count + second.count - expected) if union else 0.0,
        "enrichment": shared / expected if expected else 0.0,
        "p_value": float(scipy_stats.poisson.sf(shared - 1, expected)) if expected else 1.0,
    }


def rank_agreement(first: Mask, second: Mask) -> float | None:
    """Return Spearman's correlation of how many weights each mask takes from every tensor.

    With a ranking over the model this says whether the masks agree on where the weights are. Within
    tensors every tensor gives its own share before the set difference, so it says whether the set
    difference bites in the same places. None where one of the two is constant.
    """
    counts = np.array(
        [
            [first.tensors[name].index.numel(), second.tensors[name].index.numel()]
            for name in first.tensors
        ],
        dtype=np.float64,
    )
    if (counts.std(axis=0) == 0).any():
        return None
    found = scipy_stats.spearmanr(counts[:, 0], counts[:, 1])
    return float(found.statistic)
