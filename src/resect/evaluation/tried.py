"""How a model's replies may be decoded: found out by trying, for each model, never by its name.

A few short pieces of the prompts at hand go through the model.

- Our own loop must give the logits of transformers' `generate`, to the bit. A model for which it
  does not is decoded by `generate`, as it always was.
- What another number of rows and other columns change in the logits is the rounding of the model.
  Where more prompts than a batch go side by side (`resect.evaluation.wide`), a token counts whose
  lead is `SAFETY` times that. Who takes every token (`continuous`) asks of the rounding only
  that it be no more than that of the model's numbers.

Legend: B rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from resect.edit.many import NotTogether
from resect.evaluation.lengths import turns_by_length
from resect.evaluation.padding import Padded, padded
from resect.evaluation.steps import Ending, Prefilled, Steps, stepped
from resect.evaluation.wide import scale_of
from resect.records import CausalModel

# Prompts of the trial, tokens of the longest of them, and new ones.
ROWS, WIDTH, NEW = 4, 12, 3
# No word. Without one of its own, a trial would end where the replies of the model do.
NEVER = 2**31 - 1
# A lead counts that is so many times the rounding that the trial has seen.
SAFETY = 8.0
# Rounding that is assumed at least: four units in the last place of the largest logit.
LEAST = 2.0**-22
# A model in which more than that changes needs nearly all of its tokens again.
MOST = 2.0**-12
# In 16 bits so much may change of what the logits of a row vary by: .13 was seen in 30 blocks of
# bfloat16, and logits of another row differ by 1.4.
MOST_OF_16_BITS = 0.25
# Operations of which the least change of the input can change the output by much.
CHOICES = {"topk", "sort", "argsort", "argmax", "argmin", "kthvalue", "round", "floor", "ceil"}
# More columns before the first token than in the batch that is compared.
SHIFT = 3


class Ways(NamedTuple):
    """How a model may be decoded.

    Attributes:
        ours: Whether our own loop does what `generate` does.
        rounding: What rounding changes in logits, as a part of the largest of a row; inf where that
            is not known, so that no lead is large enough.
        bytes_a_token: Of keys and values, in each row.
    """

    ours: bool
    rounding: float = math.inf
    bytes_a_token: int = 0


class _Settings(NamedTuple):
    """What else a trial depends on."""

    copies: bool
    every: bool
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
    model: CausalModel,
    prompts: Sequence[Sequence[int]],
    ending: Ending,
    copies: int = 1,
    *,
    every: bool = False,
) -> Ways:
    """Return how a model may be decoded; it is tried once.

    Args:
        model: A Hugging Face causal LM, without gradients and dropout, whose generation settings
            are those of `ending`.
        prompts: Token ids, of which pieces are taken.
        ending: Where replies end.
        copies: How often each batch must stand in a pass.
        every: Whether every token is taken, however little it leads.
    """
    device = str(model.device)
    attention = str(getattr(model.config, "_attn_implementation", ""))
    settings = _Settings(copies > 1, every, model.dtype, device, attention)
    ways = _WAYS.setdefault(model, {})
    if settings not in ways:
        try:
            ways[settings] = _tried(model, prompts, ending, copies, every=every)
        except (NotTogether, *_ODD):
            ways[settings] = Ways(ours=False)
    return ways[settings]


def distrust(model: CausalModel) -> None:
    """Have a model's batches decoded one by one from now on: a lead said too much."""
    ways = _WAYS.get(model, {})
    for settings, way in ways.items():
        ways[settings] = way._replace(rounding=math.inf)


