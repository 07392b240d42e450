"""Replies to many prompts side by side, each the same to the token as in a batch of its own.

More rows a call cost little more where a call costs overhead or the reading of weights, and a row
that has ended costs nothing once it leaves. Both change the numbers of the rows that stay: products
of another number of rows are summed in another order. So the loop notes by how much each token led:

    lead = (largest logit - second largest) / largest absolute logit of the row

A reply all of whose leads are larger than rounding can be (`resect.evaluation.tried`) is the one
that its own batch gives. The batches of the others are decoded again, as they always were, up to
the last token that is not sure.

Prompts go through the model in the batches they always had. Their rows then join those that are
under way, longest prompts first, as soon as there is room: the last tokens of all rows stand in the
same column, and since those that come later are no longer, they fit.

Legend: B rows, V vocabulary, U prompts under way, C copies of each (`resect.edit.many`). Row u of
copy c is row c · U + u.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from resect.evaluation.padding import Padded
from resect.evaluation.picking import Finite
from resect.evaluation.steps import Ending, Prefilled, Steps

if TYPE_CHECKING:
    from resect.evaluation.room import Room

# Columns beyond those of the longest row, so that columns are seldom moved to make room.
SPARE = 64
# Words of a block, where there are many.
BLOCK, MANY_WORDS = 64, 4096
# What all prompts open with goes through the model by itself if it has so many tokens.
LEAST_OPENING = 8
# Rows leave when this part of them has ended.
LEAVING = 1 / 8


class Batch(NamedTuple):
    """Prompts that go through the model together.

    Attributes:
        prompts: Their C · B rows, copy after copy.
        numbers: The number of each of the B prompts.
    """

    prompts: Padded
    numbers: list[int]


class Name(NamedTuple):
    """Which reply."""

    copy: int
    number: int


class Answer(NamedTuple):
    """A reply, and how sure it is.

    Attributes:
        tokens: New tokens, the end token among them.
        unsure: Places of the tokens that did not lead by enough.
    """

    tokens: list[int]
    unsure: list[int]


class Picked(NamedTuple):
    """The likeliest tokens of B rows.

    Attributes:
        tokens: [B] int64; of several, the first one.
        best: [B] their logits.
        leads: [B] by how much each leads, as a part of the largest absolute logit of its row.
    """

    tokens: Tensor
    best: Tensor
    leads: Tensor


def picked(logits: Tensor) -> Picked:
    """Return the likeliest tokens in logits [B, V].

    `argmax` looks at one number after the other. Of many words it is had sooner from the largest
    of each block, which is what `amax` is fast at.
    """
    width = BLOCK if logits.shape[1] >= MANY_WORDS else logits.shape[1]
    whole = logits.shape[1] // width * width
    largest = logits[:, :whole].reshape(len(logits), -1, width).amax(-1)
    if whole < logits.shape[1]:
        largest = torch.cat([largest, logits[:, whole:].amax(1, keepdim=True)], dim=1)
    block = largest.argmax(1, keepdim=True)
    columns = block * width + torch.arange(width, device=logits.device)
    inside = logits.gather(1, columns.clamp(max=logits.shape[1] - 1))
    inside = inside.masked_fill(columns >= logits.shape[1], -torch.inf)
    place = inside.argmax(1, keepdim=True)
    best = inside.gather(1, place)
    second = torch.maximum(
        inside.scatter(1, place, -torch.inf).amax(1), largest.scatter(1, block, -torch.inf).amax(1)
    )
    leads = (best[:, 0] - second) / scale_of(logits)[:, 0]
    return Picked((block * width + place)[:, 0], best[:, 0], leads)


def scale_of(logits: Tensor) -> Tensor:
    """Return the largest absolute logit [B, 1] of each row of logits [B, V] that is finite."""
    best, least = logits.amax(1, keepdim=True).abs(), logits.amin(1, keepdim=True).abs()
    return torch.where(least.isinf(), best, torch.maximum(best, least)).clamp(min=1e-30)


@dataclass
class _Row:
    """A reply under way."""

    name: Name
    start: int
    tokens: list[int] = field(default_factory=list)
    unsure: list[int] = field(default_factory=list)
    ended: bool = False


class Wide:
    """Decodes greedily, as many prompts at once as there is room for."""

    def __init__(
        self,
        steps: Steps,
        ending: Ending,
        finite: Finite,
        *,
        most: int,
        enough: float,
        copies: int = 1,
        opening: Sequence[int] = (),
    ):
        """Prepare.

        Args:
            steps: Calls of the model.
            ending: Where replies end.
            finite: Notes whether logits overflow.
            most: Prompts that may be under way at once.
            enough: The lead above which a token is sure.
            copies: Rows of each of them.
            opening: Tokens that all prompts open with, and go on from.
        """
        self._steps, self._ending, self._finite = steps, ending, finite
        self._most, self._copies, self._enough = most, copies, enough
        self._words = opening if len(opening) >= LEAST_OPENING else ()
        self._opening: Prefilled | None = None
        self._stop = set(ending.stop)
        self._rows: list[_Row] = []
        self._live = 0
        self._queue: deque[Batch] = deque()
        self._room: Room
        self._answers: dict[Name, Answer] = {}

    def answers(self, batches: Sequence[Batch]) -> dict[Name, Answer]:
        """Return the replies to batches of prompts, the longest first."""
        self._queue.extend(batches)
        self._begin(batches)
        while self._queue or self._rows:
            while self._queue and self._live + len(self._queue[0].numbers) <= self._most:
                self._join(self._queue.popleft())
            self._leave(LEAVING)
            if self._rows:
                self._step()
        return self._answers

    def _begin(self, batches: Sequence[Batch]) -> None:
        """Take memory for what all batches need."""
        from resect.evaluation.room import Room

        rows, (_, width) = self._most * self._copies, batches[0].prompts.ids.shape
        later = sum(len(batch.numbers) for batch in batches) > self._most
        columns = width + self._ending.longest + (SPARE if later else 0)
        device = batches[0].prompts.ids.device
        if self._words:
            ids = torch.tensor([list(self._words)] * self._copies, device=device)
            self._opening = self._steps.prefilled(Padded(ids, torch.ones_like(ids)), ids.shape[1])
        self._room = Room(self._steps.model, rows, columns)
        self._seen = torch.zeros(rows, columns, dtype=torch.long, device=device)
        self._last = torch.zeros(rows, dtype=torch.long, device=device)
        self._places = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self._ended = torch.zeros(rows, dtype=torch.bool, device=device)

    def _join(self, batch: Batch) -> None:
        """Let prompts through the model and put their rows to those that are under way."""
        self._leave(0)
        ids, mask = batch.prompts
        (rows, width), before = ids.shape, len(self._rows)
        room, logits = self._steps.prefilled(batch.prompts, width, self._opening)
        if not before:
            self._room.ready(room, width)
        self._room.join(room, torch.arange(rows), before)
        end = self._room.end
        news = slice(before, before + rows)
        self._seen[news] = 0
        self._seen[news, end - width : end] = mask
        self._places[news] = mask.sum(dim=1, keepdim=True)
        self._ended[news] = False
        names = [Name(copy, number) for copy in range(self._copies) for number in batch.numbers]
        lengths = mask.sum(dim=1).tolist()
        self._rows += [_Row(n, end - length) for n, length in zip(names, lengths, strict=True)]
        self._live += len(batch.numbers)
        self._take(logits, news)
        if before and self._copies > 1:
            order = sorted(range(len(self._rows)), key=lambda row: self._rows[row].name.copy)
            self._keep(order)

    def _leave(self, share: float) -> None:
        """Let prompts go whose replies have all ended, if they are more than a share of all."""
        gone = len(self._rows) - self._live * self._copies
        if gone <= share * len(self._rows):
            return
        live = {row.name.number for row in self._rows if not row.ended}
        for row in self._rows:
            if row.name.number not in live:
                self._answers[row.name] = Answer(row.tokens, row.unsure)
        self._keep([n for n, row in enumerate(self._rows) if row.name.number in live])

    def _keep(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order."""
        self._rows = [self._rows[row] for row in rows]
        if not rows:
            return
        index = torch.tensor(rows, device=self._seen.device)
        self._room.keep(index)
        for state in (self._seen, self._last, self._places, self._ended):
            state[: len(rows)] = state[index]

    def _step(self) -> None:
        """Decode one more token of each row."""
        rows = len(self._rows)
        self._make_room()
        first, end = self._room.first, self._room.end
        self._seen[:rows, end] = 1
        seen = self._seen[:rows, first : end + 1]
        logits = self._steps.logits(
            self._last[:rows, None],
            None if bool(seen.all()) else seen,
            self._places[:rows],
            self._room,
        )
        # Not of those that have ended: a model may know no place behind its last one.
        self._places[:rows] += ~self._ended[:rows, None]
        self._take(logits, slice(0, rows))

    def _make_room(self) -> None:
        """Leave columns out that no row has a token in; move the others if there is no room."""
        start, end = min(row.start for row in self._rows if not row.ended), self._room.end
        if self._queue:
            start = min(start, end - self._queue[0].prompts.ids.shape[1])
        self._room.forget(start - self._room.first)
        if self._room.full:
            self._room.shift()
            self._seen[:, : end - start] = self._seen[:, start:end].clone()
            for row in self._rows:
                row.start -= start

    def _take(self, logits: Tensor, places: slice) -> None:
        """Take the likeliest next token of these rows, and note where a reply has ended."""
        tokens, best, leads = picked(logits)
        self._finite.see(best)
        close = (leads <= self._enough).tolist()
        ending = False
        for row, token, near in zip(self._rows[places], tokens.tolist(), close, strict=True):
            if not row.ended:
                row.unsure += [len(row.tokens)] if near else []
                row.tokens.append(token)
                row.ended = token in self._stop or len(row.tokens) == self._ending.longest
                ending |= row.ended
        if ending:
            ended = torch.tensor([row.ended for row in self._rows[places]])
            self._ended[places] = ended.to(self._ended.device)
            self._live = len({row.name.number for row in self._rows if not row.ended})
        self._last[places] = tokens.masked_fill(self._ended[places], self._ending.fill)
