"""A cache with room for all tokens of a batch, so that a token costs no copy of those before it.

transformers' own joins the keys and values of all tokens so far with those of the new one: in each
layer, for each token, a new copy of everything. Here they are written into memory that is there
from the start, and the model reads a view of it. Rows that have ended can leave, and rows that went
through the model elsewhere can join: their last tokens stand in the same column.

Legend: B rows, H heads, T columns, D numbers of a head.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers.cache_utils import (
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)

from resect.records import CausalModel

# Columns that memory is taken for beyond those that are needed, if there may be so many.
SPARE = 32


class _Views(NamedTuple):
    """What a layer shows the model: keys and values [B, H, T, D]."""

    keys: Tensor
    values: Tensor


class _Sizes(NamedTuple):
    """How many columns new tokens see, and how many before them they do not."""

    length: int
    offset: int


class _Layer(DynamicLayer):  # type: ignore[misc]
    """Keys and values [B, H, T, D] of a layer; the columns `first` to `end` are in use.

    A layer with a window shows the model what `DynamicSlidingWindowLayer` does.
    """

    def __init__(self, rows: int, columns: int, window: int | None):
        """Plan for so many rows and columns; memory is taken when the first tokens come."""
        super().__init__()
        self.rows, self.columns, self.window = rows, columns, window
        self.is_sliding = window is not None
        self.first = self.end = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take memory for keys and values like these, as far as columns are in use."""

        def room(like: Tensor) -> Tensor:
            return like.new_zeros(self.rows, like.shape[1], self.end, like.shape[3])

        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = room(key_states), room(value_states)
        self.is_initialized = True

    def grow(self, new: int) -> None:
        """Have memory for so many new columns: more of it the more there is, for few copies."""
        needed, present = self.end + new, self.keys.shape[2]
        if needed <= present:
            return
        more = min(self.columns, needed + SPARE + present // 2) - present
        # Of zeros: what is masked has the weight 0, and 0 times what may lie there is not always 0.
        self.keys, self.values = (
            torch.cat([states, states.new_zeros(*states.shape[:2], more, states.shape[3])], dim=2)
            for states in (self.keys, self.values)
        )

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: object, **_named: object
    ) -> _Views:
        """Add a column for each new token; return views of all keys and values that are seen."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.grow(key_states.shape[-2])
        rows, new = key_states.shape[0], key_states.shape[-2]
        start = self.first + self._offset()
        columns = slice(self.end, self.end + new)
        self.keys[:rows, :, columns] = key_states
        self.values[:rows, :, columns] = value_states
        self.end += new
        seen = slice(start, self.end)
        return _Views(self.keys[:rows, :, seen], self.values[:rows, :, seen])

    def get_seq_length(self) -> int:
        """Return the number of columns in use."""
        return self.end - self.first

    def get_mask_sizes(self, query_length: int) -> _Sizes:
        """Return how many columns the next tokens see, theirs included, and how many not."""
        offset = self._offset()
        return _Sizes(self.get_seq_length() - offset + query_length, offset)

    def _offset(self) -> int:
        """Return how many columns in use lie before the window of the next token."""
        return 0 if self.window is None else max(0, self.get_seq_length() - self.window + 1)


class Room:
    """A cache of a model for so many rows and columns.

    Attributes:
        cache: What the model is given.
    """

    def __init__(self, model: CausalModel, rows: int, columns: int):
        """Make a cache with nothing in it, for a model of which `fits` is true."""
        self.cache = DynamicCache(config=cast("Any", model.config.get_text_config()))
        windows = [getattr(layer, "sliding_window", None) for layer in self.cache.layers]
        self._layers = [_Layer(rows, columns, window) for window in windows]
        self.cache.layers = list(self._layers)
        self._columns = columns

    @staticmethod
    def fits(model: CausalModel) -> bool:
        """Tell whether the model keeps keys and values of every token, or of a window, and no more.

        That is the cache that transformers gives it; whether it does well with one of these is
        found out by trying (`resect.evaluation.steps`).
        """
        cache = DynamicCache(config=cast("Any", model.config.get_text_config()))
        kinds = (DynamicLayer, DynamicSlidingWindowLayer)
        return bool(cache.layers) and all(type(layer) in kinds for layer in cache.layers)

    @property
    def first(self) -> int:
        """The first column in use."""
        return self._layers[0].first

    @property
    def end(self) -> int:
        """The column of the next token."""
        return self._layers[0].end

    @property
    def bytes_a_token(self) -> int:
        """Bytes of keys and values of one token of one row."""
        return sum(
            states.shape[1] * states.shape[3] * states.element_size()
            for layer in self._used()
            for states in (layer.keys, layer.values)
        )

    @property
    def full(self) -> bool:
        """Whether there is no column for another token."""
        return self.end == self._columns

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows, [B] int64, in that order, as the first ones."""
        for layer in self._used():
            columns = slice(layer.first, layer.end)
            for states in (layer.keys, layer.values):
                states[: len(rows), :, columns] = states[rows.to(states.device), :, columns]

    def ready(self, peer: Room, end: int) -> None:
        """Take memory for rows like those of another cache; the next token's column will be `end`.

        Whatever is in use here is left out.
        """
        for layer, lent in zip(self._layers, peer._layers, strict=True):
            layer.first, layer.end = 0, end
            if lent.is_initialized and not layer.is_initialized:
                layer.lazy_initialization(lent.keys, lent.values)

    def join(self, peer: Room, rows: Tensor, after: int) -> None:
        """Take over rows of another cache of the same model, whose last tokens are then the last.

        Args:
            peer: The cache, with no more columns in use than here.
            rows: Which, [B] int64.
            after: How many rows are here already.
        """
        places = slice(after, after + len(rows))
        for layer, lent in zip(self._layers, peer._layers, strict=True):
            if not lent.is_initialized:
                continue
            columns = slice(layer.end - lent.end + lent.first, layer.end)
            for states, new in ((layer.keys, lent.keys), (layer.values, lent.values)):
                chosen = new[rows.to(new.device), :, lent.first : lent.end]
                states[places, :, columns] = chosen

    def lend(self, opening: Room, rows: Tensor, gaps: Tensor) -> None:
        """Begin with what all rows open with, as far as it fits into its columns behind a gap.

        Args:
            opening: The cache of the opening, all columns of which are in use.
            rows: [B] int64, which of its rows each row here begins with.
            gaps: [B] int64, columns before the first token of each row.
        """
        for layer, lent in zip(self._layers, opening._layers, strict=True):
            layer.end = lent.end
            if not lent.is_initialized:
                continue
            layer.lazy_initialization(lent.keys, lent.values)
            columns = torch.arange(lent.end, device=gaps.device) - gaps[:, None]
            places = (rows[:, None].to(lent.device), columns.clamp(min=0).to(lent.device))
            for states, new in ((layer.keys, lent.keys), (layer.values, lent.values)):
                states[: len(rows), :, : lent.end] = new.transpose(1, 2)[places].transpose(1, 2)

    def forget(self, columns: int) -> None:
        """Leave the first columns in use out: no row has a token there any more."""
        for layer in self._layers:
            layer.first += columns

    def shift(self) -> None:
        """Move the columns in use to the front."""
        for layer in self._used():
            for states in (layer.keys, layer.values):
                # Not at once: the places overlap.
                states[:, :, : layer.end - layer.first] = states[
                    :, :, layer.first : layer.end
                ].clone()
        for layer in self._layers:
            layer.first, layer.end = 0, layer.end - layer.first

    def _used(self) -> list[_Layer]:
        """Return the layers with keys of their own; some models share those of others."""
        return [layer for layer in self._layers if layer.is_initialized]
