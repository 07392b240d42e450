"""Agreement of two masks, beside chance."""

from __future__ import annotations

import numpy as np
from scipy import stats as scipy_stats

from resect.mask import Mask


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
