"""Scores equal a slow loop, and nothing that should not matter changes them."""

from __future__ import annotations

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
from resect.scoreset import Scores, candidates
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


def test_ties_go_to_the_lower_index() -> None:
    ties = {"a": torch.tensor([1.0, 1.0, 1.0, 0.0]), "b": torch.tensor([1.0, 1.0, 2.0, 1.0])}
    found = candidates(ties, 0.5)
    assert found["a"][:2].tolist() == [0, 1]
    assert found["b"][:2].tolist() == [2, 0]
