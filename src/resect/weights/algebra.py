"""Masks as sets: union, intersection, difference and overlap, with the origin of every parent.

Two masks can be combined if they are of the same model: the same fingerprint, tensors and dtypes,
and the same value at every place that both remove. The result names its operation and holds of each
parent its name, hash, count and whole origin, so that nothing about it has to be remembered.

Overlap against chance, the one definition of it: a random set takes as many weights of every tensor
as the mask does, because masks are mostly ranked within tensors; over the whole model two masks
that fill the same tensors would look alike without sharing a reason. Of the n weights of a tensor
two random sets of k₁ and k₂ share a hypergeometric number; let X be its sum over all tensors.

    expected     Λ = E X = Σ k₁·k₂/n
    enrichment   X/Λ
    p-value      P(Poisson(Λ) ≥ X)

A hypergeometric number is a sum of independent draws of 0 or 1 (Vatutin and Mikhailov 1982), so X
is one too, and from Λ + 1 on its upper tail lies under that of the Poisson distribution (Hoeffding
1956; Anderson and Samuels 1967): there the p-value is an upper bound of the exact one. It is close
while X² is small beside k₁ and k₂; of masks that share much it is far too large, and tiny still.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, NamedTuple, TypedDict

import numpy as np
from scipy import stats as scipy_stats

from resect.errors import InputError, unknown_name
from resect.weights.mask import Mask

Operation = Literal["union", "intersect", "subtract"]
_RULES = {"union": Mask.union, "intersect": Mask.intersect, "subtract": Mask.subtract}
# What the parents have in common and the result keeps.
_SHARED = ("model_id", "model_fingerprint", "tokenizer_fingerprint")


class Chance(NamedTuple):
    """How much two sets share, against two random ones with the same counts in every tensor.

    Attributes:
        shared: Weights that are in both.
        jaccard: Shared over all that are in either, in [0, 1]; 0 if both are empty.
        expected: Mean shared weights of random sets.
        expected_jaccard: Jaccard index of sets that share as many as expected.
        enrichment: `shared` over `expected`; None if nothing is expected.
        p_value: Upper bound of the probability that random sets share as many, see the header.
    """

    shared: int
    jaccard: float
    expected: float
    expected_jaccard: float
    enrichment: float | None
    p_value: float


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
        p_value: Upper bound of the probability that random sets share as many, see the header.
    """

    first: str
    second: str
    shared: int
    jaccard: float
    expected: float
    enrichment: float | None
    p_value: float


class ChanceRow(TypedDict):
    """What the tables of studies hold of an overlap; enrichment is 0 where nothing is expected."""

    jaccard: float
    expected_jaccard: float
    enrichment: float
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
    start, *operands = masks.values()
    result = start
    for mask in operands:
        # Every pair, because a subset may share nothing with a mask of another model.
        start.refuse_other_model(mask)
        result = _RULES[operation](result, mask)
    return Mask(result.tensors, _origin(operation, masks))


def _origin(operation: Operation, masks: Mapping[str, Mask]) -> dict[str, object]:
    meta = next(iter(masks.values())).meta
    forced = "; ".join(
        dict.fromkeys(str(mask.meta["forced"]) for mask in masks.values() if "forced" in mask.meta)
    )
    shared = {key: meta[key] for key in _SHARED if key in meta}
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
    rows = []
    for name, partner in combinations(masks, 2):
        masks[name].refuse_other_model(masks[partner])
        chance = against_chance(masks[name], masks[partner])
        rows.append(
            Overlap(
                first=name,
                second=partner,
                shared=chance.shared,
                jaccard=chance.jaccard,
                expected=chance.expected,
                enrichment=chance.enrichment,
                p_value=chance.p_value,
            )
        )
    return rows


def against_chance(mask: Mask, partner: Mask) -> Chance:
    """Set the overlap of two masks beside chance, as the header of this module defines it.

    The masks may be of two models of one origin, so places are compared and not values, which
    `Mask.intersect` would refuse; a tensor that the partner lacks shares nothing.
    """
    shared, expected = 0, 0.0
    for name, tensor in mask.tensors.items():
        if name in partner.tensors and tensor.size:
            index, partner_index = tensor.index.numpy(), partner.tensors[name].index.numpy()
            shared += np.intersect1d(index, partner_index, assume_unique=True).size
            expected += index.size * partner_index.size / tensor.size
    total = mask.count + partner.count
    return Chance(
        shared=shared,
        jaccard=shared / (total - shared) if total else 0.0,
        expected=expected,
        expected_jaccard=expected / (total - expected) if total else 0.0,
        enrichment=shared / expected if expected else None,
        p_value=float(scipy_stats.poisson.sf(shared - 1, expected)) if expected else 1.0,
    )


def chance_overlap(mask: Mask, partner: Mask) -> ChanceRow:
    """Return the overlap of two masks against chance as the tables of studies hold it."""
    chance = against_chance(mask, partner)
    return {
        "jaccard": chance.jaccard,
        "expected_jaccard": chance.expected_jaccard,
        "enrichment": chance.enrichment or 0.0,
        "p_value": chance.p_value,
    }


def rank_agreement(mask: Mask, partner: Mask) -> float | None:
    """Return Spearman's correlation of how many weights each mask takes from every tensor.

    With a ranking over the model this says whether the masks agree on where the weights are. Within
    tensors every tensor gives its own share before the set difference, so it says whether the set
    difference bites in the same tensors. None if one of the two takes as many from each.
    """
    counts = np.array(
        [
            [tensor.index.numel(), partner.tensors[name].index.numel()]
            for name, tensor in mask.tensors.items()
        ],
        dtype=np.float64,
    )
    if (counts.std(axis=0) == 0).any():
        return None
    return float(scipy_stats.spearmanr(counts[:, 0], counts[:, 1]).statistic)
