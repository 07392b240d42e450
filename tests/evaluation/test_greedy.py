"""Greedy replies depend on the prompt alone: not on padding, batches or neighbours."""

from __future__ import annotations

import pytest
import torch

import tiny
from resect.evaluation.decode import GenerationSettings, generate


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "qwen3_moe", "bloom"])
def test_batched_replies_equal_single_ones_and_a_plain_loop(architecture: str) -> None:
    model, tokenizer = tiny.build(architecture), tiny.tokenizer()
    prompts = [list(range(4, 4 + length)) for length in (3, 9, 5, 14, 7)]
    together = generate(model, tokenizer, prompts, GenerationSettings(6, batch_size=5))
    singly = generate(model, tokenizer, prompts, GenerationSettings(6, batch_size=1))
    loop = []
    for prompt in prompts:
        ids: list[int] = []
        while len(ids) < 6:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt + ids])).logits[0, -1]
            token = int(logits.argmax())
            if token == tokenizer.eos_token_id:
                break
            ids.append(token)
        loop.append(ids)
    assert together == singly == loop
    assert len({tuple(reply) for reply in loop}) > 1