def _tried(
    model: CausalModel,
    prompts: Sequence[Sequence[int]],
    ending: Ending,
    copies: int,
    *,
    every: bool,
) -> Ways:
    from resect.evaluation.room import Room

    if getattr(model.config, "is_encoder_decoder", False) or not Room.fits(model):
        return Ways(ours=False)
    order = sorted(range(len(prompts)), key=lambda position: len(prompts[position]))
    chosen = order[:: max(1, len(order) // ROWS)][:ROWS]
    pieces = [prompts[place][-(WIDTH - row) :] for row, place in enumerate(chosen)]
    pieces += [pieces[-1][1:]] if len(pieces[-1]) > 1 else []  # so that one is filled up
    batch = padded(pieces * copies, ending.fill, left=True).to(model.device)
    steps = Steps(model)
    if not _is_generate(steps, batch, ending):
        return Ways(ours=False)
    prefilled = steps.prefilled(batch, batch.ids.shape[1])
    bytes_a_token = prefilled.room.bytes_a_token
    # Of 16 bits, rounding is as large as many leads. In the other case all rows of a batch turn
    # their keys as the longest does.
    narrow = model.dtype != torch.float32
    if (narrow and not every) or turns_by_length(model):
        return Ways(ours=True, bytes_a_token=bytes_a_token)
    changes = _rounding(steps, batch, prefilled, copies)
    if changes.chooses and not every:
        return Ways(ours=True, bytes_a_token=bytes_a_token)
    fit = changes.spread <= MOST_OF_16_BITS if narrow else changes.largest <= MOST
    return Ways(True, changes.largest if fit else math.inf, bytes_a_token)


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
        eos_token_id=NEVER,
        return_dict_in_generate=True,
        output_logits=True,
    )
    generated = cast(
        "_Generated",
        steps.model.generate(
            input_ids=batch.ids, attention_mask=batch.mask, generation_config=config
        ),
    )
    our_steps = stepped(steps, batch, Ending(frozenset(), NEW, ending.fill))
    return all(
        torch.equal(logits.float(), step.logits)
        for logits, step in zip(generated.logits, our_steps, strict=True)
    )


class _Changes(NamedTuple):
    """What the batch of a row changes in its logits.

    Attributes:
        largest: As a part of the largest logit.
        spread: By how much the changes of a row vary, as a part of what its logits vary by: what
            all words of a row have in common says nothing.
        chooses: Whether the model takes the best of several or rounds, so that more can change:
            which experts a token goes to is one thing or another, however small the rounding.
    """

    largest: float
    spread: float
    chooses: bool


def _rounding(steps: Steps, batch: Padded, prefilled: Prefilled, copies: int) -> _Changes:
    """Return what rounding changes in logits: of prompts in two parts, and of a token behind."""
    from resect.evaluation.room import Room

    (rows, width), device = batch.ids.shape, batch.ids.device
    units, half = rows // copies, width // 2
    room, logits = prefilled
    tokens, places = logits.argmax(-1), batch.mask.sum(dim=1, keepdim=True)

    def behind(chosen: Sequence[int], shift: int) -> _Compared:
        """Return the next logits of some prompts, with columns before the first token."""
        numbers = [copy * units + unit for copy in range(copies) for unit in chosen]
        index = torch.tensor(numbers, device=device)
        peer = Room(steps.model, len(index), width + shift + 1)
        peer.ready(room, width + shift)
        peer.join(room, index, 0)
        seen = batch.mask.new_zeros(len(index), width + shift + 1)
        seen[:, shift:-1], seen[:, -1] = batch.mask[index], 1
        mask = None if bool(seen.all()) else seen
        again = steps.logits(tokens[index][:, None], mask, places[index], peer)
        return _Compared(again, index)

    begun, again = Room(steps.model, rows, width), logits
    positions = (batch.mask.cumsum(-1) - 1).masked_fill(batch.mask == 0, 0)
    with _Choices() as choices:
        for columns in (slice(half), slice(half, width)) if half else ():
            seen = batch.mask[:, : columns.stop]
            again = steps.logits(batch.ids[:, columns], seen, positions[:, columns], begun)
        whole = behind(range(units), 0).logits
    parts = _Compared(again, torch.arange(rows, device=device))
    offs = [(_off(logits, parts), _spread(logits, parts))]
    for chosen in ([0], range(units // 2 + 1), [*range(units)] * 4):
        others = behind(chosen, SHIFT)
        offs += [(_off(whole, others), _spread(whole, others))]
    largest, spread = map(max, zip(*offs, strict=True))
    return _Changes(max(LEAST, largest), spread, choices.seen)


class _Choices(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Looks on while a model runs: whether it takes the best of several, or rounds.

    Attributes:
        seen: Whether it does.
    """

    def __init__(self) -> None:
        """Start with nothing seen."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = False

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Carry out an operation, and note whether it is one of `CHOICES`."""
        self.seen |= str(func).split(".")[1] in CHOICES
        return func(*args, **(kwargs or {}))


class _Compared(NamedTuple):
    """Logits [B, V] of some rows, by their numbers [B] in another batch."""

    logits: Tensor
    rows: Tensor


def _off(whole: Tensor, again: _Compared) -> float:
    """Return by how much logits differ, as a part of the largest of a row."""
    same = whole[again.rows]
    off = ((again.logits - same).abs() / scale_of(same)).nan_to_num(math.inf)
    # -inf stands for words that are ruled out, either way.
    return float(off.masked_fill(again.logits == same, 0).max())


def _spread(whole: Tensor, again: _Compared) -> float:
    """Return how much the changes of a row vary, as a part of what its logits do; of the worst."""
    same = whole[again.rows]
    if not torch.equal(same.isfinite(), again.logits.isfinite()):
        return math.inf
    # What is ruled out, either way, is no number.
    change, usual = (
        _deviation(logits.masked_fill(same.isinf(), math.nan))
        for logits in (again.logits - same, same)
    )
    return float((change / usual.clamp(min=1e-30)).nan_to_num(math.inf).max())


def _deviation(logits: Tensor) -> Tensor:
    """Return the standard deviation [B] of the numbers in each row [B, V]."""
    return (logits - logits.nanmean(1, keepdim=True)).square().nanmean(1).sqrt()
