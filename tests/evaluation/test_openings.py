"""Rows that open alike, read behind their common opening: the numbers of whole rows."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import mapped
import tiny
from resect.errors import InputError
from resect.evaluation import openings
from resect.evaluation.decode import mean_nlls
from resect.evaluation.openings import nlls_behind

DRAWN = random.Random(0)
OPENING = [DRAWN.randrange(4, 12) for _ in range(10)]
ROWS = [OPENING + [DRAWN.randrange(4, 12) for _ in range(length)] for length in (7, 3, 9, 5, 4)]
STARTS = [12, 11, 15, 11, 13]
# Of these more is kept than keys and values of every token, or less.
WHOLE = {"mistral", "olmo3", "gemma2", "gemma3", "gpt_oss", "qwen3_next", "qwen3_5", "llama4"}


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_rows_behind_an_opening_have_the_nlls_of_whole_rows(architecture: str) -> None:
    model = tiny.build(architecture)
    widths: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda _module, _args, named: widths.append(named["input_ids"].shape[1]), with_kwargs=True
    )
    for batch_size in (1, 2, 5):
        widths.clear()
        lent = nlls_behind(model, ROWS, STARTS, batch_size)
        passed = max(widths)
        assert lent == pytest.approx(mean_nlls(model, ROWS, STARTS, batch_size), rel=1e-5)
        assert (passed == max(map(len, ROWS))) == (architecture in WHOLE)
    hook.remove()


# One keeps running sums in a cache of its own class, one goes on from a cache by single tokens.
@pytest.mark.parametrize("model_type", ["minimax", "prophetnet"])
def test_what_keeps_something_else_is_read_whole(model_type: str) -> None:
    model = mapped.script("model_trials").filled(model_type)
    expected = mean_nlls(model, ROWS, STARTS, 2)
    assert nlls_behind(model, ROWS, STARTS, 2) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "dynamic", "factor": 4.0},
        {
            "rope_type": "longrope",
            "short_factor": [1.0] * 4,
            "long_factor": [4.0] * 4,
            "original_max_position_embeddings": 12,
        },
    ],
    ids=["dynamic", "longrope"],
)
def test_positions_that_depend_on_the_length_are_read_whole(rope: dict[str, Any]) -> None:
    config = tiny.build("llama").config
    config.max_position_embeddings = 12
    config.rope_parameters = {"rope_theta": 10000.0, **rope}
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    expected = mean_nlls(model, ROWS, STARTS, 2)
    assert nlls_behind(model, ROWS, STARTS, 2) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("rows", "starts"),
    [
        ([[4, 5, 6, 7, 8, 9, 10]], [3]),  # one row shares nothing
        ([[4, 5, 6, 7], [5, 6, 7, 8]], [1, 2]),  # nor do these
        ([OPENING, OPENING], [10, 10]),  # nothing is scored
        ([OPENING, [*OPENING, 5]], [10, 10]),  # in one of them
        ([[*OPENING, 5], [*OPENING, 6]], [1, 10]),  # what all share is scored in one
    ],
)
def test_what_has_no_opening_is_read_whole(rows: list[list[int]], starts: list[int]) -> None:
    model = tiny.build("llama")
    expected = mean_nlls(model, rows, starts)
    for nll, slow in zip(nlls_behind(model, rows, starts), expected, strict=True):
        assert nll == (None if slow is None else pytest.approx(slow, rel=1e-5))


def test_the_head_sees_scored_places_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny.build("llama")
    places: list[int] = []
    model.lm_head.register_forward_hook(
        lambda _module, _args, output: places.append(output[..., 0].numel())
    )
    monkeypatch.setattr(openings, "LEAST_OPENING", 100)
    nlls_behind(model, ROWS, STARTS, 5)
    assert places == [sum(len(row) - start for row, start in zip(ROWS, STARTS, strict=True))]


def test_a_model_that_went_wrong_is_refused() -> None:
    model: Any = tiny.build("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(InputError, match="finite"):
        nlls_behind(model, ROWS, STARTS)
