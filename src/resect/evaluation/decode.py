"""Batched decoding, greedy or sampled, and the likelihood of given tokens.

Legend: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from resect.attribution.head import Head, Places, at_once, can_piece, log_probs_at
from resect.errors import not_finite
from resect.evaluation.padding import padded
from resect.evaluation.replies import Decoding
from resect.evaluation.steps import Ending
from resect.evaluation.wide import Name
from resect.records import CausalModel, DecodingMode, Tokenizer

# Logits of a pass that cannot be made in pieces (`resect.attribution.head`) may take so many bytes,
# or those of one row if that is more: 16 rows of 250 tokens and 262,144 words would be 4 GB.
LOGITS_BYTES = 2**28
# Places whose distributions are in memory together, in fp32.
PLACES = 64


class DecodingConfig(Protocol):
    """What we read of generation settings (`transformers.GenerationConfig`)."""

    eos_token_id: int | list[int] | None


class _Decoder(CausalModel, Protocol):
    """A model with the settings that its own `generate` falls back on."""

    generation_config: DecodingConfig


@dataclass(frozen=True)
class GenerationSettings:
    """How replies are decoded: greedily, or sampled from named streams.

    Either way a run can be repeated. Nothing of the checkpoint's own generation settings comes in.

    Attributes:
        max_new_tokens: Tokens after which a reply is cut off.
        batch_size: Prompts that go through the model together; changes speed, not replies. Behind
            their prompts more rows may be decoded side by side (`resect.evaluation.replies`).
        temperature: 0 decodes greedily; above 0 samples from the whole softmax of logits / T.
        samples: Replies to each prompt; more than one only when sampling.
        seed: Seed of the streams.
        decoding: `exact` decodes each batch by transformers' `generate`, and nothing else; `fast`
            by the fastest way that gives its tokens; `continuous` side by side, with tokens that
            can differ by rounding (`resect.evaluation.replies`).
    """

    max_new_tokens: int = 256
    batch_size: int = 16
    temperature: float = 0.0
    samples: int = 1
    seed: int = 0
    decoding: DecodingMode = "fast"


@contextlib.contextmanager
def evaluating(model: CausalModel) -> Iterator[None]:
    """Run the block without gradients and dropout."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


@contextlib.contextmanager
def decoding_as(model: CausalModel, config: DecodingConfig) -> Iterator[None]:
    """Replace the model's own generation settings.

    Settings that are merely passed to `generate` are filled up with the model's own, so that a
    repetition penalty or a sampling temperature of the checkpoint would come in.
    """
    decoder = cast("_Decoder", model)
    saved = decoder.generation_config
    decoder.generation_config = config
    try:
        yield
    finally:
        decoder.generation_config = saved


