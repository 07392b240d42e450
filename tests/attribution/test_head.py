"""The head in pieces against the head as a whole: losses, gradients, and what is in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import largest
import mapped
import tiny
from resect.attribution import head as heads
from resect.attribution.engine import attribute_many
from resect.attribution.head import Head, can_piece, pieces
from resect.attribution.loss import batch_loss
from resect.attribution.settings import Pass
from resect.errors import InputError
from resect.model.prunable import find_prunable
from resect.records import Encoded

BATCH = tiny.examples(5)
SCORED = sum(example.scored_tokens for example in BATCH)
# What these do to their logits: nothing; soft-capping; scaling; a projection before the head; a
# scale that stands in the trunk; a head beside a tower of another kind.
TYPES = ["llama", "gpt2", "gemma2", "cohere", "granite", "opt", "falcon_h1", "gemma3_vision"]


def build(model_type: str) -> Any:
    if model_type in tiny.ARCHITECTURES or model_type == "gemma3_vision":
        return tiny.build(model_type)
    return mapped.script("model_trials").filled(model_type)


def at_once(places: int, monkeypatch: pytest.MonkeyPatch, words: int = tiny.VOCABULARY) -> None:
    """Let logits of so many places be made at once."""
    monkeypatch.setattr(heads, "CPU_PIECE", 4 * words * places)


def loss_and_slopes(model: Any, batch: list[Encoded], head: Head) -> tuple[float, list[Tensor]]:
    """Return a loss and its gradients with respect to all prunable weights."""
    names = [weight.name for weight in find_prunable(model, allow_partial=True).weights]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    model.zero_grad(set_to_none=True)
    loss = batch_loss(model, batch, head)
    loss.backward()  # type: ignore[no-untyped-call]
    slopes = [model.get_parameter(name).grad for name in names]
    return loss.item(), [slope.clone() for slope in slopes if slope is not None]


def alike(fast: tuple[float, list[Tensor]], slow: tuple[float, list[Tensor]]) -> None:
    assert fast[0] == pytest.approx(slow[0], rel=1e-6)
    assert len(fast[1]) == len(slow[1]) > 0
    for slope, expected in zip(fast[1], slow[1], strict=True):
        # Sums of the same products in another order.
        torch.testing.assert_close(slope, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("model_type", TYPES)
def test_a_loss_in_pieces_has_the_gradients_of_the_whole(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(model_type)
    whole = loss_and_slopes(model, BATCH, Head())
    at_once(3, monkeypatch)
    head = Head()
    sizes: list[int] = []
    model.get_output_embeddings().register_forward_hook(
        lambda _module, _args, output: sizes.append(output.shape[-2])
    )
    alike(loss_and_slopes(model, BATCH, head), whole)
    assert head == Head(tried=True)
    # One place in the pass, the same again, then all pieces, of which the last is the odd one.
    assert sizes == [1, 1, *[3] * (SCORED // 3), *([SCORED % 3] if SCORED % 3 else [])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("places", [1, 2, 7])
@pytest.mark.parametrize("rows", [1, 4])
def test_odd_sizes(
    rows: int, places: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.build("gemma2", dtype=dtype)
    batch = BATCH[:rows]
    expected, slopes = loss_and_slopes(model, batch, Head())
    at_once(places, monkeypatch)
    loss, fast = loss_and_slopes(model, batch, Head())
    close = 1e-6 if dtype == torch.float32 else 1e-2
    assert loss == pytest.approx(expected, rel=close)
    for slope, slow in zip(fast, slopes, strict=True):
        assert float((slope - slow).norm()) <= close * 10 * float(slow.norm())


def test_logits_that_the_backward_pass_needs_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny.build("llama")
    # Autograd keeps what tanh gives, which are the logits here.
    model.get_output_embeddings().register_forward_hook(lambda _module, _args, out: out.tanh())
    whole = loss_and_slopes(model, BATCH, Head())
    at_once(3, monkeypatch)
    alike(loss_and_slopes(model, BATCH, Head()), whole)


@pytest.mark.parametrize("reduction", ["signed", "mean_of_abs"])
def test_scores_are_those_of_the_whole(reduction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, results = tiny.build("gemma2"), []
    for places in (10**6, 3):
        at_once(places, monkeypatch)
        settings = Pass(dense=True, batch_size=3, checkpoint=places == 3)
        scores = attribute_many(
            model, tiny.tokenizer(), BATCH, reductions=(reduction,), settings=settings
        )
        results.append(scores[reduction].tensors)
    for name, tensor in results[0].items():
        torch.testing.assert_close(results[1][name].value, tensor.value, rtol=1e-4, atol=1e-8)


def test_a_loss_whose_table_is_small_has_the_bits_it_had(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.build("llama")
    at_once(SCORED, monkeypatch)
    head = Head()
    loss = batch_loss(model, BATCH, head)
    assert head == Head()  # no piece was tried
    at_once(10**6, monkeypatch)
    assert loss.item() == batch_loss(model, BATCH, Head()).item()


def unlike(model: Any) -> None:
    """Let a head say something else each time."""
    module = model.get_output_embeddings()
    count = iter(range(10**6))
    module.register_forward_hook(lambda _module, _args, output: output + 1e-3 * next(count))


def asked_for(model: Any) -> None:
    model.get_output_embeddings().weight.requires_grad_()


def in_two_calls(model: Any) -> None:
    trunk, run = model.model, model.model.forward

    def forward(*args: Any, **named: Any) -> Any:
        if "again" not in named:
            trunk(*args, **named, again=True)
        named.pop("again", None)
        return run(*args, **named)

    trunk.forward = forward


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (unlike, "does not give the same logits twice"),
        (asked_for, "is to have a gradient"),
        (in_two_calls, "is not called once, as one module"),
    ],
)
def test_what_cannot_be_run_in_pieces_is_run_whole(
    change: Any, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.build("mistral")
    model.requires_grad_(False)
    model.model.layers.requires_grad_()
    expected = batch_loss(model, BATCH, Head()).item()
    change(model)
    at_once(3, monkeypatch)
    head = Head()
    loss = batch_loss(model, BATCH, head)
    assert why in head.whole
    assert loss.item() == pytest.approx(expected, rel=1e-2)
    loss.backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        assert not can_piece(model, [4, 5, 6], 1, head)


def test_a_head_that_is_no_module_is_run_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.build("mistral")
    expected = batch_loss(model, BATCH, Head()).item()
    monkeypatch.setattr(model, "get_output_embeddings", lambda: None)
    at_once(3, monkeypatch)
    head = Head()
    assert batch_loss(model, BATCH, head).item() == pytest.approx(expected, rel=1e-6)
    assert head.whole


def test_a_loss_that_is_no_number_names_its_example(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.build("llama")
    at_once(3, monkeypatch)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(InputError, match=r"the loss of example 'e\d' is not finite"):
        batch_loss(model, BATCH, Head())


def test_pieces_cover_all_places(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.build("llama")
    at_once(4, monkeypatch)
    assert [(piece.start, piece.stop) for piece in pieces(model, 9)] == [(0, 4), (4, 8), (8, 9)]
    monkeypatch.setattr(heads, "CPU_PIECE", 1)
    assert len(list(pieces(model, 3))) == 3


@pytest.mark.parametrize("needs", ["signed", "mean_of_abs"])
def test_no_table_of_all_logits_is_made(needs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = largest.wide()
    whole = 4 * SCORED * largest.WORDS

    def most() -> int:
        watched = largest.Largest()
        with watched:
            settings = Pass(dense=True, batch_size=len(BATCH))
            attribute_many(model, tiny.tokenizer(), BATCH, reductions=(needs,), settings=settings)
        return watched.bytes

    assert most() == whole
    at_once(2, monkeypatch, largest.WORDS)
    assert most() == 4 * 2 * largest.WORDS
