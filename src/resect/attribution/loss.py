"""From encoded examples to a loss: batches of similar length, logits only where a token is scored.

For example e with scored tokens T_e the loss is L_e = -(1/|T_e|) Σ_t log p(token t), in nats; every
example weighs the same. Batches are padded on the right, where nothing that is scored can see the
padding. Where the logits of a batch are a large table, they are made in pieces
(`resect.attribution.head`).

Legend: B examples of a batch, T their padded tokens, S scored tokens of a batch, V vocabulary.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from resect import errors
from resect.attribution.head import (
    Head,
    Places,
    Top,
    at_once,
    log_probs,
    logits_at,
    opened,
    pieces,
)
from resect.edit.forward import forward_of
from resect.errors import InputError
from resect.model import context_of
from resect.records import CausalModel, Encoded

# Rows of a piece whose softmax is in memory beside its logits.
ROWS = 16


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
    places, wanted = Places(rows, positions - 1), ids[rows, positions]
    share = torch.tensor([w for e in batch for w in [e.weight / e.scored_tokens] * e.scored_tokens])
    top = opened(model, inputs, places, head) if len(rows) > at_once(model) else None
    if top is not None:
        nll, loss = _in_pieces(model, top, wanted, share)
    else:
        logits = logits_at(model, inputs, places, head)
        targets = wanted.to(logits.device)
        nll = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")  # [S]
        loss = (nll * share.to(nll.device)).sum()
    if not math.isfinite(loss.item()):
        bad = int((~nll.isfinite()).nonzero()[0])
        raise not_finite("loss", batch[int(rows[bad])])
    return loss


class _Summed(NamedTuple):
    """The NLL of each scored token [S] in fp32, and their weighted sum, with gradient."""

    nll: Tensor
    loss: Tensor


def _in_pieces(model: CausalModel, top: Top, targets: Tensor, share: Tensor) -> _Summed:
    """Return NLLs [S] and Σ share · NLL, with logits of a few places in memory at a time.

    The gradient of a piece with respect to its states is taken while its logits are there,

        ∂ Σ share · NLL / ∂ logits = share · (softmax(logits) - one-hot(target))

    and goes through the head at once, so that the backward pass begins at the states.

    Args:
        model: The model.
        top: What is above its trunk.
        targets: [S] the scored tokens.
        share: [S] weight of each, fp32.
    """
    if not (torch.is_grad_enabled() and top.states.requires_grad):
        nll = torch.cat(
            [
                -log_probs(top.logits(top.states[piece]), targets[piece])
                for piece in pieces(model, len(targets))
            ]
        )
        return _Summed(nll, (nll * share.to(nll.device)).sum())
    nlls, slope = [], torch.zeros_like(top.states)
    for piece in pieces(model, len(targets)):
        leaf = top.states[piece].detach().requires_grad_()
        needed: set[int] = set()

        def note(saved: Tensor, needed: set[int] = needed) -> Tensor:
            needed.add(saved.untyped_storage().data_ptr())
            return saved

        with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
            logits = top.logits(leaf)
        # Their gradient takes the place of logits that the backward pass does not need.
        table = logits.detach()
        table = table.clone() if table.untyped_storage().data_ptr() in needed else table
        nlls.append(_turned(table, targets[piece].to(table.device), share[piece].to(table.device)))
        (slope[piece],) = torch.autograd.grad(logits, leaf, table)
    nll = torch.cat(nlls)
    loss = (nll * share.to(nll.device)).sum()
    return _Summed(nll, _Known.apply(top.states, loss, slope))  # type: ignore[no-untyped-call]


def _turned(table: Tensor, targets: Tensor, share: Tensor) -> Tensor:
    """Turn logits [s, V] into the gradient of Σ share · NLL there; return the NLLs [s] in fp32."""
    nlls = []
    parts = (torch.split(tensor, ROWS) for tensor in (table, targets[:, None], share[:, None]))
    for logits, words, weight in zip(*parts, strict=True):
        rows = torch.log_softmax(logits.float(), dim=-1)
        nlls.append(-rows.gather(1, words).squeeze(1))
        logits.copy_(rows.exp_().mul_(weight).scatter_add_(1, words, -weight))
    return torch.cat(nlls)


class _Known(torch.autograd.Function):
    """A number whose gradient with respect to some states is known already."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, loss: Tensor, slope: Tensor) -> Tensor:  # noqa: ARG004
        """Return the loss, a scalar; `slope` is its gradient, shaped as the states."""
        ctx.save_for_backward(slope)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of the states."""
        (slope,) = ctx.saved_tensors
        return slope * gradient.to(slope.device), None, None


def not_finite(quantity: str, example: Encoded) -> InputError:
    """Return the error that names the example whose loss or gradient is not a number."""
    return errors.not_finite(f"the {quantity} of example {example.id!r} is")


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
