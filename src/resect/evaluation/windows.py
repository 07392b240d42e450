"""How a long text is read in windows that overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from resect.errors import InputError
from resect.evaluation.decode import mean_nlls
from resect.records import CausalModel

# A text is read in windows of at most so many tokens.
LONGEST_WINDOW = 2048


class Windows(NamedTuple):
    """Length of the windows of the perplexity probe, and the tokens between their starts."""

    length: int
    stride: int


def windows_of(context: int | None, window: int | None, stride: int | None) -> Windows:
    """Return the windows of a model, as far as they were asked for.

    Args:
        context: Tokens that the model can read at once; None if there is no limit.
        window: Tokens of a window; None for all that the model can read, at most `LONGEST_WINDOW`.
        stride: Tokens between two starts; None for half a window.

    Raises:
        InputError: They do not fit the model, or each other.
    """
    length = window or min(context or LONGEST_WINDOW, LONGEST_WINDOW)
    stride = stride or max(1, length // 2)
    if length < 2 or not 1 <= stride < length or (context is not None and length > context):
        raise InputError(
            "the windows of the perplexity probe do not fit",
            got=f"window {length}, stride {stride}",
            allowed=f"a window of 2 to {context or 'any number of'} tokens, a shorter stride",
            fix="set --window and --stride",
        )
    return Windows(length, stride)


@dataclass(frozen=True)
class Window:
    """A part of a document that goes through the model in one pass.

    Attributes:
        start: Position of its first token in the document.
        first_scored: Position in the document of the first token that is scored here.
        end: Position after its last token.
    """

    start: int
    first_scored: int
    end: int


def sliding_windows(length: int, window: int, stride: int) -> list[Window]:
    """Cover a document so that each token but the first is scored once.

    A token is scored in the first window that holds it. All but those of the first window then
    see at least `window - stride` tokens before them.

    Args:
        length: Tokens of the document.
        window: Most tokens a pass.
        stride: Tokens between the starts of two windows, 1 to `window` - 1: with a stride of a
            whole window, a window's first token would be scored without context.
    """
    windows: list[Window] = []
    scored, start = 1, 0
    while scored < length:
        end = min(start + window, length)
        windows.append(Window(start, scored, end))
        scored, start = end, start + stride
    return windows


class _Piece(NamedTuple):
    """A window of one of several documents."""

    document: int
    window: Window


def document_nlls(
    model: CausalModel,
    documents: Sequence[Sequence[int]],
    window: int,
    stride: int,
    batch_size: int = 1,
    copies: int = 1,
) -> list[float | None]:
    """Return for each document the mean NLL (nats per token) of its tokens but the first.

    None stands for a document of fewer than two tokens. Of several `copies` of each batch in its
    pass, all documents of the first come first, then all of the next.
    """
    pieces = [
        _Piece(number, covered)
        for number, document in enumerate(documents)
        for covered in sliding_windows(len(document), window, stride)
    ]
    rows = [documents[number][covered.start : covered.end] for number, covered in pieces]
    starts = [covered.first_scored - covered.start for _, covered in pieces]
    means = mean_nlls(model, rows, starts, batch_size, copies)
    sums = [0.0] * (copies * len(documents))
    for position, mean in enumerate(means):
        copy, piece = divmod(position, len(pieces))
        number, covered = pieces[piece]
        # mean_nlls knows no mean of a window without a scored token; sliding_windows makes none.
        sums[copy * len(documents) + number] += (mean or 0.0) * (covered.end - covered.first_scored)
    return [
        total / (len(document) - 1) if len(document) > 1 else None
        for total, document in zip(sums, list(documents) * copies, strict=True)
    ]
