"""How a long text is read in windows that overlap."""

from __future__ import annotations

from typing import NamedTuple

from resect.errors import InputError

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