def pad_id(tokenizer: Tokenizer) -> int:
    """Return a token id that may fill unused places; masked places never change a result."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    return 0


def end_tokens(model: CausalModel, tokenizer: Tokenizer) -> set[int]:
    """Return the tokens that end a reply: those of the generation config and the tokenizer's.

    Chat models are often saved with the base model's end token in one and the end of a turn in the
    other; a reply that goes on beyond either speaks for the next user.
    """
    saved = getattr(cast("_Decoder", model).generation_config, "eos_token_id", None)
    ends = saved if isinstance(saved, list) else [saved]
    return {end for end in (*ends, tokenizer.eos_token_id) if end is not None}


def by_length(rows: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """Return batches of positions with rows of similar length, longest first.

    Longest first, because a batch that does not fit in memory should fail at once.
    """
    order = sorted(range(len(rows)), key=lambda position: (-len(rows[position]), position))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def generate(
    model: CausalModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    settings: GenerationSettings,
    streams: Sequence[np.random.Generator] = (),
    copies: int = 1,
) -> list[list[int]]:
    """Decode one reply to each prompt.

    Args:
        model: A Hugging Face causal LM.
        tokenizer: Its tokenizer.
        prompts: Token ids of each prompt.
        settings: How to decode; `samples` and `seed` are for those who make the streams.
        streams: For a temperature above 0 the source of randomness of each prompt, from
            `stats.rng` under a label that names the prompt and the sample.
        copies: How often each batch stands in its pass, copy after copy (`resect.edit.many`).

    Returns:
        The new token ids of each prompt, in the order of `prompts`, up to and without the end
        token; of several copies, all prompts of the first, then all of the next.

    Raises:
        ValueError: Sampling without a stream for each prompt.
        InputError: Logits are not finite.
    """
    from transformers import GenerationConfig

    sampled = settings.temperature > 0
    if sampled and len(streams) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts to sample from, but {len(streams)} streams")
    fill = pad_id(tokenizer)
    stop = end_tokens(model, tokenizer)
    config = GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        do_sample=False,
        pad_token_id=fill,
        eos_token_id=sorted(stop) or None,
    )
    uniforms = None
    if sampled and prompts:
        rows = [stream.random(settings.max_new_tokens) for stream in streams]
        uniforms = torch.tensor(np.stack(rows))
    decoding = Decoding(
        model,
        prompts,
        Ending(frozenset(stop), settings.max_new_tokens, fill),
        copies,
        uniforms,
        settings.temperature,
        settings.decoding,
    )
    with evaluating(model), decoding_as(model, config):
        replies = decoding.replies(by_length(prompts, settings.batch_size))
    return [replies[Name(copy, number)] for copy in range(copies) for number in range(len(prompts))]


def copied(positions: Sequence[int], copies: int, count: int) -> list[int]:
    """Return positions among `count` rows in each of so many copies of the rows, copy by copy."""
    return [copy * count + position for copy in range(copies) for position in positions]


def batches_for(
    model: CausalModel,
    rows: Sequence[Sequence[int]],
    batch_size: int,
    copies: int = 1,
    head: Head | None = None,
) -> list[list[int]]:
    """Return the batches of `by_length`; of fewer rows where the logits of one would be too large.

    Args:
        model: Who will read them.
        rows: Token ids.
        batch_size: Most rows of a batch.
        copies: How often each batch will stand in its pass.
        head: What is known of the model's head, for those who read large batches in pieces if they
            can; that is then found out. None makes all logits of a pass at once.
    """
    words = model.config.get_text_config().vocab_size
    batches = by_length(rows, batch_size)
    # The first row of a batch is its longest.
    places = [len(rows[batch[0]]) * len(batch) * copies for batch in batches]
    if head is not None and max(places, default=0) > at_once(model):
        with evaluating(model):
            if can_piece(model, rows[batches[0][0]], copies, head):
                return batches
    smaller = []
    for batch in batches:
        bytes_a_row = 4 * words * len(rows[batch[0]]) * copies
        together = max(1, LOGITS_BYTES // max(1, bytes_a_row))
        smaller += [batch[start : start + together] for start in range(0, len(batch), together)]
    return smaller


def scored_logits(
    model: CausalModel, rows: Sequence[Sequence[int]], starts: Sequence[int]
) -> list[Tensor]:
    """Return the logits of the next token at the scored places of one batch.

    Args:
        model: A Hugging Face causal LM.
        rows: Token ids, prompt and response; all go through in one forward pass.
        starts: For each row the position of its first scored token, at least 1.

    Returns:
        For each row logits [T_scored, V], in the dtype and on the device of the model.
    """
    ids, mask = padded(rows, 0, left=False)
    with evaluating(model):
        logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits
    return [
        logits[position, start - 1 : len(row) - 1]
        for position, (row, start) in enumerate(zip(rows, starts, strict=True))
    ]


def token_log_probs(
    model: CausalModel, rows: Sequence[Sequence[int]], starts: Sequence[int]
) -> list[Tensor]:
    """Return the model's distributions over the next token at the scored places of one batch.

    All of them are in memory at once; `mean_nlls` and `likelihood` look at a few at a time.

    Returns:
        For each row log-probabilities [T_scored, V], fp32, on the model's device.

    Raises:
        InputError: Logits are not finite.
    """
    with torch.inference_mode():
        distributions = [
            torch.log_softmax(logits.float(), dim=-1)
            for logits in scored_logits(model, rows, starts)
        ]
    if any(bool(distribution.isnan().any()) for distribution in distributions):
        raise not_finite("the logits of a response are")
    return distributions


def mean_nlls(
    model: CausalModel,
    rows: Sequence[Sequence[int]],
    starts: Sequence[int],
    batch_size: int = 16,
    copies: int = 1,
) -> list[float | None]:
    """Return for each row the mean NLL (nats per token) of its tokens from `starts` on.

    None stands for a row without such tokens. Of several `copies` of each batch in its pass, all
    rows of the first come first, then all of the next.

    Raises:
        InputError: Logits are not finite.
    """
    results: list[float | None] = [None] * (copies * len(rows))
    scored = [
        position
        for position, (row, start) in enumerate(zip(rows, starts, strict=True))
        if len(row) > start
    ]
    head = Head()
    chosen = [rows[position] for position in scored]
    for batch in batches_for(model, chosen, batch_size, copies, head):
        positions = [scored[number] for number in batch]
        nlls = _nlls(
            model,
            [rows[position] for position in positions] * copies,
            [starts[position] for position in positions] * copies,
            head,
        )
        for number, nll in zip(copied(positions, copies, len(rows)), nlls, strict=True):
            results[number] = nll
    return results


def _nlls(
    model: CausalModel, rows: Sequence[Sequence[int]], starts: Sequence[int], head: Head
) -> list[float]:
    """Return the mean NLL of each row of a batch, from logits in pieces where there are many."""
    words = [row[start:] for row, start in zip(rows, starts, strict=True)]
    if head.whole or len(rows) * max(map(len, rows)) <= at_once(model):
        logits = scored_logits(model, rows, starts)
        return [mean_nll(*pair) for pair in zip(logits, words, strict=True)]
    ids, mask = padded(rows, 0, left=False)
    with evaluating(model):
        log_probs = log_probs_at(
            model,
            {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)},
            places_of(rows, starts),
            torch.tensor([word for of_row in words for word in of_row]),
            head,
        )
        return [mean_of(of_row) for of_row in torch.split(log_probs, list(map(len, words)))]


def places_of(rows: Sequence[Sequence[int]], starts: Sequence[int]) -> Places:
    """Return the places of a batch that predict the tokens of its rows from `starts` on."""
    places = [
        (row, place - 1)
        for row, (ids, start) in enumerate(zip(rows, starts, strict=True))
        for place in range(start, len(ids))
    ]
    return Places(*torch.tensor(places).T)


class Likelihood(NamedTuple):
    """Mean NLL of a row's scored tokens under a variant, and mean KL(intact || variant); nats."""

    nll: float
    kl: float


