"""Likelihoods and KL with the head in pieces, against tables of all logits; and what is kept."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

import largest
import tiny
from resect.attribution import head as heads
from resect.edit.many import Together
from resect.edit.trial import routes_of
from resect.evaluation import decode, divergence
from resect.evaluation.ask import Variant, made
from resect.evaluation.decode import Likelihood, mean_nlls
from resect.evaluation.divergence import Comparison, Intact, Name
from resect.evaluation.openings import nlls_behind
from resect.evaluation.sharing import bytes_a_token, rows_each
from resect.weights.mask import Mask

EXAMPLES = tiny.examples(7, shortest=9)
ROWS = [list(example.input_ids) for example in EXAMPLES]
STARTS = [example.first_scored for example in EXAMPLES]
LONGEST = max(map(len, ROWS))


def at_once(places: int, monkeypatch: pytest.MonkeyPatch, words: int = tiny.VOCABULARY) -> None:
    """Let logits of so many places be made at once."""
    monkeypatch.setattr(heads, "CPU_PIECE", 4 * words * places)


def compared(
    model: Any, variant: Variant, batch_size: int = 3, intact: Intact | None = None
) -> list[Likelihood]:
    comparison = Comparison(model, partial(made, model, variant), intact)
    measured = comparison.likelihoods(EXAMPLES, batch_size)
    return [measured[Name(0, example.id)] for example in EXAMPLES]


def close(fast: list[Likelihood], slow: list[Likelihood]) -> None:
    for pair in zip(fast, slow, strict=True):
        for value, expected in zip(*pair, strict=True):
            assert value == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_pieces_have_the_numbers_of_the_whole(
    architecture: str, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.build(architecture)
    mask = tiny.cut(model, 0.1)
    whole = compared(model, mask, batch_size)
    nlls = mean_nlls(model, ROWS, STARTS, batch_size)
    assert min(entry.kl for entry in whole) > 1e-3
    at_once(2, monkeypatch)
    intact = Intact()
    close(compared(model, mask, batch_size, intact), whole)
    # From what was kept.
    close(compared(model, mask, batch_size, intact), whole)
    assert mean_nlls(model, ROWS, STARTS, batch_size) == pytest.approx(nlls, rel=1e-5)
    assert nlls_behind(model, ROWS, STARTS, batch_size) == pytest.approx(nlls, rel=1e-5)


def test_rows_that_open_alike_are_read_in_pieces_behind_their_opening(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny.build("llama")
    rows = [[*range(4, 16), *row] for row in ROWS]
    starts = [start + 12 for start in STARTS]
    expected = mean_nlls(model, rows, starts, 4)
    at_once(2, monkeypatch)
    passed: list[int] = []
    model.get_output_embeddings().register_forward_hook(
        lambda _module, _args, output: passed.append(output[..., 0].numel())
    )
    assert nlls_behind(model, rows, starts, 4) == pytest.approx(expected, rel=1e-5)
    assert max(passed) == 2


def test_the_intact_model_goes_through_its_blocks_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, passes = tiny.build("llama"), []
    model.model.layers[0].register_forward_hook(lambda *_: passes.append(1))
    at_once(2, monkeypatch)
    intact = Intact()
    compared(model, tiny.cut(model, 0.1), 7, intact)
    # What can be run in pieces is found out with a few tokens, then once intact and once cut.
    assert len(passes) == 3
    compared(model, tiny.cut(model, 0.1, seed=1), 7, intact)
    assert len(passes) == 5
    kept = [tensor for tensors in intact._kept.values() for tensor in tensors]
    scored = sum(example.scored_tokens for example in EXAMPLES)
    assert [tuple(tensor.shape) for tensor in kept] == [(scored, 16), (1, tiny.VOCABULARY)]


def test_a_variant_with_another_head_is_compared_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.build("mistral")
    weight = model.lm_head.weight.detach().clone()
    weight[7] *= 1.5
    variant: Variant = {"lm_head.weight": weight}
    whole = compared(model, variant)
    at_once(2, monkeypatch)
    tables: list[int] = []
    usual = decode.scored_logits

    def counted(*inputs: Any) -> Any:
        tables.append(len(inputs[1]))
        return usual(*inputs)

    monkeypatch.setattr(divergence, "scored_logits", counted)
    close(compared(model, variant), whole)
    # Both tables, for one reference after the other.
    assert tables == [1] * 2 * len(EXAMPLES)


def test_variants_that_share_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.build("llama")
    masks: list[Mask] = [tiny.cut(model, 0.02), tiny.cut(model, 0.02, seed=1)]
    alone = [entry for mask in masks for entry in compared(model, mask)]
    at_once(2, monkeypatch)
    many = Together(model, masks, routes_of(model, range(4, tiny.VOCABULARY)))
    measured = Comparison(model, many.applied, Intact(), copies=2).likelihoods(EXAMPLES, 3)
    close([measured[Name(copy, e.id)] for copy in range(2) for e in EXAMPLES], alone)


@pytest.mark.parametrize("measure", ["mean_nlls", "nlls_behind", "likelihoods"])
def test_no_table_of_all_logits_is_made(measure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = largest.wide()
    mask = tiny.cut(model, 0.1)
    calls: dict[str, Any] = {
        "mean_nlls": lambda: mean_nlls(model, ROWS, STARTS, 7),
        "nlls_behind": lambda: nlls_behind(model, ROWS, STARTS, 7),
        "likelihoods": lambda: compared(model, mask, 7),
    }
    places = 7 * LONGEST if measure != "nlls_behind" else sum(map(len, ROWS)) - sum(STARTS)

    def most() -> int:
        watched = largest.Largest()
        with watched:
            calls[measure]()
        return watched.bytes

    assert most() == 4 * places * largest.WORDS
    at_once(2, monkeypatch, largest.WORDS)
    assert most() == 4 * 2 * largest.WORDS


def test_rows_of_variants_that_share_a_pass_fit_into_the_room_of_one() -> None:
    model = tiny.build("llama")
    tokens = int(1e6 / bytes_a_token(model))
    row = tokens * bytes_a_token(model)
    assert rows_each(model, 16, tokens, 1) == 16
    assert rows_each(model, 16, tokens, 8) == 16  # a small model takes little
    # Of a large batch eight variants have a third more than one, together.
    assert rows_each(model, 1000, tokens, 8) == int(1.3 * 1000 / 8)
    assert 8 * rows_each(model, 1000, tokens, 8) * row <= 1.31 * 1000 * row
    assert rows_each(model, 1, tokens * 10**4, 8) == 1
