"""Start the work of `shared_work.py` in processes of its own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

import tiny
from resect.attribution.engine import attribute_many
from resect.attribution.settings import Pass
from resect.records import CausalModel, Encoded, Scope
from resect.weights.scores import Scores
from resect.weights.select import select
from shared_work import EXAMPLES, REDUCTIONS

SCOPES: tuple[Scope, ...] = ("tensor", "model")
Found = dict[str, Scores]


def run(
    model: CausalModel,
    encoded: Sequence[Encoded],
    reductions: tuple[str, ...] = REDUCTIONS,
    **settings: Any,
) -> Found:
    return attribute_many(
        model,
        tiny.tokenizer(),
        encoded,
        reductions=reductions,
        settings=Pass(dense=True, **settings),
    )


@cache
def base(architecture: str, count: int = EXAMPLES, method: str = "snip") -> Found:
    reductions = REDUCTIONS if method == "snip" else ("signed",)
    return run(tiny.build(architecture), tiny.examples(count), reductions, method=method)


def assert_same(scores: Found, expected: Found, factor: float = 1.0) -> None:
    """Compare scores within rounding, and the masks that come of them exactly.

    Each score is w·Σ over examples and tokens of a product δ·x in fp32. Another grouping or order
    adds the same terms up otherwise: for n terms the results differ by at most n·2⁻²⁴ of the sum of
    the terms' sizes, and so do δ and x, which are sums over at most 24 features in each of the few
    products between them and the loss. With n below 200 and terms that cancel to a tenth at worst
    where the score is not small beside the largest one of its tensor, that is 1e-4 of the score,
    or 1e-5 of the largest score.
    """
    assert list(scores) == list(expected)
    for reduction, reference_scores in expected.items():
        assert list(scores[reduction].tensors) == list(reference_scores.tensors)
        for name, tensor in reference_scores.tensors.items():
            result = scores[reduction].tensors[name]
            reference, values = torch.zeros(tensor.size), torch.zeros(tensor.size)
            reference[tensor.index] = tensor.value
            values[result.index] = result.value * factor
            scale = float(reference.abs().max())
            torch.testing.assert_close(values, reference, rtol=1e-4, atol=1e-5 * scale)
    for scope in SCOPES:
        mask, expected_mask = (
            select(by_reduction["signed"], protect, q=0.05, p=0.1 if protect else 0, scope=scope)
            for by_reduction in (scores, expected)
            for protect in [by_reduction.get("mean_of_abs")]
        )
        assert expected_mask.count > 0
        for name, entry in expected_mask.tensors.items():
            assert torch.equal(mask.tensors[name].index, entry.index)
            assert torch.equal(mask.tensors[name].value, entry.value)


def environment() -> dict[str, str]:
    import os

    import resect

    folders = [str(Path(resect.__file__).parents[1]), str(Path(__file__).parents[1])]
    return os.environ | {"PYTHONPATH": ":".join(folders), "OMP_NUM_THREADS": "1"}
