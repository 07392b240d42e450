"""Scores equal a slow loop, and nothing that should not matter changes them."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import oracles
import tiny
from resect.attribution import AttributeSettings, attribute_many
from resect.errors import InputError
from resect.model import find_prunable
from resect.records import Scope
from resect.scores import METHODS
from resect.scoreset import Candidates, Scores, TensorScores
from resect.selection import select

REDUCTIONS = tuple(METHODS["snip"])
SCOPES: tuple[Scope, ...] = ("tensor", "model")


def dense(scores: Scores) -> dict[str, torch.Tensor]:
    found = {}
    for name, tensor in scores.tensors.items():
        flat = torch.full((tensor.size,), float("nan"))
        flat[tensor.index] = tensor.value
        found[name] = flat.reshape(tensor.shape)
    return found


def run(model: Any, encoded: Any, **settings: Any) -> dict[str, Scores]:
    return attribute_many(
        model,
        tiny.tokenizer(),
        encoded,
        reductions=REDUCTIONS,
        settings=AttributeSettings(dense=True, **settings),
    )


@pytest.mark.parametrize("architecture", [*tiny.ARCHITECTURES, "gemma3_vision"])
def test_scores_and_masks_equal_the_slow_loop(architecture: str) -> None:
    model, encoded = tiny.build(architecture), tiny.examples(5)
    fast = run(model, encoded)
    weights = find_prunable(model).weights
    assert {weight.layer for weight in weights} == {0, 1}
    each = oracles.gradients(model, [weight.name for weight in weights], encoded)
    slow: dict[str, dict[str, torch.Tensor]] = {}
    for reduction in REDUCTIONS:
        slow[reduction] = {
            place.name: place.view(
                oracles.score(model.get_parameter(weight.name), each[weight.name], reduction)
            )
            for weight in weights
            for place in weight.places
        }
        found = dense(fast[reduction])
        assert list(found) == list(slow[reduction])
        for name, expected in slow[reduction].items():
            # fp32 sums of a few hundred products in another order, relative to the largest score;
            # long chains of small products (linear attention) lose one digit more.
            scale = float(expected.abs().max())
            torch.testing.assert_close(
                found[name], expected, rtol=1e-3, atol=1e-5 * max(scale, 1e-3)
            )
    for scope in SCOPES:
        mask = select(fast["signed"], fast["mean_of_abs"], q=0.05, p=0.1, scope=scope)
        expected_mask = oracles.select(slow["signed"], slow["mean_of_abs"], 0.05, 0.1, scope)
        found_mask = {name: tensor.index.tolist() for name, tensor in mask.tensors.items()}
        assert found_mask == expected_mask
        assert mask.count > 0


@pytest.mark.parametrize("change", ["one", "three", "all", "order", "longer"])
def test_batching_padding_and_order_change_nothing(change: str) -> None:
    model, encoded = tiny.build("qwen3"), tiny.examples(7)
    base = run(model, encoded)
    shuffled = list(encoded)
    random.Random(0).shuffle(shuffled)
    other = {
        "one": lambda: run(model, encoded, batch_size=1),
        "three": lambda: run(model, encoded, batch_size=3),
        "all": lambda: run(model, encoded, batch_size=100),
        "order": lambda: run(model, shuffled, batch_size=2),
        # A long example of weight 0 pads all others and adds nothing; the mean has one more.
        "longer": lambda: run(
            model, [*encoded, replace(tiny.examples(1, 9, 40)[0], id="long", weight=0.0)]
        ),
    }[change]()
    factor = 8 / 7 if change == "longer" else 1.0
    for reduction in REDUCTIONS:
        for name, found in dense(other[reduction]).items():
            torch.testing.assert_close(
                found * factor, dense(base[reduction])[name], rtol=1e-4, atol=1e-7
            )
    first = select(base["signed"], base["mean_of_abs"], q=0.05, p=0.1)
    second = select(other["signed"], other["mean_of_abs"], q=0.05, p=0.1)
    assert all(
        torch.equal(tensor.index, second.tensors[name].index)
        for name, tensor in first.tensors.items()
    )


def test_weights_of_examples_make_a_contrast() -> None:
    model, one, two = tiny.build("llama"), tiny.examples(3, 1), tiny.examples(3, 2)
    mixed = [*one, *(replace(e, id=f"m{e.id}", weight=-1.0) for e in two)]
    contrast = dense(run(model, mixed)["signed"])
    apart = [dense(run(model, part)["signed"]) for part in (one, two)]
    for name, found in contrast.items():
        torch.testing.assert_close(found * 2, apart[0][name] - apart[1][name], rtol=1e-4, atol=1e-6)


def test_bf16_weights_have_fp32_sums() -> None:
    model, encoded = tiny.build("llama", dtype=torch.bfloat16), tiny.examples(6)
    scores = run(model, encoded, batch_size=1)["signed"]
    assert all(tensor.value.dtype == torch.float32 for tensor in scores.tensors.values())
    assert all(tensor.weight.dtype == torch.bfloat16 for tensor in scores.tensors.values())
    # With one example a batch the sums are of bf16 gradients, added without rounding in between.
    name = next(iter(scores.tensors))
    parameter = dict(model.named_parameters())[name]
    exact = oracles.gradients(model, [name], encoded)[name].float().mean(dim=0)
    expected = -(parameter.detach().float() * exact)
    correlation = torch.corrcoef(torch.stack([dense(scores)[name].flatten(), expected.flatten()]))
    assert float(correlation[0, 1]) > 0.999


def test_the_model_is_left_as_it_was() -> None:
    model = tiny.build("llama")
    model.train()
    first = next(model.parameters())
    first.requires_grad_(requires_grad=False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    run(model, tiny.examples(2))
    bad = [*tiny.examples(2), replace(tiny.examples(1)[0], id="none", first_scored=99)]
    with pytest.raises(InputError, match="'none' has no token to score"):
        run(model, bad)
    assert model.training
    assert not first.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert hooks == sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_a_loss_that_is_not_finite_names_the_example() -> None:
    model = tiny.build("qwen3")  # its head is not tied, otherwise every logit were odd
    with torch.no_grad():
        model.get_input_embeddings().weight[7] = float("nan")
    encoded = [e for e in tiny.examples(5) if 7 not in e.input_ids]
    encoded.append(replace(encoded[0], id="odd", input_ids=(5, 7, *encoded[0].input_ids)))
    with pytest.raises(InputError, match="loss of example 'odd' is not finite"):
        run(model, encoded)


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(InputError, match="no example to score"):
        run(tiny.build("llama"), [])


def test_candidates_hold_every_selection_up_to_keep(tmp_path: Path) -> None:
    model, encoded = tiny.build("llama"), tiny.examples(5)
    full = run(model, encoded)
    sparse = attribute_many(
        model,
        tiny.tokenizer(),
        encoded,
        reductions=("signed", "mean_of_abs"),
        settings=AttributeSettings(keep=0.2),
    )
    loaded = {}
    for name, scores in sparse.items():
        scores.save(tmp_path / f"{name}.scores.safetensors")
        loaded[name] = Scores.load(tmp_path / f"{name}.scores.safetensors")
        assert loaded[name].meta == scores.meta
    for scope in SCOPES:
        for q, p in ((0.2, 0.2), (0.1, 0.05), (0.01, 0.2)):
            one = select(full["signed"], full["mean_of_abs"], q=q, p=p, scope=scope)
            two = select(loaded["signed"], loaded["mean_of_abs"], q=q, p=p, scope=scope)
            assert all(
                torch.equal(tensor.index, two.tensors[name].index)
                and torch.equal(tensor.value, two.tensors[name].value)
                for name, tensor in one.tensors.items()
            )
    with pytest.raises(InputError, match="q reaches beyond what the scores keep"):
        select(loaded["signed"], None, q=0.3, p=0)


def ranked(dense_scores: dict[str, torch.Tensor], keep: float) -> dict[str, TensorScores]:
    found = Candidates(keep, sum(scores.numel() for scores in dense_scores.values()))
    for name, scores in dense_scores.items():
        found.add(name, scores)
    return found.finish()


def test_ties_go_to_the_lower_index() -> None:
    ties = {"a": torch.tensor([1.0, 1.0, 1.0, 0.0]), "b": torch.tensor([1.0, 1.0, 2.0, 1.0])}
    found = ranked(ties, 0.5)
    # b's 2 and the first three of the six ones are the top half of the model.
    assert found["a"].index.tolist() == [0, 1, 2]
    assert found["b"].index.tolist() == [2, 0]


@pytest.mark.parametrize("kind", ["normal", "rising", "falling", "ties", "zeros"])
@pytest.mark.parametrize("keep", [0.0004, 0.03, 0.4, 1.0])
def test_candidates_are_those_of_a_full_sort(kind: str, keep: float) -> None:
    draw = torch.Generator().manual_seed(len(kind))
    dense_scores = {}
    for at, size in enumerate([40, 3, 900, 1, 300, 500, 40, 200]):
        scores = torch.randn(size, generator=draw)
        scores *= {"rising": 3.0**at, "falling": 3.0**-at}.get(kind, 1.0)
        if kind == "ties":
            scores = scores.mul(2).round()
        if kind == "zeros":
            scores = scores.clamp(min=2.5).sub(2.5)
        dense_scores[f"t{at}"] = scores
    everything = [
        (-value, at, place)
        for at, scores in enumerate(dense_scores.values())
        for place, value in enumerate(scores.tolist())
    ]
    whole = sorted(everything)[: int(keep * len(everything))]
    found = ranked(dense_scores, keep)
    for at, (name, scores) in enumerate(dense_scores.items()):
        own = sorted(one for one in everything if one[1] == at)[: int(keep * scores.numel())]
        expected = sorted({*own, *(one for one in whole if one[1] == at)})
        assert found[name].index.tolist() == [place for _, _, place in expected], name
        assert found[name].value.tolist() == [-value for value, _, _ in expected]


def test_candidates_hold_no_second_copy_of_the_scores() -> None:
    """Every tensor has higher scores than all before it, which leaves most behind to be cut."""
    draw = torch.Generator().manual_seed(0)
    keep, size, count = 0.01, 20_000, 40
    found = Candidates(keep, size * count)
    most = 0
    for at in range(count):
        found.add(f"t{at}", torch.rand(size, generator=draw) + at, torch.zeros(size))
        held = sum(tensor.index.numel() for tensor in found._found.values())
        most = max(most, held + found._best.numel())
    assert most <= 7 * keep * size * count
    assert sum(tensor.index.numel() for tensor in found.finish().values()) < 2 * keep * size * count
