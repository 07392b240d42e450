"""Rows of one batch under different cuts: the logits of the cuts one by one, or a refusal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import masked
import tiny
from oracles import cut_by_cut
from resect.edit.many import Cuttable, NotTogether, Routes, Together, is_matrix
from resect.edit.trial import routes_of
from resect.model import prunable_tensors
from resect.weights.fill import fill
from resect.weights.mask import Mask

WORDS = range(4, tiny.VOCABULARY)
# One of each way to be called: plain matrices with tied embeddings, Conv1D with biases, a window
# and capped logits, matrices multiplied by hand, experts in one parameter, with and without biases,
# a recurrence, and projections of compressed states.
ARCHITECTURES = (
    "llama", "gpt2", "gemma2", "falcon", "mixtral", "gpt_oss", "qwen3_5", "deepseek_v3",
)  # fmt: skip


def variants_of(model: Any) -> list[Cuttable]:
    """Return nested cuts of one ranking, a random one, the intact model and other fillings."""
    filled = fill(tiny.cut(model, 0.02, seed=7), prunable_tensors(model), "mean")
    scaled = fill(tiny.cut(model, 0.01), prunable_tensors(model), 0.5)
    nested = [tiny.cut(model, share) for share in (0.005, 0.01, 0.03)]
    return [*nested, tiny.cut(model, 0.02, seed=5), None, filled, scaled]


def rows(left: bool = False) -> dict[str, Tensor]:
    """Return three rows of 9, 6 and 7 tokens."""
    ids = torch.randint(4, tiny.VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for row, length in enumerate((9, 6, 7)):
        mask[row, slice(0, 9 - length) if left else slice(length, 9)] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def joint(
    model: Any, variants: Sequence[Cuttable], inputs: dict[str, Tensor], *, base: bool = True
) -> Tensor:
    """Return the logits of all variants from one pass."""
    together = Together(model, variants, routes_of(model, WORDS), base=base)
    repeated = {name: torch.cat([value] * len(variants)) for name, value in inputs.items()}
    with torch.inference_mode(), together.applied():
        logits: Tensor = model(**repeated, use_cache=False).logits
    return logits


def off(logits: Tensor, expected: Tensor, inputs: dict[str, Tensor]) -> float:
    """Return the largest difference at real tokens, as a part of the largest logit."""
    real = inputs["attention_mask"].bool().repeat(len(logits) // 3, 1)
    difference = (logits - expected)[real].abs().max()
    return float(difference / expected[real].abs().max())


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_those_of_the_cuts_one_by_one(architecture: str, left: bool) -> None:
    model = tiny.build(architecture)
    before, variants, inputs = masked.state(model), variants_of(model), rows(left)
    expected = cut_by_cut(model, variants, inputs)
    # The cuts matter a hundred times more than the tolerance.
    stretches = expected.chunk(len(variants))
    assert all(off(stretches[n], stretches[4], inputs) > 1e-3 for n in (0, 1, 2, 3, 5, 6))
    # Sums of the same products in another order: a few units in the last place of the largest, of
    # float32's 6e-8, through two layers.
    assert off(joint(model, variants, inputs), expected, inputs) < 1e-5
    assert masked.same(model, before)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
def test_what_most_variants_lack_is_shared_or_not(architecture: str) -> None:
    model, inputs = tiny.build(architecture), rows()
    variants = variants_of(model)
    apart = joint(model, variants, inputs, base=False)
    assert off(apart, cut_by_cut(model, variants, inputs), inputs) < 1e-5


def test_nested_cuts_share_what_they_have_in_common() -> None:
    model = tiny.build("llama")
    nested = [tiny.cut(model, share) for share in (0.01, 0.02, 0.03)]
    routes = routes_of(model, WORDS)
    small, middle, large = (mask.count for mask in nested)
    assert Together(model, nested, routes, base=False).corrections == small + middle + large
    # Of the middle one, which is in force, one lacks less and one lacks more.
    assert Together(model, nested, routes).corrections == large - small


def test_one_variant_is_itself_to_the_bit() -> None:
    model, inputs = tiny.build("llama"), rows()
    mask = tiny.cut(model, 0.02)
    assert torch.equal(joint(model, [mask], inputs), cut_by_cut(model, [mask], inputs))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_sixteen_bits_are_rounded_as_the_model_rounds(architecture: str) -> None:
    exact, inputs = tiny.build(architecture, dtype=torch.bfloat16).float(), rows()
    model = tiny.build(architecture, dtype=torch.bfloat16)
    cuts: list[Cuttable] = [tiny.cut(model, 0.02, seed=seed) for seed in range(4)]
    truth = cut_by_cut(exact, [tiny.cut(exact, 0.02, seed=seed) for seed in range(4)], inputs)
    usual = float((cut_by_cut(model, cuts, inputs) - truth).square().mean().sqrt())
    shared = float((joint(model, cuts, inputs) - truth).square().mean().sqrt())
    # A corrected output is rounded twice and not once: √2 at most, measured 1.1.
    assert shared < 1.42 * usual


def test_everything_is_back_after_an_error() -> None:
    model = tiny.build("mixtral")
    before, routes = masked.state(model), routes_of(model, WORDS)
    with (
        pytest.raises(KeyError),
        Together(model, variants_of(model), routes).applied(),
    ):
        raise KeyError
    assert masked.same(model, before)
    assert not any(module._forward_hooks or "forward" in vars(module) for module in model.modules())
    assert not model._forward_pre_hooks


def test_a_module_that_is_called_for_several_layers() -> None:
    model, inputs = tiny.build("llama"), rows()
    layers = model.model.layers
    inner = layers[0].mlp
    again = layers[1].mlp.forward
    # Not registered there, so that its weights have one name; called twice in a pass.
    layers[1].mlp.forward = lambda states: again(states) + inner(states)
    variants = variants_of(model)
    assert off(joint(model, variants, inputs), cut_by_cut(model, variants, inputs), inputs) < 1e-5


def test_what_is_not_understood_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(model: Any, why: str) -> None:
        before = masked.state(model)
        with pytest.raises(NotTogether, match=why):
            routes_of(model, WORDS)
        assert masked.same(model, before)

    # Experts that are given all tokens once for each expert.
    refused(tiny.build("llama4"), "are off by")

    model = tiny.build("llama")
    model.model.layers[1].mlp = model.model.layers[0].mlp
    refused(model, "kind that resect cannot cut")

    model = tiny.build("llama")
    mlp = model.model.layers[0].mlp
    mlp.forward = lambda states: nn.functional.linear(states, mlp.gate_proj.weight[:16])
    refused(model, "gate_proj are used outside")

    for order in (lambda states: states.flip(0), lambda states: states.transpose(0, 1)):
        model = tiny.build("llama")
        mlp = model.model.layers[0].mlp
        whole = mlp.forward
        mlp.forward = lambda states, whole=whole, order=order: order(whole(order(states)))
        refused(model, "are off by")

    model = tiny.build("llama")
    mlp = model.model.layers[0].mlp
    some = mlp.forward
    mlp.forward = lambda states: nn.functional.pad(some(states[:, :5]), (0, 0, 0, states.shape[1]))[
        :, : states.shape[1]
    ]
    refused(model, "vectors of")

    with pytest.raises(NotTogether, match="meta"):
        routes_of(tiny.build("llama").to("meta"), WORDS)
    with pytest.raises(NotTogether, match="too few"):
        routes_of(tiny.build("llama"), [5, 5])


def test_a_call_of_another_shape_is_refused() -> None:
    model = tiny.build("llama")
    variants = variants_of(model)
    routes = routes_of(model, WORDS)
    with (
        Together(model, variants, routes).applied(),
        torch.inference_mode(),
    ):
        with pytest.raises(NotTogether, match="rows of token ids"):
            model(input_ids=torch.zeros(3, 5, dtype=torch.long))
        with pytest.raises(NotTogether, match="rows of token ids"):
            model(inputs_embeds=torch.zeros(7, 5, 16))
    mlp = model.model.layers[0].mlp
    usual = mlp.forward
    mlp.forward = lambda states: usual(states.repeat(2, 1, 1))[: len(states)]
    with (
        Together(model, variants, routes).applied(),
        torch.inference_mode(),
        pytest.raises(NotTogether, match="gate_proj got"),
    ):
        model(input_ids=torch.zeros(7, 5, dtype=torch.long))


def test_a_module_that_the_trial_has_not_seen_is_not_cut() -> None:
    model = tiny.build("llama")
    routes = routes_of(model, WORDS)
    less = Routes({name: counts for name, counts in routes.vectors.items() if "0.mlp" not in name})
    variants: list[Mask | None] = [tiny.cut(model, 0.02), None]
    with pytest.raises(NotTogether, match="not known how"):
        Together(model, variants, less)


def test_dropout_is_off_in_the_trial_and_back_after_it() -> None:
    model = tiny.build("gpt2").train()
    routes_of(model, WORDS)
    assert model.training


def test_a_module_with_a_method_of_its_own_is_no_plain_matrix() -> None:
    linear = nn.Linear(2, 2)
    assert is_matrix(linear)
    linear.forward = lambda states: states  # type: ignore[method-assign, assignment]
    assert not is_matrix(linear)
    assert not is_matrix(nn.LayerNorm(2))
