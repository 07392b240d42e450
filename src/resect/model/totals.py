"""Sums over all examples of all processes: what a pass over the data is for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from resect.errors import InputError
from resect.model.observe import observing
from resect.model.passes import Feed, run_examples, run_singly
from resect.model.prunable import PrunableWeight
from resect.ranks import Ranks
from resect.records import Encoded
from resect.scores.sums import EACH, Kind, Sums

_log = logging.getLogger(__name__)


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
        mixed = _in_any(feed.ranks, weights, sums.mixed)
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
        _check_inputs(sums, weights, feed.ranks, has_examples=feed.ranks.rank < len(encoded))
        totals["inputs"] = {
            weight.name: _input_sum(sums, weight, parameters[weight.name]) for weight in weights
        }
    # Sets have another order in every process; sums must meet those of the same name.
    for kind in sorted(totals):
        for weight in weights:
            feed.ranks.add(totals[kind][weight.name])
    return totals


def _in_any(
    ranks: Ranks, weights: Sequence[PrunableWeight], names: set[str]
) -> list[PrunableWeight]:
    """Return the weights that any process names."""
    flags = ranks.either([weight.name in names for weight in weights])
    return [weight for weight, flag in zip(weights, flags, strict=True) if flag]


def _check_inputs(
    sums: Sums, weights: Sequence[PrunableWeight], ranks: Ranks, *, has_examples: bool
) -> None:
    missing = {weight.name for weight in weights if weight.name not in sums.inputs}
    unseen = _in_any(ranks, weights, missing if has_examples else set())
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
