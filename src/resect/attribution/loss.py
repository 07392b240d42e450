"""From encoded examples to a loss: batches of similar length, logits only where a token is scored.

For example e with scored tokens T_e the loss is L_e = -(1/|T_e|) Σ_t log p(token t), in nats; every
example weighs the same. Batches are padded on the right, where nothing that is scored can see the
padding.

Legend: B examples of a batch, T their padded tokens, S scored tokens of a batch, V vocabulary.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from resect import errors
from resect.edit.forward import forward_of
from resect.errors import InputError
from resect.model import context_of
from resect.records import CausalModel, Encoded


def check_examples(encoded: Sequence[Encoded], model: CausalModel) -> None:
    """Refuse examples that cannot be scored.

    Raises:
        InputError: There is no example, or one has no scored token or does not fit the model's
            context; its id is named.
    """
    if not encoded:
        raise InputError("there is no example to score")
    room = context_of(model) or math.inf
    for example in encoded:
        if example.scored_tokens < 1 or example.first_scored < 1:
            raise InputError(
                f"example {example.id!r} has no token to score",
                got=f"{len(example.input_ids)} tokens, the first scored one at "
                f"{example.first_scored}",
                fix="remove it, or lower --skip",
            )
        if len(example.input_ids) > room:
            raise InputError(
                f"example {example.id!r} is longer than the context of the model",
                got=f"{len(example.input_ids)} tokens",
                allowed=f"≤ {room}",
                fix="shorten or remove it",
            )


def batches(
    encoded: Sequence[Encoded], *, size: int | None, tokens: int
) -> Iterator[tuple[Encoded, ...]]:
    """Yield batches of similar length, the longest first, so that what is too large fails early.

    Args:
        encoded: The examples.
        size: Examples a batch, or None to fill batches up.
        tokens: Most tokens a batch, padding included, where `size` is None.
    """
    order = sorted(encoded, key=lambda example: (-len(example.input_ids), example.id))
    done = 0
    while done < len(order):
        count = size or max(1, tokens // len(order[done].input_ids))
        yield tuple(order[done : done + count])
        done += count


@dataclass
class Head:
    """How the output head of a model is reached; found out by the first batch.

    Attributes:
        gathers: Scored rows are gathered before the head; False where a model does not call its
            head as a module on [B, T, *].
    """

    gathers: bool = True


def batch_loss(model: CausalModel, batch: Sequence[Encoded], head: Head) -> Tensor:
    """Return Σ_e weight_e · L_e over a batch, a scalar with gradient.

    Raises:
        InputError: The loss of an example is not finite; its id is named.
    """
    device = next(model.get_input_embeddings().parameters()).device
    width = max(len(example.input_ids) for example in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    attention = torch.zeros_like(ids)
    for row, example in enumerate(batch):
        ids[row, : len(example.input_ids)] = torch.tensor(example.input_ids)
        attention[row, : len(example.input_ids)] = 1
    rows = torch.tensor([r for r, e in enumerate(batch) for _ in range(e.scored_tokens)])
    positions = torch.tensor([t for e in batch for t in range(e.first_scored, len(e.input_ids))])
    inputs = {"input_ids": ids.to(device), "attention_mask": attention.to(device)}
    logits = logits_at(model, inputs, Places(rows, positions - 1), head)
    targets = ids[rows, positions].to(logits.device)
    nll = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")  # [S]
    share = [e.weight / e.scored_tokens for e in batch for _ in range(e.scored_tokens)]
    loss = (nll * torch.tensor(share, device=nll.device)).sum()
    if not math.isfinite(loss.item()):
        bad = int((~nll.isfinite()).nonzero()[0])
        raise not_finite("loss", batch[int(rows[bad])])
    return loss


def not_finite(quantity: str, example: Encoded) -> InputError:
    """Return the error that names the example whose loss or gradient is not a number."""
    return errors.not_finite(f"the {quantity} of example {example.id!r} is")


class Places(NamedTuple):
    """Where logits are wanted: rows [S] of the batch and positions [S] in them."""

    rows: Tensor
    positions: Tensor


def logits_at(
    model: CausalModel,
    inputs: Mapping[str, Tensor],
    places: Places,
    head: Head,
    cache: object = None,
) -> Tensor:
    """Return logits [S, V] where they are wanted.

    The hidden states are gathered before the output head, because the vocabulary projection is
    often the largest tensor of a pass. What a model does to its logits afterwards (soft-capping,
    scaling) still works, since it works on any shape.

    Args:
        model: The model.
        inputs: What it is called with: `input_ids` [B, T] and `attention_mask`.
        places: Where logits are wanted.
        head: What is known of its head; another model's will not do.
        cache: What the rows go on from, as transformers' `past_key_values`; it is copied, for a
            pass adds to it. None begins with the first token.
    """
    rows, positions = places

    def run() -> Tensor:
        if cache is None:
            logits: Tensor = model(**inputs, use_cache=False).logits
        else:
            logits = model(**inputs, use_cache=True, past_key_values=copy.deepcopy(cache)).logits
        return logits

    module = model.get_output_embeddings()
    if head.gathers and module is not None:
        seen: list[bool] = []

        def gather(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            fits = args[0].shape[:2] == inputs["input_ids"].shape
            seen.append(fits)
            hidden = args[0]
            if fits:
                hidden = hidden[rows.to(hidden.device), positions.to(hidden.device)].unsqueeze(0)
            return (hidden, *args[1:])

        hook = module.register_forward_pre_hook(gather)
        try:
            logits = run()
        finally:
            hook.remove()
        if seen == [True] and logits.shape[:2] == (1, len(rows)):
            return logits[0]
        head.gathers = False
    logits = run()
    return logits[rows.to(logits.device), positions.to(logits.device)]


@contextlib.contextmanager
def checkpointed(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Keep only the inputs of blocks, and compute what is inside again in the backward pass."""
    from torch.utils.checkpoint import checkpoint

    def wrap(forward: Callable[..., object]) -> Callable[..., object]:
        def again(*args: object, **kwargs: object) -> object:
            call = functools.partial(forward, **kwargs)
            return checkpoint(call, *args, use_reentrant=False)

        return again

    with contextlib.ExitStack() as stack:
        for block in blocks:
            stack.enter_context(forward_of(block, wrap(block.forward)))
        yield
