"""Selection by eye and by count, and the controls that must match it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from resect.errors import InputError, MismatchError
from resect.weights.controls import magnitude_matched, random_mask
from resect.weights.mask import Mask
from resect.weights.scores import ScoreMeta, Scores, TensorScores
from resect.weights.select import next_slice, select

META: dict[str, Any] = {
    "method": "snip", "keep": 1.0, "model_id": "m", "model_fingerprint": "f",
    "tokenizer_fingerprint": "t", "data_hash": "d", "examples": 1, "tokens": 1, "format": "raw",
    "skip": 0, "category": "", "seed": 0,
}  # fmt: skip


def scores(values: dict[str, Any], reduction: str = "signed", **meta: Any) -> Scores:
    tensors = {}
    for name, value in values.items():
        dense = torch.as_tensor(value, dtype=torch.float32)
        order = dense.reshape(-1).argsort(descending=True, stable=True)
        flat = dense.reshape(-1)[order]
        tensors[name] = TensorScores(tuple(dense.shape), order, flat, flat.abs())
    return Scores(tensors, ScoreMeta(reduction=reduction, **(META | meta)))


# By eye: 6 weights, q = 1/2 takes 3, p = 1/3 protects 2.
TARGET = {"w": [[5.0, 4.0, -1.0], [3.0, 2.0, -2.0]]}  # top 3: flat 0, 1, 3
PRESERVE = {"w": [[0.0, 9.0, 8.0], [1.0, 0.0, 0.0]]}  # top 2: flat 1, 2


def indices(mask: Mask) -> dict[str, list[int]]:
    return {name: tensor.index.tolist() for name, tensor in mask.tensors.items()}


def test_truth_table() -> None:
    mask = select(scores(TARGET), scores(PRESERVE, "mean_of_abs"), q=1 / 2, p=1 / 3)
    assert indices(mask) == {"w": [0, 3]}
    assert mask.tensors["w"].value.tolist() == [5.0, 3.0]
    following = next_slice(scores(TARGET), scores(PRESERVE, "mean_of_abs"), q=1 / 3, p=1 / 3)
    # Ranks 2 to 4 of the target are flat 3 and 4; the protected ones are not among them.
    assert indices(following) == {"w": [3, 4]}


@pytest.mark.parametrize(
    ("q", "p", "count"),
    [
        (1.0, 0.0, 4),  # only scores above 0
        (1.0, 1.0, 0),  # everything is protected
        (1 / 6, 0.0, 1),  # one weight
        (0.16, 0.0, 0),  # 0.96 of a weight: floor
        (0.5, 0.5, 2),  # protected: flat 1, 2 and 3, the first of no tie
    ],
)
def test_counts(q: float, p: float, count: int) -> None:
    expected = count if (q, p) != (0.5, 0.5) else 1
    assert select(scores(TARGET), scores(PRESERVE, "mean_of_abs"), q=q, p=p).count == expected


def test_ties_are_cut_by_flat_index() -> None:
    ties = scores({"a": [1.0] * 4, "b": [1.0] * 4})
    assert indices(select(ties, None, q=0.5, p=0)) == {"a": [0, 1], "b": [0, 1]}
    assert indices(select(ties, None, q=0.5, p=0, scope="model")) == {"a": [0, 1, 2, 3], "b": []}


@pytest.mark.parametrize("q", [0.0, -0.1, 1.1, float("nan")])
def test_q_out_of_range(q: float) -> None:
    with pytest.raises(InputError, match="q is out of range"):
        select(scores(TARGET), None, q=q, p=0)


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_p_out_of_range(p: float) -> None:
    with pytest.raises(InputError, match="p is out of range"):
        select(scores(TARGET), scores(PRESERVE), q=0.5, p=p)


def test_scores_that_do_not_belong_together() -> None:
    with pytest.raises(MismatchError, match="different models"):
        select(scores(TARGET), scores(PRESERVE, model_fingerprint="x"), q=0.5, p=0.5)
    with pytest.raises(MismatchError, match="different tokenizers"):
        select(scores(TARGET), scores(PRESERVE, tokenizer_fingerprint="x"), q=0.5, p=0.5)
    with pytest.raises(MismatchError, match="different tensors"):
        select(scores(TARGET), scores({"v": [1.0]}), q=0.5, p=0.5)
    with pytest.raises(InputError, match="have no sign"):
        select(scores(TARGET, "mean_of_abs"), None, q=0.5, p=0)


def masked(size: int = 4000, count: int = 300) -> tuple[Mask, dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    weights = {"a": torch.randn(size // 40, 40, generator=draw), "b": torch.randn(7, 3)}
    values = {"a": weights["a"].abs().tolist(), "b": (-torch.ones(7, 3)).tolist()}
    indices = scores(values)
    tensors = {
        name: TensorScores(t.shape, t.index, t.value, weights[name].reshape(-1)[t.index])
        for name, t in indices.tensors.items()
    }
    return select(Scores(tensors, indices.meta), None, q=count / size, p=0), weights


def test_random_control_matches_counts_and_avoids_the_mask() -> None:
    mask, weights = masked()
    control = random_mask(mask, weights, label="x", seed=1)
    assert {n: t.index.numel() for n, t in control.tensors.items()} == {"a": 300, "b": 0}
    assert control.intersect(mask).count == 0
    assert (control.tensors["a"].index.diff() > 0).all()
    assert torch.equal(
        control.tensors["a"].value, weights["a"].reshape(-1)[control.tensors["a"].index]
    )
    again = random_mask(mask, weights, label="x", seed=1)
    assert indices(again) == indices(control)
    assert indices(random_mask(mask, weights, label="y", seed=1)) != indices(control)


def test_random_control_draws_every_free_weight_equally() -> None:
    mask, weights = masked()
    hits = torch.zeros(4000)
    for seed in range(60):
        hits[random_mask(mask, weights, label="x", seed=seed).tensors["a"].index] += 1
    assert float(hits[mask.tensors["a"].index].sum()) == 0
    free = torch.ones(4000, dtype=torch.bool)
    free[mask.tensors["a"].index] = False
    expected = 60 * 300 / 3700
    assert float(hits[free].mean()) == pytest.approx(expected)
    # A binomial's spread; a shifted or clumped draw would be far off.
    assert float(hits[free].var()) == pytest.approx(expected, rel=0.15)
    assert float(hits[:100].mean()) == pytest.approx(float(hits[-100:].mean()), rel=0.35)


def test_magnitude_control_matches_quantiles() -> None:
    # Taking the largest |w| leaves no equals; half of the range leaves enough of them.
    mask, weights = masked()
    every_second = torch.zeros(300, dtype=torch.bool)
    every_second[::2] = True
    halved = Mask({n: t.keep(every_second[: t.index.numel()]) for n, t in mask.tensors.items()}, {})
    control = magnitude_matched(halved, weights, seed=3)
    assert control.count == halved.count
    assert control.intersect(halved).count == 0
    mine, theirs = (m.tensors["a"].value.abs().sort().values for m in (halved, control))
    assert float((mine - theirs).abs().max()) < 0.5
    assert float(mine.mean()) == pytest.approx(float(theirs.mean()), rel=0.05)