def likelihood(before: Tensor, after: Tensor, tokens: Sequence[int]) -> Likelihood:
    """Return how likely a variant finds tokens, and how far it is from the intact model there.

    Args:
        before: Logits of the intact model [T, V] that predict the tokens.
        after: Those of the variant.
        tokens: The T tokens.

    Raises:
        InputError: Logits are not finite.
    """
    divergences = []
    with torch.inference_mode():
        for pair in zip(torch.split(before, PLACES), torch.split(after, PLACES), strict=True):
            usual, changed = (torch.log_softmax(piece.float(), dim=-1) for piece in pair)
            if bool(usual.isnan().any()):
                raise not_finite("the logits of a response are")
            divergences.append(kl_at(usual, changed))
        divergence = float(torch.cat(divergences).mean())
    return Likelihood(mean_nll(after, tokens), divergence)


def kl_at(usual: Tensor, changed: Tensor) -> Tensor:
    """Return KL(usual || changed) at each place [s], in nats, of log-probabilities [s, V].

    Both are in fp32, and `changed` is written over.
    """
    gap = torch.sub(usual, changed, out=changed)
    return usual.exp().mul_(gap).sum(dim=-1)


def mean_nll(logits: Tensor, tokens: Sequence[int]) -> float:
    """Return the mean NLL in nats of `tokens` under logits [T, V].

    Raises:
        InputError: Logits are not finite: then the log-probability of every word is NaN.
    """
    targets = torch.tensor(list(tokens), dtype=torch.long, device=logits.device)[:, None]
    with torch.inference_mode():
        log_probs = torch.cat(
            [
                torch.log_softmax(piece.float(), dim=-1).gather(1, word)
                for piece, word in zip(
                    torch.split(logits, PLACES), torch.split(targets, PLACES), strict=True
                )
            ]
        )
        return mean_of(log_probs)


def mean_of(log_probs: Tensor) -> float:
    """Return the mean NLL in nats of tokens with these log-probabilities.

    Raises:
        InputError: Logits are not finite: then the log-probability of every word is NaN.
    """
    nll = float(-log_probs.mean())
    if nll != nll:
        raise not_finite("the logits of a response are")
    return nll


def repetition(tokens: Sequence[object], order: int = 3) -> float | None:
    """Return the share of repeated n-grams, in [0, 1]; None for a text shorter than an n-gram."""
    grams = [tuple(tokens[start : start + order]) for start in range(len(tokens) - order + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else None


def distinct(rows: Sequence[Sequence[object]], order: int = 2) -> float | None:
    """Return distinct-n of a corpus (Li et al. 2016): different n-grams / all n-grams, in [0, 1].

    Unlike `repetition` it also falls when every reply is the same one. It shrinks with the size of
    the corpus, so compare arms over the same prompts alone.

    Args:
        rows: Tokens or words of each reply; an n-gram never spans two replies.
        order: n.

    Returns:
        None if no reply is as long as an n-gram.
    """
    grams = [
        tuple(row[start : start + order]) for row in rows for start in range(len(row) - order + 1)
    ]
    return len(set(grams)) / len(grams) if grams else None
