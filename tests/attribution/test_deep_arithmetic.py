"""The corners of arithmetic that docs/design/arithmetic.md states, value by value."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tiny
from resect.attribution.methods.snip import facilitation
from resect.attribution.sums import Sums
from resect.edit import prune_checkpoint, removed, restore_checkpoint
from resect.machine.processes import Processes
from resect.model import load_model, prunable_tensors
from resect.records import Encoded
from resect.weights.candidates import Candidates
from resect.weights.mask import Mask, MaskTensor
from resect.weights.scores import ScoreMeta, Scores
from resect.weights.select import select

META = ScoreMeta(
    method="snip", reduction="signed", keep=1.0, model_id="m", model_fingerprint="f",
    tokenizer_fingerprint="t", data_hash="d", examples=1, tokens=1, format="raw", skip=0,
    category="", seed=0,
)  # fmt: skip
TENSOR = "model.layers.0.mlp.up_proj.weight"


def ranked(tensors: dict[str, Tensor], keep: float = 1.0) -> Scores:
    """Return scores as a pass makes them: tensor by tensor, with every weight 1."""
    candidates = Candidates(keep, sum(tensor.numel() for tensor in tensors.values()))
    for name, tensor in tensors.items():
        candidates.add(name, tensor, torch.ones_like(tensor))
    return Scores(candidates.finish(), META)


def test_ties_at_the_edge_of_a_ranking_go_to_the_earlier_tensor_and_the_lower_index() -> None:
    tied = {"a": torch.tensor([1.0, 2.0, 1.0]), "b": torch.tensor([1.0, 3.0, 1.0])}
    # Of six, four: 3, 2 and of the four ones the first two, both in `a`.
    mask = select(ranked(tied), None, q=4 / 6, p=0, scope="model")
    assert {name: entry.index.tolist() for name, entry in mask.tensors.items()} == {
        "a": [0, 1, 2],
        "b": [1],
    }
    # The same where candidates were thrown away on the way.
    mask = select(ranked(tied, keep=4 / 6), None, q=4 / 6, p=0, scope="model")
    assert {name: entry.index.tolist() for name, entry in mask.tensors.items()} == {
        "a": [0, 1, 2],
        "b": [1],
    }
    # Within tensors two of three each.
    mask = select(ranked(tied), None, q=2 / 3, p=0)
    assert [entry.index.tolist() for entry in mask.tensors.values()] == [[0, 1], [0, 1]]


@pytest.mark.parametrize("count", [8, 40_000])
def test_both_zeros_are_one_score(count: int) -> None:
    # A weight of 0 has a score of either sign, by the sign of its gradient.
    zeros = torch.zeros(count)
    zeros[::3] = -0.0
    zeros[-1] = 1.0
    scores = ranked({"w": zeros})
    index = scores.tensors["w"].index
    assert index[0] == count - 1
    assert torch.equal(index[1:], torch.arange(count - 1))
    # And neither is above 0.
    assert select(scores, None, q=1.0, p=0).count == 1


def test_the_count_of_a_fraction_is_that_of_its_product_in_float64() -> None:
    scores = ranked({"w": torch.arange(1.0, 101.0)})
    # 0.29 is a little less than 29/100, and so is 0.7 than 7/10, but there the product is rounded.
    assert select(scores, None, q=0.29, p=0).count == math.floor(0.29 * 100) == 28
    assert select(scores, None, q=0.7, p=0).count == math.floor(0.7 * 100) == 70


def test_subnormal_scores_are_ranked_until_they_are_zero() -> None:
    weight = torch.tensor([1.0, 1.0, 1.0, 1.0])
    smallest = 2.0**-149
    gradient = -torch.tensor([2.0**-140, smallest, smallest / 2, 3 * smallest])
    # Half of the smallest number is rounded to the even one, which is 0.
    values = facilitation(weight, gradient)
    assert values.tolist() == [2.0**-140, smallest, 0.0, 3 * smallest]
    mask = select(ranked({"w": values}), None, q=1.0, p=0)
    assert mask.tensors["w"].index.tolist() == [0, 1, 3]
    # The product of two normal numbers of bfloat16 is taken in float32, where it is one of these.
    low = torch.tensor([2.0**-70], dtype=torch.bfloat16)
    assert facilitation(low, -low.float()).item() == 2.0**-140


def test_sums_over_examples_do_not_stop_where_bfloat16_does() -> None:
    ones = torch.ones(2, 2, dtype=torch.bfloat16)
    running = torch.zeros(1, dtype=torch.bfloat16)
    for _ in range(600):
        running += 1
    # 256 + 1 is rounded to 256; index_add_ adds one after another, too.
    added = torch.zeros(1, dtype=torch.bfloat16)
    added.index_add_(0, torch.zeros(600, dtype=torch.long), torch.ones(600, dtype=torch.bfloat16))
    assert running.item() == 256
    assert added.item() == 256
    sums = Sums({"w": ones}, {"gradient"})
    for number in range(600):
        sums.begin([Encoded(str(number), (1, 2), 1)])
        sums.add_gradient("w", ones)
    assert sums.totals["gradient"]["w"].dtype == torch.float32
    assert bool((sums.totals["gradient"]["w"] == 600).all())


def test_a_gradient_over_tokens_is_a_product_of_matrices_and_an_embedding_is_not_scored() -> None:
    layer = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    layer(torch.ones(600, 1, dtype=torch.bfloat16)).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.item() == 600
    model = tiny.build("llama")
    assert not {name for name in prunable_tensors(model) if "embed" in name or "lm_head" in name}


@pytest.mark.parametrize("processes", [2, 3, 7])
def test_sums_of_several_processes_differ_by_no_more_than_their_order_can(processes: int) -> None:
    draw = torch.Generator().manual_seed(0)
    gradients = torch.randn(1000, 50, generator=draw)
    alone = torch.zeros(50)
    for gradient in gradients:
        alone += gradient
    shares = [
        Processes(rank, processes).share(list(range(len(gradients)))) for rank in range(processes)
    ]
    assert sorted(number for share in shares for number in share) == list(range(len(gradients)))
    total = torch.zeros(50)
    for share in shares:
        part = torch.zeros(50)
        for number in share:
            part += gradients[number]
        total += part
    # Higham's bound for a sum in any order, on both sides: 2·(n - 1)·u·Σ|g| with u = 2^-24.
    bound = 2 * (len(gradients) - 1) * 2.0**-24 * gradients.abs().sum(dim=0)
    assert bool(((total - alone).abs() <= bound).all())
    assert not torch.equal(total, alone)
    # Whole numbers below 2^24 are exact in every order.
    whole = (gradients * 100).round()
    parts = [whole[torch.tensor(share)].sum(dim=0) for share in shares]
    assert torch.equal(torch.stack(parts).sum(dim=0), whole.sum(dim=0))


def test_a_negative_zero_comes_back_as_one(tmp_path: Path) -> None:
    model = tiny.build("llama")
    with torch.no_grad():
        model.get_parameter(TENSOR)[0, :2] = torch.tensor([-0.0, 2.0**-149])
    model.save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    before = model.get_parameter(TENSOR).detach().clone()
    index = torch.tensor([0, 1])
    entry = MaskTensor(
        tuple(before.shape), index, before.view(-1)[index], torch.zeros(2, dtype=torch.uint8)
    )
    mask = Mask({TENSOR: entry}, {})
    with removed(model, mask):
        cut = model.get_parameter(TENSOR).detach()[0, :2]
        assert cut.tolist() == [0.0, 0.0]
        assert not bool(cut.signbit().any())
    assert torch.equal(model.get_parameter(TENSOR).signbit(), before.signbit())
    prune_checkpoint(tmp_path / "model", mask, tmp_path / "cut")
    restore_checkpoint(tmp_path / "cut", mask, tmp_path / "whole")
    whole = load_model(tmp_path / "whole", device="cpu").model.get_parameter(TENSOR).detach()
    assert torch.equal(whole.view(torch.int32), before.view(torch.int32))
