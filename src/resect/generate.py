"""Batched greedy decoding, and the likelihood of given tokens.

Legend: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class GenerationSettings:
    """How replies are decoded: greedily, so that a run can be repeated.

    Attributes:
        max_new_tokens: Tokens after which a reply is cut off.
        batch_size: Prompts decoded together; changes speed, not replies.
    """

    max_new_tokens: int = 256
    batch_size: int = 16


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


@contextlib.contextmanager
def _decoding_as(model: Any, config: Any) -> Iterator[None]:
    """Replace the model's own generation settings.

    Settings that are merely passed to `generate` are filled up with the model's own, so that a
    repetition penalty or a sampling temperature of the checkpoint would come in.
    """
    own = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = own


def pad_id(tokenizer: Any) -> int:
    """Return a token id that may fill unused places; masked places never change a result."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    return 0


def _pad(rows: Sequence[Sequence[int]], fill: int, *, left: bool) -> tuple[Tensor, Tensor]:
    """Return ids and attention mask [B, T], int64, padded to the longest row."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), fill, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for position, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[position, place] = torch.tensor(row, dtype=torch.long)
        mask[position, place] = 1
    return ids, mask


def by_length(rows: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """Return batches of positions with rows of similar length, longest first.

    Longest first, because a batch that does not fit in memory should fail at once.
    """
    order = sorted(range(len(rows)), key=lambda position: (-len(rows[position]), position))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def generate(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], settings: GenerationSettings
) -> list[list[int]]:
    """Decode greedily.

    Args:
        model: A Hugging Face causal LM.
        tokenizer: Its tokenizer.
        prompts: Token ids of each prompt.
        settings: How to decode.

    Returns:
        The new token ids of each prompt, in the order of `prompts`, up to and without the end
        token.
    """
    from transformers import GenerationConfig

    fill = pad_id(tokenizer)
    saved = getattr(model.generation_config, "eos_token_id", None)
    ends = saved if saved is not None else tokenizer.eos_token_id
    stop = set(ends if isinstance(ends, list) else [ends]) - {None}
    config = GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        do_sample=False,
        pad_token_id=fill,
        eos_token_id=sorted(stop) or None,
    )
    replies: list[list[int]] = [[] for _ in prompts]
    with _evaluating(model), _decoding_as(model, config):
        for batch in by_length(prompts, settings.batch_size):
            ids, mask = _pad([prompts[position] for position in batch], fill, left=True)
            output = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
            )
            for position, row in zip(batch, output[:, ids.shape[1] :].tolist(), strict=True):
                end = next((at for at, token in enumerate(row) if token in stop), len(row))
                replies[position] = row[:end]
    return replies


def token_log_probs(
    model: Any, rows: Sequence[Sequence[int]], starts: Sequence[int]
) -> list[Tensor]:
    """Return the model's distributions over the next token at the scored places of one batch.

    Args:
        model: A Hugging Face causal LM.
        rows: Token ids, prompt and response; all go through in one forward pass.
        starts: For each row the position of its first scored token, at least 1.

    Returns:
        For each row log-probabilities [T_scored, V], fp32, on the model's device.
    """
    ids, mask = _pad(rows, 0, left=False)
    with _evaluating(model):
        logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits
        return [
            torch.log_softmax(logits[place, start - 1 : len(row) - 1].float(), dim=-1)
            for place, (row, start) in enumerate(zip(rows, starts, strict=True))
        ]


def mean_nlls(
    model: Any, rows: Sequence[Sequence[int]], starts: Sequence[int], batch_size: int = 16
) -> list[float | None]:
    """Return for each row the mean NLL (nats per token) of its tokens from `starts` on.

    None stands for a row without such tokens.
    """
    results: list[float | None] = [None] * len(rows)
    filled = [
        at for at, (row, start) in enumerate(zip(rows, starts, strict=True)) if len(row) > start
    ]
    for batch in by_length([rows[at] for at in filled], batch_size):
        places = [filled[at] for at in batch]
        log_probs = token_log_probs(
            model, [rows[at] for at in places], [starts[at] for at in places]
        )
        for at, distribution in zip(places, log_probs, strict=True):
            results[at] = mean_nll(distribution, rows[at][starts[at] :])
    return results


def mean_nll(log_probs: Tensor, tokens: Sequence[int]) -> float:
    """Return the mean NLL in nats of `tokens` under `log_probs` [T, V]."""
    targets = torch.tensor(list(tokens), dtype=torch.long, device=log_probs.device)
    return float(-log_probs.gather(1, targets[:, None]).mean())


def repetition(tokens: Sequence[int], order: int = 3) -> float | None:
    """Return the share of repeated n-grams, in [0, 1]; None for a text shorter than an n-gram."""
    grams = [tuple(tokens[at : at + order]) for at in range(len(tokens) - order + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else None
