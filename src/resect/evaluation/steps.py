"""Our own loop over the tokens of a reply, in the place of transformers' `generate`.

It makes the same calls of the model, with the same numbers, and leaves out what they need not cost:
the copies of the cache, and the settings and criteria that are looked at for each token. That it is
the same is found out by trying (`same_to_the_bit`), for each model, never by its name.

Legend: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from resect.evaluation.padding import Padded
from resect.evaluation.picking import Draw
from resect.records import CausalModel

if TYPE_CHECKING:
    from resect.evaluation.room import Room


class _Module(CausalModel, Protocol):
    def forward(self, *inputs: Tensor, **named: object) -> object:
        """Run it; here only the names of its parameters are looked at."""


@dataclass(frozen=True)
class Ending:
    """Where replies end.

    Attributes:
        stop: Tokens that end one.
        longest: Tokens after which it is cut off.
        fill: The token that a row is fed after its end, and that fills unused places.
    """

    stop: frozenset[int]
    longest: int
    fill: int


class Step(NamedTuple):
    """What came of one call.

    Attributes:
        logits: [B, V] of the next token, float32.
        tokens: [B] the tokens that come next.
    """

    logits: Tensor
    tokens: Tensor


class Prefilled(NamedTuple):
    """Prompts that went through a model.

    Attributes:
        room: Their keys and values.
        logits: [B, V] of the first token of each reply, float32.
    """

    room: Room
    logits: Tensor


class Steps:
    """Calls of a model that keeps keys and values, as transformers' own loop makes them."""

    def __init__(self, model: CausalModel):
        """Look at what its forward method takes."""
        takes = inspect.signature(cast("_Module", model).forward).parameters
        self.model = model
        self._positions = "position_ids" in takes
        self._named: dict[str, object] = {"use_cache": True, "return_dict": True}
        if "logits_to_keep" in takes:
            self._named["logits_to_keep"] = 1

    def prefilled(
        self, prompts: Padded, columns: int, opening: Prefilled | None = None
    ) -> Prefilled:
        """Let prompts through.

        Args:
            prompts: [B, T] tokens.
            columns: For how many there is to be room.
            opening: What all prompts open with, of a row for each of several stretches of B; it is
                not let through again. It is shorter than the shortest prompt.
        """
        from resect.evaluation.room import Room

        ids, mask = prompts
        room, before = Room(self.model, len(ids), columns), 0
        positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0)
        if opening is not None:
            before, stretches = opening.room.end, len(opening.logits)
            rows = torch.arange(len(ids), device=ids.device) // (len(ids) // stretches)
            room.lend(opening.room, rows, ids.shape[1] - mask.sum(dim=1))
        news = slice(before, None)
        return Prefilled(room, self.logits(ids[:, news], prompts.seen, positions[:, news], room))

    def logits(self, ids: Tensor, seen: Tensor | None, positions: Tensor, room: Room) -> Tensor:
        """Return the logits [B, V] of the next token of each row, float32.

        Args:
            ids: [B, T] new tokens.
            seen: [B, columns in use and new ones] 1 where a row has a token, else 0; None where all
                have one, as some ways to attend are faster without a mask.
            positions: [B, T] how many tokens of its row come before each.
            room: Keys and values of the tokens before; those of the new ones are added.
        """
        named = self._named | ({"position_ids": positions} if self._positions else {})
        output = self.model(input_ids=ids, attention_mask=seen, past_key_values=room.cache, **named)
        logits: Tensor = output.logits[:, -1]
        return logits.float()


def stepped(
    steps: Steps, prompts: Padded, ending: Ending, draw: Draw | None = None
) -> Iterator[Step]:
    """Decode the replies to a batch of prompts token by token, as `model.generate` does.

    Args:
        steps: Calls of the model.
        prompts: The batch, on the model's device.
        ending: Where replies end; after all have, nothing more comes.
        draw: Draws tokens; None takes the likeliest.

    Yields:
        What came of each call; behind its end a row is fed `ending.fill`.
    """
    (rows, width), longest = prompts.ids.shape, ending.longest
    room, logits = steps.prefilled(prompts, width + longest - 1)
    seen = prompts.mask.new_ones(rows, width + longest)
    seen[:, :width] = prompts.mask
    filled = prompts.seen is not None
    positions = prompts.mask.sum(dim=1, keepdim=True)
    ended = torch.zeros(rows, dtype=torch.bool, device=seen.device)
    stop = torch.tensor(sorted(ending.stop), dtype=torch.long, device=seen.device)
    with _as_behind_prompts(steps.model):
        for count in range(1, longest + 1):
            scores = logits if draw is None else draw.at(count - 1, logits)
            tokens = scores.argmax(-1).masked_fill(ended, ending.fill)
            yield Step(logits, tokens)
            ended |= torch.isin(tokens, stop)
            if count == longest or bool(ended.all()):
                return
            so_far = seen[:, : width + count] if filled else None
            logits = steps.logits(tokens[:, None], so_far, positions, room)
            positions = positions + 1


def _as_behind_prompts(model: CausalModel) -> contextlib.AbstractContextManager[None]:
    """Let the model be as transformers has it behind the prompt: experts go another way on GPUs."""
    way = getattr(model, "_optimize_model_for_decode", contextlib.nullcontext)
    return cast("contextlib.AbstractContextManager[None]", way())
