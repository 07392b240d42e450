"""Sampling from named streams, and perplexity over windows, each against its slow twin."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from resect import stats
from resect.evaluation.decode import GenerationSettings, distinct, generate, repetition
from resect.evaluation.windows import document_nlls, sliding_windows

PROMPTS = [[4, 5, 6], [7, 8, 9, 10, 11], [12], [4, 9], [30, 31, 32, 33]]


def sample(model: Any, batch_size: int, order: list[int], temperature: float = 0.7) -> Any:
    settings = GenerationSettings(6, batch_size, temperature)
    streams = [stats.rng(f"prompt/{at}", 3) for at in order]
    replies = generate(model, tiny.tokenizer(), [PROMPTS[at] for at in order], settings, streams)
    return dict(zip(order, replies, strict=True))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3"])
def test_samples_depend_on_prompt_and_stream_alone(architecture: str) -> None:
    model = tiny.build(architecture)
    whole = sample(model, 5, [0, 1, 2, 3, 4])
    assert whole == sample(model, 1, [4, 3, 2, 1, 0])
    assert whole == sample(model, 2, [0, 1]) | sample(model, 3, [2, 3, 4])
    assert whole != sample(model, 5, [0, 1, 2, 3, 4], temperature=3.0)


def test_samples_equal_a_loop_over_single_tokens() -> None:
    model = tiny.build("llama")
    whole = sample(model, 5, [0, 1, 2, 3, 4])
    for at, prompt in enumerate(PROMPTS):
        numbers = stats.rng(f"prompt/{at}", 3).random(6)
        ids, reply = list(prompt), []
        for number in numbers:
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, -1].double() / 0.7
            chances, token, reached = torch.softmax(logits, 0).tolist(), 0, 0.0
            for token, chance in enumerate(chances):  # noqa: B007
                reached += chance
                if number < reached:
                    break
            if token == 1:
                break
            reply.append(token)
            ids.append(token)
        assert whole[at] == reply


def test_samples_have_the_models_frequencies() -> None:
    model = tiny.build("llama")
    count = 4000
    streams = [stats.rng(f"frequency/{at}") for at in range(count)]
    settings = GenerationSettings(1, 500, temperature=1.5)
    replies = generate(model, tiny.tokenizer(), [PROMPTS[0]] * count, settings, streams)
    with torch.no_grad():
        logits = model(torch.tensor([PROMPTS[0]])).logits[0, -1]
    chances = torch.softmax(logits.double() / 1.5, 0).numpy()
    found = np.bincount([row[0] if row else 1 for row in replies], minlength=len(chances)) / count
    assert np.abs(found - chances).max() < 4 * math.sqrt(0.25 / count)


def test_sampling_needs_a_stream_for_each_prompt() -> None:
    with pytest.raises(ValueError, match="5 prompts to sample from, but 0 streams"):
        generate(tiny.build("llama"), tiny.tokenizer(), PROMPTS, GenerationSettings(2, 2, 1.0))


@pytest.mark.parametrize(("window", "stride"), [(4, 1), (4, 3), (5, 2), (40, 20), (2, 1)])
@pytest.mark.parametrize("length", [1, 2, 4, 5, 13])
def test_windows_score_each_token_once(length: int, window: int, stride: int) -> None:
    scored: list[int] = []
    for part in sliding_windows(length, window, stride):
        assert 0 < part.end - part.start <= window
        assert part.start < part.first_scored
        if part.start:
            assert part.first_scored - part.start >= window - stride
        scored += range(part.first_scored, part.end)
    assert scored == list(range(1, length))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize(("window", "stride"), [(6, 3), (6, 1), (64, 32)])
def test_document_nlls_equal_the_obvious_loop(architecture: str, window: int, stride: int) -> None:
    model = tiny.build(architecture)
    draw = np.random.default_rng(5)
    documents = [draw.integers(4, 64, size=size).tolist() for size in (17, 5, 1, 2)]
    found = document_nlls(model, documents, window, stride, batch_size=3)
    for row, mean in zip(documents, found, strict=True):
        losses = []
        for at in range(1, len(row)):
            # The window that first reaches the token: windows begin at multiples of the stride.
            start = next(s for s in range(0, len(row), stride) if s + window > at)
            with torch.no_grad():
                logits = model(torch.tensor([row[start:at]])).logits[0, -1]
            losses.append(-float(torch.log_softmax(logits.double(), 0)[row[at]]))
        if losses:
            assert mean == pytest.approx(float(np.mean(losses)), rel=1e-4)
        else:
            assert mean is None


def test_distinct_sees_what_repetition_does_not() -> None:
    same = [["a", "b", "c", "d"]] * 5
    assert all(repetition(row) == 0 for row in same)
    assert distinct(same, 2) == pytest.approx(3 / 15)
    assert distinct([["a", "b"], ["b", "a"]], 2) == 1.0
    assert distinct([["a"], []], 2) is None


def test_a_reply_ends_at_the_end_tokens_of_model_and_tokenizer() -> None:
    """A chat model may name the base model's end token, and its tokenizer that of a turn."""
    model, tokenizer = tiny.build("llama"), copy.deepcopy(tiny.tokenizer())
    free = generate(model, tokenizer, PROMPTS, GenerationSettings(6, 5))
    longest = max(range(len(PROMPTS)), key=lambda index: len(set(free[index])))
    last = free[longest][-1]
    first = free[longest].index(last)
    assert first > 0
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(last)
    for ends in (1, [1], None):
        model.generation_config.eos_token_id = ends
        ended = generate(model, tokenizer, PROMPTS, GenerationSettings(6, 5))
        assert ended[longest] == free[longest][:first]
    model.generation_config.eos_token_id = [1, free[longest][0]]
    assert generate(model, tokenizer, PROMPTS, GenerationSettings(6, 5))[longest] == []
