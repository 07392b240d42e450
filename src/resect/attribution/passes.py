"""One pass over the data: examples in batches, and their sums over all processes."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from resect.attribution.hooks import Watch, observing
from resect.attribution.loss import Head, batch_loss, batches, checkpointed
from resect.attribution.sums import EACH, Kind, Sums
from resect.errors import InputError
from resect.machine.memory import is_out_of_memory
from resect.machine.processes import ALONE, Processes, is_sharded
from resect.model.prunable import PrunableWeight, blocks
from resect.records import Encoded

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Feed:
    """How examples are put through a model.

    Attributes:
        size: Examples a batch; None fills batches up to `tokens`.
        tokens: Most tokens a batch, padding included.
        checkpoint: Compute activations again in the backward pass.
        processes: The processes that share the examples.
        head: How the output head is reached; found out by the first batch.
    """

    size: int | None
    tokens: int
    checkpoint: bool = False
    processes: Processes = ALONE
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
        rest = list(feed.processes.share(order))
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
    for example in feed.processes.share(encoded):
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
    processes = feed.processes
    size = feed.size and feed.size * processes.count
    for batch in batches(encoded, size=size, tokens=feed.tokens * processes.count):
        # Who has no example left takes part with one that weighs nothing.
        yield tuple(processes.share(batch)) or (replace(batch[0], weight=0.0),)


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


def sum_examples(
    model: Any,
    weights: Sequence[PrunableWeight],
    wanted: Iterable[Kind],
    encoded: Sequence[Encoded],
    feed: Feed,
    *,
    place: str = "",
    on_done: Callable[[int], None],
) -> dict[Kind, dict[str, Tensor]]:
    """Run the examples and return fp32 sums over them, by kind and name.

    Args:
        model: A Hugging Face causal LM.
        weights: The weights that are scored.
        wanted: Which sums to make.
        encoded: All examples of the job.
        feed: How they are put through, and which processes share them.
        place: Device of the sums; "" for that of each weight.
        on_done: Called with the number of examples of each batch.

    Returns:
        Sums shaped as the weights; those of `inputs` as [1, I] or [I, 1] to match them. Where
        weights are sharded, so are the sums.

    Raises:
        InputError: An example does not fit into memory, its loss or gradient is not finite, the
            inputs of a weight cannot be told apart by example, or another process has ended.
    """
    parameters = {weight.name: model.get_parameter(weight.name) for weight in weights}
    sums = Sums(parameters, wanted, place)
    with observing(model, weights, sums) as watch:
        run_examples(model, watch, encoded, feed, on_done)
    totals = dict(sums.totals)
    each = EACH & sums.wanted
    if each:
        # What one process found mixed, all score again: their sums belong together.
        mixed = _in_any(feed.processes, weights, sums.mixed)
        if mixed:
            _log.warning(
                "%d weights mix the examples of a batch; they are scored one example a pass",
                len(mixed),
            )
            again = Sums({one.name: parameters[one.name] for one in mixed}, each, place)
            with observing(model, mixed, again, singly=True) as watch:
                run_singly(model, watch, encoded, feed)
            for kind, found in again.totals.items():
                totals[kind] = {**totals[kind], **found}
    if "inputs" in sums.wanted:
        _check_inputs(
            sums, weights, feed.processes, has_examples=feed.processes.rank < len(encoded)
        )
        totals["inputs"] = {
            weight.name: _input_sum(sums, weight, parameters[weight.name]) for weight in weights
        }
    # Sets have another order in every process; sums must meet those of the same name.
    for kind in sorted(totals):
        for weight in weights:
            feed.processes.add(totals[kind][weight.name])
    return totals


def _in_any(
    processes: Processes, weights: Sequence[PrunableWeight], names: set[str]
) -> list[PrunableWeight]:
    """Return the weights that any process names."""
    flags = processes.either([weight.name in names for weight in weights])
    return [weight for weight, flag in zip(weights, flags, strict=True) if flag]


def _check_inputs(
    sums: Sums, weights: Sequence[PrunableWeight], processes: Processes, *, has_examples: bool
) -> None:
    missing = {weight.name for weight in weights if weight.name not in sums.inputs}
    unseen = _in_any(processes, weights, missing if has_examples else set())
    if unseen:
        raise InputError(
            "the inputs of some weights cannot be told apart by example",
            got=f"{unseen[0].name} and {len(unseen) - 1} more",
            allowed="models whose prunable weights are linear layers outside of experts",
            fix="choose another method",
        )


def _input_sum(sums: Sums, weight: PrunableWeight, parameter: Tensor) -> Tensor:
    axis = 1 if weight.layout == "in_out" else 0
    own = sums.inputs.get(weight.name)
    if own is None:  # a process without examples
        own = torch.zeros(weight.shape[1 - axis], device=parameter.device)
    return own.unsqueeze(axis)
