"""Likelihoods of rows that open alike: what they have in common goes through the model once.

A chat template opens every prompt with the same tokens, a system prompt among them. In a causal
model nothing behind a token changes what is computed there, so the keys and values of the opening
are computed for one row and lent to all. The output head sees scored places alone. Both change
numbers by rounding and nothing else; where a model keeps something other than keys and values of
every token (a recurrent state, a window), or its keys depend on the length of the row (dynamic and
long RoPE), whole rows are read.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from resect.attribution.head import Head, log_probs_at, one_place
from resect.evaluation.decode import batches_for, copied, evaluating, mean_of, places_of
from resect.evaluation.lengths import turns_by_length
from resect.evaluation.padding import padded
from resect.records import CausalModel

if TYPE_CHECKING:
    from transformers.cache_utils import DynamicCache

# A shorter opening is not worth a pass of its own.
LEAST_OPENING = 8
# Types that go on from a cache by a single token and no more.
BY_TOKEN = ("prophetnet",)


def nlls_behind(
    model: CausalModel,
    rows: Sequence[Sequence[int]],
    starts: Sequence[int],
    batch_size: int = 16,
    copies: int = 1,
) -> list[float | None]:
    """Return for each row the mean NLL (nats per token) of its tokens from `starts` on.

    The slow twin is `resect.evaluation.decode.mean_nlls`.

    Args:
        model: A Hugging Face causal LM.
        rows: Token ids, prompt and response.
        starts: For each row the position of its first scored token, at least 1.
        batch_size: Rows of a pass.
        copies: How often each batch stands in its pass, copy after copy (`resect.edit.many`).

    Returns:
        A mean for each row; None stands for a row without such tokens. Of several copies, all rows
        of the first come first, then all of the next.

    Raises:
        InputError: Logits are not finite.
    """
    results: list[float | None] = [None] * (copies * len(rows))
    scored = [number for number, start in enumerate(starts) if len(rows[number]) > start]
    if not scored:
        return results
    head, opening = Head(), _opening([rows[number] for number in scored], starts)
    with evaluating(model):
        cache = _cache(model, rows[scored[0]][:opening], copies)
        opening = opening if cache is not None else 0
        behind_opening = [rows[number][opening:] for number in scored]
        for batch in batches_for(model, behind_opening, batch_size, copies, head):
            numbers = [scored[position] for position in batch] * copies
            behind = [rows[number][opening:] for number in numbers]
            ids, mask = padded(behind, 0, left=False)
            seen = torch.ones(len(numbers), opening, dtype=mask.dtype)
            words = [rows[number][starts[number] :] for number in numbers]
            log_probs = log_probs_at(
                model,
                {
                    "input_ids": ids.to(model.device),
                    "attention_mask": torch.cat([seen, mask], dim=1).to(model.device),
                },
                places_of(behind, [starts[number] - opening for number in numbers]),
                torch.tensor([word for of_row in words for word in of_row]),
                head,
                _lent(cache, len(batch)),
            )
            numbered = copied(numbers[: len(batch)], copies, len(rows))
            of_rows = torch.split(log_probs, list(map(len, words)))
            for number, of_row in zip(numbered, of_rows, strict=True):
                results[number] = mean_of(of_row)
    return results


def _opening(rows: Sequence[Sequence[int]], starts: Sequence[int]) -> int:
    """Return how many tokens all rows open with, short of the place that predicts a scored one."""
    if len(rows) < 2:
        return 0
    columns = zip(*rows, strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))
    shared = min(shared, *(start - 1 for start in starts))
    return shared if shared >= LEAST_OPENING else 0


def _cache(model: CausalModel, opening: Sequence[int], copies: int) -> DynamicCache | None:
    """Return keys and values of the opening, of a row for each copy.

    None stands for a model that does not keep just those.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    if not opening or model.config.model_type in BY_TOKEN or turns_by_length(model):
        return None
    ids = torch.tensor([list(opening)] * copies, device=model.device)
    with one_place(model):
        cache: object = getattr(model(input_ids=ids, use_cache=True), "past_key_values", None)
    # A class of its own (MiniMax) keeps running sums beside its layers.
    if not isinstance(cache, DynamicCache) or type(cache) is not DynamicCache:
        return None
    return cache if all(type(layer) is DynamicLayer for layer in cache.layers) else None


def _lent(cache: DynamicCache | None, rows: int) -> DynamicCache | None:
    """Return the cache of one row, or of each of several, as that of so many rows."""
    if cache is None:
        return None
    lent = copy.deepcopy(cache)
    lent.batch_repeat_interleave(rows)
    return lent
