"""How a model's replies may be decoded: found out by trying, for each model, never by its name.

A few short pieces of the prompts at hand go through the model.

- Our own loop must give the logits of transformers' `generate`, to the bit. A model for which it
  does not is decoded by `generate`, as it always was.
- What another number of rows and other columns change in the logits is the rounding of the model.
  Where more prompts than a batch go side by side (`resect.evaluation.wide`), a token counts whose
  lead is `SAFETY` times that.

Legend: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from resect.evaluation.padding import Padded, padded
from resect.evaluation.steps import Ending, Steps, stepped
from resect.evaluation.wide import scale_of
from resect.records import CausalModel

# Prompts of the trial, tokens of the longest of them, and new ones.
ROWS, WIDTH, NEW = 4, 12, 3
# A lead counts that is so many times the rounding that the trial has seen.
SAFETY = 8.0
# Rounding that is assumed at least: four units in the last place of the largest logit.
LEAST = 2.0**-22
# More columns before the first token than in the batch that is compared.
SHIFT = 3


class Ways(NamedTuple):
    """How a model may be decoded.

    Attributes:
        own: Whether our own loop does what `generate` does.
        rounding: What rounding changes in logits, as a part of the largest of a row; inf where that
            is not known, so that no lead is large enough.
        bytes_a_token: Of keys and values, in each row.
    """

    own: bool
    rounding: float = float("inf")
    bytes_a_token: int = 0


class _Settings(NamedTuple):
    """What else a trial depends on."""

    copies: bool
    dtype: torch.dtype
    device: str
    attention: str


_WAYS: WeakKeyDictionary[CausalModel, dict[_Settings, Ways]] = WeakKeyDictionary()
# What a model raises that is called in a way it does not know.
_ODD = (
    AttributeError,
    IndexError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


def ways_of(
    model: CausalModel, prompts: Sequence[Sequence[int]], ending: Ending, copies: int = 1
) -> Ways:
    """Return how a model may be decoded; it is tried once.

    Args:
        model: A Hugging Face causal LM, without gradients and dropout, whose generation settings
            are those of `ending`.
        prompts: Token ids, of which pieces are taken.
        ending: Where replies end.
        copies: How often each batch must stand in a pass.
    """
    device = str(model.device)
    attention = str(getattr(model.config, "_attn_implementation", ""))
    settings = _Settings(copies > 1, model.dtype, device, attention)
    known = _WAYS.setdefault(model, {})
    if settings not in known:
        try:
            known[settings] = _tried(model, prompts, ending, copies)
        except _ODD:
            known[settings] = Ways(own=False)
    return known[settings]


def distrust(model: CausalModel) -> None:
    """Have a model's batches decoded one by one from now on: a lead said too much."""
    known = _WAYS.get(model, {})
    for settings, ways in known.items():
        known[settings] = ways._replace(rounding=float("inf"))


def _tried(
    model: CausalModel, prompts: Sequence[Sequence[int]], ending: Ending, copies: int
) -> Ways:
    from resect.evaluation.room import Room

    if getattr(model.config, "is_encoder_decoder", False) or not Room.fits(model):
        return Ways(own=False)
    order = sorted(range(len(prompts)), key=lambda position: len(prompts[position]))
    chosen = order[:: max(1, len(order) // ROWS)][:ROWS]
    pieces = [prompts[place][-(WIDTH - row) :] for row, place in enumerate(chosen)]
    batch = padded(pieces * copies, ending.fill, left=True).to(model.device)
    steps = Steps(model)
    if not _is_generate(steps, batch, ending):
        return Ways(own=False)
    return _rounding(steps, batch, copies)


class _Generated(Protocol):
    """What `generate` returns if it is asked for its logits: of each token [B, V]."""

    logits: Sequence[Tensor]


def _is_generate(steps: Steps, batch: Padded, ending: Ending) -> bool:
    """Tell whether our own loop gives the logits of `generate`, to the bit."""
    from transformers import GenerationConfig

    config = GenerationConfig(
        max_new_tokens=NEW,
        do_sample=False,
        pad_token_id=ending.fill,
        return_dict_in_generate=True,
        output_logits=True,
    )
    generated = cast(
        "_Generated",
        steps.model.generate(
            input_ids=batch.ids, attention_mask=batch.mask, generation_config=config
        ),
    )
    ours = stepped(steps, batch, replace(ending, longest=NEW))
    return all(
        torch.equal(logits.float(), step.logits)
        for logits, step in zip(generated.logits, ours, strict=True)
    )


def _rounding(steps: Steps, batch: Padded, copies: int) -> Ways:
    """Return what rounding changes in the logits of a token behind prompts."""
    from resect.evaluation.room import Room

    (rows, width), device = batch.ids.shape, batch.ids.device
    units = rows // copies
    room, logits = steps.prefilled(batch, width + 1)
    tokens, places = logits.argmax(-1), batch.mask.sum(dim=1, keepdim=True)

    def logits_of(chosen: Sequence[int], shift: int) -> Tensor:
        """Return the next logits of prompts, together, with columns before the first token."""
        numbers = [copy * units + unit for copy in range(copies) for unit in chosen]
        index = torch.tensor(numbers, device=device)
        peer = Room(steps.model, len(index), width + shift + 1)
        peer.open(room, width + shift)
        peer.join(room, index, 0)
        seen = batch.mask.new_zeros(len(index), width + shift + 1)
        seen[:, shift:-1], seen[:, -1] = batch.mask[index], 1
        mask = None if bool(seen.all()) else seen
        return steps.logits(tokens[index][:, None], mask, places[index], peer)

    whole = logits_of(range(units), 0)
    scale = scale_of(whole)
    largest = LEAST
    for chosen in ([0], range(units // 2 + 1), [*range(units)] * 4):
        again = logits_of(chosen, SHIFT)
        numbers = [copy * units + unit for copy in range(copies) for unit in chosen]
        off = ((again - whole[numbers]).abs() / scale[numbers]).nan_to_num(torch.inf)
        # -inf stands for words that are ruled out, either way.
        largest = max(largest, float(off.masked_fill(again == whole[numbers], 0).max()))
    return Ways(own=True, rounding=largest, bytes_a_token=room.bytes_a_token)
