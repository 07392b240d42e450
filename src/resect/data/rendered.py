"""Examples as a model sees them, with what is scored of each told apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from resect.data.encode import encode, encode_prompt, text_ids
from resect.data.load import BehaviourSet
from resect.errors import InputError
from resect.records import Example, Format, Tokenizer


@dataclass(frozen=True)
class Rendered:
    """A row as it is put to a model.

    Attributes:
        id: The row's id.
        before: What stands before the scored part, as text.
        scored: What is scored.
        why: Why nothing is; "" if something is.
    """

    id: str
    before: str
    scored: str
    why: str = ""


class View(NamedTuple):
    """How examples are looked at.

    Attributes:
        tokenizer: Of the model that is to be scored; None shows the plain texts.
        format: `raw` or `chat`.
        skip: Response tokens that are not scored; without a tokenizer none can be counted.
    """

    tokenizer: Tokenizer | None
    format: Format
    skip: int = 0


def render_some(data: BehaviourSet, count: int, view: View) -> Iterator[Rendered]:
    """Yield examples from the beginning, the middle and the end of a set.

    Args:
        data: The set.
        count: How many, at most.
        view: How.
    """
    length = len(data)
    last = max(1, count - 1)
    places = dict.fromkeys(round(number * (length - 1) / last) for number in range(count))
    for example in data.at(list(places)).examples:
        if view.tokenizer is None:
            yield _plain(example)
        else:
            yield _rendered(example, view.tokenizer, view)


def _plain(example: Example) -> Rendered:
    """Return the texts as they are, each turn with its role."""
    if isinstance(example.prompt, str):
        before = f"{example.prompt}\n" if example.prompt else ""
    else:
        before = "".join(f"{role}: {content}\n" for role, content in example.prompt)
    return Rendered(example.id, before, example.completion, _why(example))


def _why(example: Example) -> str:
    return "" if example.completion else "the row has no completion"


def _rendered(example: Example, tokenizer: Tokenizer, view: View) -> Rendered:
    """Return what the tokens say that are put to the model."""
    if not example.prompt:
        # Nothing predicts the first token of a text.
        return _cut(example.id, tokenizer, text_ids(tokenizer, example), 1)
    try:
        if not example.completion:
            ids = encode_prompt(example, tokenizer, format=view.format).ids
            return _cut(example.id, tokenizer, list(ids), len(ids), _why(example))
        (encoded,) = encode([example], tokenizer, format=view.format, skip=view.skip)
    except InputError as error:
        return Rendered(example.id, "", "", f"{error.what}: {error.got}")
    return _cut(example.id, tokenizer, list(encoded.input_ids), encoded.first_scored)


def _cut(label: str, tokenizer: Tokenizer, ids: list[int], first: int, why: str = "") -> Rendered:
    """Return the text of ids, cut before the first scored one."""
    whole, before = tokenizer.decode(ids), tokenizer.decode(ids[:first])
    # Decoded alone, the first token of an answer may lose its blank.
    scored = whole[len(before) :] if whole.startswith(before) else tokenizer.decode(ids[first:])
    return Rendered(label, before, scored, why)
