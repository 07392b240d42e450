"""Put examples through a model, in batches that become smaller where memory does not suffice."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from resect.errors import InputError
from resect.model.forward import Head, batch_loss, batches, checkpointed
from resect.model.heap import is_out_of_memory
from resect.model.observe import Watch
from resect.model.prunable import blocks
from resect.ranks import ALONE, Ranks, is_sharded
from resect.records import Encoded

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Feed:
    """How examples are put through a model.

    Attributes:
        size: Examples a batch; None fills batches up to `tokens`.
        tokens: Most tokens a batch, padding included.
        checkpoint: Compute activations again in the backward pass.
        ranks: The processes that share the examples.
        head: How the output head is reached; found out by the first batch.
    """

    size: int | None
    tokens: int
    checkpoint: bool = False
    ranks: Ranks = ALONE
    head: Head = field(default_factory=Head)


def run_examples(
    model: Any,
    watch: Watch,
    encoded: Sequence[Encoded],
    feed: Feed,
    on_done: Callable[[int], None],
) -> None:
    """Run this process's share of the examples; what the hooks of `watch` see fills its sums.

    A batch that does not fit makes this and all later ones smaller.

    Args:
        model: A Hugging Face causal LM.
        watch: Its hooks, installed.
        encoded: All examples of the job.
        feed: How they are put through.
        on_done: Called with the number of examples of each batch.

    Raises:
        InputError: An example does not fit into memory, or its loss or gradient is not finite.
    """
    context = checkpointed(blocks(model)) if feed.checkpoint else None
    with context or contextlib.nullcontext():
        if any(is_sharded(parameter) for parameter in model.parameters()):
            _run_together(model, watch, encoded, feed, on_done)
            return
        # Shares of examples that are sorted by length have almost the same lengths.
        order = sorted(encoded, key=lambda example: (-len(example.input_ids), example.id))
        rest = list(feed.ranks.share(order))
        size, tokens = feed.size, feed.tokens
        while rest:
            for batch in batches(rest, size=size, tokens=tokens):
                chosen = set(map(id, batch))
                rest = [example for example in rest if id(example) not in chosen]
                fitted = _run_in_halves(model, watch, batch, feed)
                on_done(len(batch))
                if fitted < len(batch):
                    size, tokens = size and min(size, fitted), max(1, tokens // 2)
                    break


def run_singly(model: Any, watch: Watch, encoded: Sequence[Encoded], feed: Feed) -> None:
    """Run this process's share of the examples one at a time.

    Raises:
        InputError: An example does not fit into memory, or its loss or gradient is not finite.
    """
    for example in feed.ranks.share(encoded):
        _run_in_halves(model, watch, (example,), feed)


def _run_together(
    model: Any,
    watch: Watch,
    encoded: Sequence[Encoded],
    feed: Feed,
    on_done: Callable[[int], None],
) -> None:
    """Run a sharded model: all processes run the same number of batches at the same time."""
    for batch in _common_batches(encoded, feed):
        try:
            _run(model, watch, batch, feed)
        except torch.OutOfMemoryError as error:
            # Trying again would need the other processes, which are in the middle of this batch.
            raise InputError(
                f"a batch of {len(batch)} examples does not fit into memory",
                got=str(error).splitlines()[0],
                fix="lower the batch size; sharded models cannot try again by themselves",
            ) from error
        on_done(len(batch))


def _common_batches(encoded: Sequence[Encoded], feed: Feed) -> Iterator[tuple[Encoded, ...]]:
    ranks = feed.ranks
    size = feed.size and feed.size * ranks.count
    for batch in batches(encoded, size=size, tokens=feed.tokens * ranks.count):
        # Who has no example left takes part with one that weighs nothing.
        yield tuple(ranks.share(batch)) or (replace(batch[0], weight=0.0),)


def _run_in_halves(
    model: Any, watch: Watch, batch: Sequence[Encoded], feed: Feed, *, again: bool = False
) -> int:
    """Run one batch, in halves if memory does not suffice; return how many examples fitted.

    What a failed batch had added to the sums stays and is not added again.
    """
    try:
        _run(model, watch, batch, feed, again=again)
        return len(batch)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        message = str(error).splitlines()[0]
    # Outside of the handler, because a traceback would keep the activations alive.
    watch.clear()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if len(batch) == 1:
        raise InputError(
            f"example {batch[0].id!r} does not fit into memory",
            got=message,
            fix="shorten it, score fewer layers a pass, keep sums on the CPU or use checkpointing",
        )
    _log.info("a batch of %d examples does not fit into memory; trying halves", len(batch))
    half = len(batch) // 2
    return min(
        _run_in_halves(model, watch, batch[:half], feed, again=True),
        _run_in_halves(model, watch, batch[half:], feed, again=True),
    )


def _run(
    model: Any, watch: Watch, batch: Sequence[Encoded], feed: Feed, *, again: bool = False
) -> None:
    watch.begin(batch, again=again)
    if watch.sums.wanted == {"inputs"}:
        with torch.no_grad():
            batch_loss(model, batch, feed.head)
    else:
        with torch.enable_grad():
            watch.backward(batch_loss(model, batch, feed.head))
