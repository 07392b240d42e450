"""How likely a model finds given tokens, against a plain loop, and how much of it is in memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import tiny
from oracles import reference_nll
from resect.edit.live import removed
from resect.errors import InputError
from resect.evaluation import decode, divergence
from resect.evaluation.decode import (
    batches_for,
    likelihood,
    mean_nlls,
    scored_logits,
    token_log_probs,
)

EXAMPLES = tiny.examples(9, shortest=9)
ROWS = [list(example.input_ids) for example in EXAMPLES]
STARTS = [example.first_scored for example in EXAMPLES]


@pytest.mark.parametrize("batch_size", [1, 4, 9])
@pytest.mark.parametrize(
    ("dtype", "close"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)], ids=["fp32", "bf16"]
)
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_nlls_equal_a_loop_with_cross_entropy(
    architecture: str, dtype: torch.dtype, close: float, batch_size: int
) -> None:
    model = tiny.build(architecture, dtype=dtype)
    expected = [reference_nll(model, row, start) for row, start in zip(ROWS, STARTS, strict=True)]
    assert mean_nlls(model, ROWS, STARTS, batch_size) == pytest.approx(expected, rel=close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("places", [1, 3, 64])
def test_pieces_give_the_bits_of_the_whole(
    dtype: torch.dtype, places: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.build("llama", dtype=dtype)
    mask = tiny.cut(model)
    before = token_log_probs(model, ROWS, STARTS)
    with removed(model, mask):
        after = token_log_probs(model, ROWS, STARTS)
        changed = scored_logits(model, ROWS, STARTS)
    intact = scored_logits(model, ROWS, STARTS)
    monkeypatch.setattr(decode, "PLACES", places)
    for number, (row, start) in enumerate(zip(ROWS, STARTS, strict=True)):
        words = torch.tensor(row[start:])[:, None]
        nll, kl = likelihood(intact[number], changed[number], row[start:])
        assert nll == float(-after[number].gather(1, words).mean())
        gap = before[number] - after[number]
        assert kl == float((before[number].exp() * gap).sum(dim=-1).mean())


class Watched:
    """Notes the most places of a pass, and of a float32 table of distributions."""

    def __init__(self, model: nn.Module, monkeypatch: pytest.MonkeyPatch):
        self.places, self.table = 0, 0
        softmax = torch.log_softmax

        def watched(logits: Tensor, **options: Any) -> Tensor:
            self.table = max(self.table, logits.shape[0])
            return softmax(logits, **options)

        def ran(_model: nn.Module, _inputs: object, output: Any) -> None:
            self.places = max(self.places, output.logits[..., 0].numel())

        monkeypatch.setattr(torch, "log_softmax", watched)
        model.register_forward_hook(ran)


def test_a_pass_and_a_table_stay_small(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.build("llama")
    whole = mean_nlls(model, ROWS, STARTS, 9)
    watched = Watched(model, monkeypatch)
    longest = max(map(len, ROWS))
    monkeypatch.setattr(decode, "LOGITS_BYTES", 2 * longest * tiny.VOCABULARY * 4)
    monkeypatch.setattr(decode, "PLACES", 4)
    assert mean_nlls(model, ROWS, STARTS, 9) == pytest.approx(whole, rel=1e-6)
    assert watched.places == 2 * longest
    assert watched.table == 4
    monkeypatch.setattr(decode, "LOGITS_BYTES", 1)
    assert [len(batch) for batch in batches_for(model, ROWS, 9)] == [1] * 9


def test_batches_are_those_of_their_length_where_there_is_room() -> None:
    model = tiny.build("llama")
    assert batches_for(model, ROWS, 4) == decode.by_length(ROWS, 4)


def test_logits_that_are_no_numbers_are_refused() -> None:
    model = tiny.build("llama")
    good = scored_logits(model, ROWS[:1], STARTS[:1])[0]
    spoiled = torch.full_like(good, torch.nan)
    tokens = ROWS[0][STARTS[0] :]
    for pair in ((good, spoiled), (spoiled, good)):
        with pytest.raises(InputError, match="logits of a response"):
            likelihood(*pair, tokens)
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(torch.inf)
    with pytest.raises(InputError, match="logits of a response"):
        mean_nlls(model, ROWS, STARTS)


def test_the_twin_is_cross_entropy() -> None:
    model = tiny.build("llama")
    row, start = ROWS[0], STARTS[0]
    with torch.no_grad():
        logits = model(torch.tensor([row])).logits[0]
    loss = cross_entropy(logits[start - 1 : -1], torch.tensor(row[start:]))
    assert reference_nll(model, row, start) == pytest.approx(float(loss), rel=1e-6)


def test_logits_of_the_intact_model_are_kept_while_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, calls = tiny.build("llama"), 0

    def compute() -> list[Tensor]:
        nonlocal calls
        calls += 1
        return scored_logits(model, ROWS[:2], STARTS[:2])

    size = sum(of_row.nbytes for of_row in compute())
    monkeypatch.setattr(divergence, "KEPT_BYTES", size)
    intact, calls = divergence.Intact(), 0
    fresh = compute()
    # Rows of another set may have the same ids.
    others = [replace(example, input_ids=(*example.input_ids, 5)) for example in EXAMPLES[:2]]
    for batch, asked in (
        (EXAMPLES[:2], 2),
        (EXAMPLES[:2], 2),
        (others, 3),
        (EXAMPLES[2:4], 4),
        (EXAMPLES[2:4], 5),
    ):
        logits = intact.of(batch, compute)
        assert calls == asked
        assert all(torch.equal(*pair) for pair in zip(logits, fresh, strict=True))
