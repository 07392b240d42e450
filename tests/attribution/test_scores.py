"""Scores equal a slow loop, and nothing that should not matter changes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import oracles
import tiny
from resect.attribution.engine import attribute_many
from resect.attribution.methods import METHODS
from resect.attribution.settings import Pass
from resect.attribution.sums import Sums
from resect.errors import InputError
from resect.model import find_prunable
from resect.records import CausalModel, Encoded, Scope
from resect.weights.candidates import Candidates, descending
from resect.weights.scores import Scores, TensorScores
from resect.weights.select import select

REDUCTIONS = tuple(METHODS["snip"])
SCOPES: tuple[Scope, ...] = ("tensor", "model")


def dense(scores: Scores) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, tensor in scores.tensors.items():
        flat = torch.full((tensor.size,), float("nan"))
        flat[tensor.index] = tensor.value
        tensors[name] = flat.reshape(tensor.shape)
    return tensors


def run(model: CausalModel, encoded: Sequence[Encoded], **settings: Any) -> dict[str, Scores]:
    return attribute_many(
        model,
        tiny.tokenizer(),
        encoded,
        reductions=REDUCTIONS,
        settings=Pass(dense=True, **settings),
    )


@pytest.mark.parametrize("architecture", [*tiny.ARCHITECTURES, "gemma3_vision"])
def test_scores_and_masks_equal_the_slow_loop(architecture: str) -> None:
    model, encoded = tiny.build(architecture), tiny.examples(5)
    fast = run(model, encoded)
    weights = find_prunable(model).weights
    assert {weight.layer for weight in weights} == {0, 1}
    gradients = oracles.gradients(model, [weight.name for weight in weights], encoded)
    slow: dict[str, dict[str, torch.Tensor]] = {}
    for reduction in REDUCTIONS:
        slow[reduction] = {
            tensor.name: tensor.view(
                oracles.score(model.get_parameter(weight.name), gradients[weight.name], reduction)
            )
            for weight in weights
            for tensor in weight.places
        }
        dense_scores = dense(fast[reduction])
        assert list(dense_scores) == list(slow[reduction])
        for name, expected in slow[reduction].items():
            # fp32 sums of a few hundred products in another order, relative to the largest score;
            # long chains of small products (linear attention) lose one digit more.
            scale = float(expected.abs().max())
            torch.testing.assert_close(
                dense_scores[name], expected, rtol=1e-3, atol=1e-5 * max(scale, 1e-3)
            )
    for scope in SCOPES:
        mask = select(fast["signed"], fast["mean_of_abs"], q=0.05, p=0.1, scope=scope)
        expected_mask = oracles.select(slow["signed"], slow["mean_of_abs"], 0.05, 0.1, scope)
        found_mask = {name: tensor.index.tolist() for name, tensor in mask.tensors.items()}
        assert found_mask == expected_mask
        assert mask.count > 0


def test_weights_of_examples_make_a_contrast() -> None:
    model, target, style = tiny.build("llama"), tiny.examples(3, 1), tiny.examples(3, 2)
    mixed = [*target, *(replace(e, id=f"m{e.id}", weight=-1.0) for e in style)]
    contrast = dense(run(model, mixed)["signed"])
    apart = [dense(run(model, examples)["signed"]) for examples in (target, style)]
    for name, difference in contrast.items():
        expected = apart[0][name] - apart[1][name]
        torch.testing.assert_close(difference * 2, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("architecture", ["llama", "mixtral", "gpt2"])
def test_bf16_weights_score_as_their_fp32_copies(architecture: str) -> None:
    model, encoded = tiny.build(architecture, dtype=torch.bfloat16), tiny.examples(6)
    rounded = run(model, encoded)
    assert all(t.value.dtype == torch.float32 for t in rounded["signed"].tensors.values())
    assert all(t.weight.dtype == torch.bfloat16 for t in rounded["signed"].tensors.values())
    exact = tiny.build(architecture)
    exact.load_state_dict({name: t.float() for name, t in model.state_dict().items()})
    expected = run(exact, encoded)
    for reduction in REDUCTIONS:
        mine, theirs = dense(rounded[reduction]), dense(expected[reduction])
        for name in theirs:
            # bf16 rounds each number by up to 2⁻⁹ of itself. About 20 roundings lie between the
            # embeddings and a gradient; they add up as a walk, to √20·2⁻⁹ ≈ 1 % of the norm, times
            # what the two blocks and the softmax amplify, 5 at most here.
            error = (mine[name] - theirs[name]).norm() / theirs[name].norm()
            assert float(error) < 0.05, (reduction, name)
            assert float(error) > 0  # otherwise this would not have tested bf16


def test_sums_of_bf16_gradients_are_exact_in_fp32() -> None:
    # 1 + 1000·2⁻¹⁰: in bf16 each of the small ones is lost, in fp32 none of them is.
    weight = torch.zeros(2, 2, dtype=torch.bfloat16)
    sums = Sums({"w": weight}, ("gradient", "absolute", "square"))
    for value in [1.0, *[2.0**-10] * 1000]:
        example = replace(tiny.examples(1)[0], input_ids=(4, 5), first_scored=1)
        gradient = torch.full((2, 2), value, dtype=torch.bfloat16)
        sums.begin([example])
        sums.add_gradient("w", gradient)
        sums.add_products("w", [torch.eye(2, dtype=torch.bfloat16)], [gradient])
    expected = torch.full((2, 2), 1 + 1000 * 2.0**-10)
    assert torch.equal(sums.totals["gradient"]["w"], expected)
    assert torch.equal(sums.totals["absolute"]["w"], expected)
    assert torch.equal(sums.totals["square"]["w"], torch.full((2, 2), 1 + 1000 * 2.0**-20))
    assert all(total["w"].dtype == torch.float32 for total in sums.totals.values())


@pytest.mark.parametrize("flaw", ["reordered", "bypassed", "twice"])
@pytest.mark.parametrize("longest", [0, 1, 2])
def test_layers_that_cannot_be_watched_are_scored_one_example_a_pass(
    flaw: str, longest: int, caplog: pytest.LogCaptureFixture
) -> None:
    model, encoded = tiny.build("llama"), tiny.examples(6)
    # The first batch then has one example, or two of one length, where no order of tokens can be
    # told from another.
    long = tiny.examples(1, 3, 30)[0]
    ids = long.input_ids[: 30 if longest == 1 else 20]
    longer = (
        replace(long, id=f"long{shift}", input_ids=ids[shift:] + ids[:shift])
        for shift in range(longest)
    )
    encoded = [*encoded, *longer]
    layer = model.model.layers[1].mlp
    plain = layer.forward

    def reordered(x: torch.Tensor) -> torch.Tensor:
        batch, width, _ = x.shape
        flat: torch.Tensor = plain(x.transpose(0, 1).reshape(width * batch, -1))
        return flat.reshape(width, batch, -1).transpose(0, 1)

    def bypassed(x: torch.Tensor) -> torch.Tensor:
        hidden = layer.act_fn(x @ layer.gate_proj.weight.T) * (x @ layer.up_proj.weight.T)
        result: torch.Tensor = hidden @ layer.down_proj.weight.T
        return result

    def twice(x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = plain(x / 2) + plain(x / 2)
        return result

    layer.forward = {"reordered": reordered, "bypassed": bypassed, "twice": twice}[flaw]
    scores = run(model, encoded, batch_tokens=40)["mean_of_abs"]
    assert "3 weights mix the examples of a batch" in caplog.text
    names = [weight.name for weight in find_prunable(model).weights]
    gradients = oracles.gradients(model, names, encoded)
    for name in names:
        expected = oracles.score(model.get_parameter(name), gradients[name], "mean_of_abs")
        scale = float(expected.max())
        torch.testing.assert_close(dense(scores)[name], expected, rtol=1e-3, atol=1e-5 * scale)


def test_the_model_is_left_as_it_was() -> None:
    model = tiny.build("llama")
    model.train()
    frozen = next(model.parameters())
    frozen.requires_grad_(requires_grad=False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    run(model, tiny.examples(2))
    bad = [*tiny.examples(2), replace(tiny.examples(1)[0], id="none", first_scored=99)]
    with pytest.raises(InputError, match="'none' has no token to score"):
        run(model, bad)
    assert model.training
    assert not frozen.requires_grad
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
        settings=Pass(keep=0.2),
    )
    loaded = {}
    for name, scores in sparse.items():
        scores.save(tmp_path / f"{name}.scores.safetensors")
        loaded[name] = Scores.load(tmp_path / f"{name}.scores.safetensors")
        assert loaded[name].meta == scores.meta
    for scope in SCOPES:
        for q, p in ((0.2, 0.2), (0.1, 0.05), (0.01, 0.2)):
            expected = select(full["signed"], full["mean_of_abs"], q=q, p=p, scope=scope)
            reloaded = select(loaded["signed"], loaded["mean_of_abs"], q=q, p=p, scope=scope)
            assert all(
                torch.equal(tensor.index, reloaded.tensors[name].index)
                and torch.equal(tensor.value, reloaded.tensors[name].value)
                for name, tensor in expected.tensors.items()
            )
    with pytest.raises(InputError, match="q reaches beyond what the scores keep"):
        select(loaded["signed"], None, q=0.3, p=0)


def ranked(dense_scores: dict[str, torch.Tensor], keep: float) -> dict[str, TensorScores]:
    candidates = Candidates(keep, sum(scores.numel() for scores in dense_scores.values()))
    for name, scores in dense_scores.items():
        candidates.add(name, scores)
    return candidates.finish()


def test_ties_go_to_the_lower_index() -> None:
    ties = {"a": torch.tensor([1.0, 1.0, 1.0, 0.0]), "b": torch.tensor([1.0, 1.0, 2.0, 1.0])}
    entries = ranked(ties, 0.5)
    # b's 2 and the first three of the six ones are the top half of the model.
    assert entries["a"].index.tolist() == [0, 1, 2]
    assert entries["b"].index.tolist() == [2, 0]


@pytest.mark.parametrize("trend", ["normal", "rising", "falling", "ties", "zeros"])
@pytest.mark.parametrize("keep", [0.0004, 0.03, 0.4, 1.0])
def test_candidates_are_those_of_a_full_sort(trend: str, keep: float) -> None:
    draw = torch.Generator().manual_seed(len(trend))
    dense_scores = {}
    for number, size in enumerate([40, 3, 900, 1, 300, 500, 40, 200]):
        scores = torch.randn(size, generator=draw)
        scores *= {"rising": 3.0**number, "falling": 3.0**-number}.get(trend, 1.0)
        if trend == "ties":
            scores = scores.mul(2).round()
        if trend == "zeros":
            scores = scores.clamp(min=2.5).sub(2.5)
        dense_scores[f"t{number}"] = scores
    everything = [
        (-value, number, index)
        for number, scores in enumerate(dense_scores.values())
        for index, value in enumerate(scores.tolist())
    ]
    whole = sorted(everything)[: int(keep * len(everything))]
    entries = ranked(dense_scores, keep)
    for number, (name, scores) in enumerate(dense_scores.items()):
        head = sorted(row for row in everything if row[1] == number)[: int(keep * scores.numel())]
        expected = sorted({*head, *(row for row in whole if row[1] == number)})
        assert entries[name].index.tolist() == [index for _, _, index in expected], name
        assert entries[name].value.tolist() == [-value for value, _, _ in expected]


@pytest.mark.parametrize("kind", ["any", "few values", "zeros of both signs", "least and largest"])
def test_scores_fall_and_ties_stay_in_their_order(kind: str) -> None:
    draw = torch.Generator().manual_seed(len(kind))
    scores = torch.randn(3000, generator=draw)
    if kind == "few values":
        scores = scores.round()
    if kind == "zeros of both signs":
        scores = torch.where(scores > 1, scores, 0.0 * scores)
        assert {0, 1} == set(scores[scores == 0].signbit().int().tolist())
    if kind == "least and largest":
        numbers = torch.finfo(torch.float32)
        ends = torch.tensor([1e-45, numbers.tiny, numbers.max, 1.0])
        scores = scores.sign() * ends[torch.randint(4, (3000,), generator=draw)]
    for some in (scores, scores[:1], scores[:0], scores[::3]):
        twin = some.sort(descending=True, stable=True).indices
        assert torch.equal(descending(some), twin)


def test_candidates_take_their_weights_from_any_order_in_memory() -> None:
    draw = torch.Generator().manual_seed(5)
    scores, weight = (torch.randn(30, 20, generator=draw) for _ in range(2))
    found = []
    for laid in (weight, weight.t().contiguous().t()):
        candidates = Candidates(0.1, scores.numel())
        candidates.add("t", scores, laid)
        found.append(candidates.finish()["t"])
    one, other = found
    assert torch.equal(one.weight, weight.flatten()[one.index])
    assert torch.equal(one.weight, other.weight)


def test_candidates_hold_no_second_copy_of_the_scores() -> None:
    """Every tensor has higher scores than all before it, which leaves most behind to be cut."""
    draw = torch.Generator().manual_seed(0)
    keep, size, count = 0.01, 20_000, 40
    candidates = Candidates(keep, size * count)
    peak = 0
    for number in range(count):
        candidates.add(f"t{number}", torch.rand(size, generator=draw) + number, torch.zeros(size))
        count_now = sum(tensor.index.numel() for tensor in candidates._found.values())
        peak = max(peak, count_now + candidates._best.numel())
    assert peak <= 7 * keep * size * count
    final = sum(tensor.index.numel() for tensor in candidates.finish().values())
    assert final < 2 * keep * size * count
