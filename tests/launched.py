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
from resect.records import Encoded, Scope
from resect.weights.scores import Scores
from resect.weights.select import select
from shared_work import EXAMPLES, REDUCTIONS

SCOPES: tuple[Scope, ...] = ("tensor", "model")
Found = dict[str, Scores]


def run(
    model: Any,
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


def assert_same(found: Found, expected: Found, factor: float = 1.0) -> None:
    """Compare scores within rounding, and the masks that come of them exactly.

    Each score is w·Σ over examples and tokens of a product δ·x in fp32. Another grouping or order
    adds the same terms up otherwise: for n terms the results differ by at most n·2⁻²⁴ of the sum of
    the terms' sizes, and so do δ and x, which are sums over at most 24 features in each of the few
    products between them and the loss. With n below 200 and terms that cancel to a tenth at worst
    where the score is not small beside the largest one of its tensor, that is 1e-4 of the score,
    or 1e-5 of the largest score.
    """
    assert list(found) == list(expected)
    for reduction, scores in expected.items():
        assert list(found[reduction].tensors) == list(scores.tensors)
        for name, tensor in scores.tensors.items():
            other = found[reduction].tensors[name]
            mine, theirs = torch.zeros(tensor.size), torch.zeros(tensor.size)
            mine[tensor.index], theirs[other.index] = tensor.value, other.value * factor
            scale = float(mine.abs().max())
            torch.testing.assert_close(theirs, mine, rtol=1e-4, atol=1e-5 * scale)
    for scope in SCOPES:
        one, two = (
            select(each["signed"], protect, q=0.05, p=0.1 if protect else 0, scope=scope)
            for each in (found, expected)
            for protect in [each.get("mean_of_abs")]
        )
        assert two.count > 0
        for name, entry in two.tensors.items():
            assert torch.equal(one.tensors[name].index, entry.index)
            assert torch.equal(one.tensors[name].value, entry.value)


def environment() -> dict[str, str]:
    import os

    import resect

    folders = [str(Path(resect.__file__).parents[1]), str(Path(__file__).parents[1])]
    return os.environ | {"PYTHONPATH": ":".join(folders), "OMP_NUM_THREADS": "1"}
