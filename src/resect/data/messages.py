"""Chat messages as data sets hold them: a role, and text that is plain or in parts.

Messages with `from` and `value`, as ShareGPT has them, are read too; their speakers become roles.

Only text can be put to a model here. What else a turn says (calls of tools, a thought in a field of
its own, images) would vanish from prompts and scored answers in silence, so it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from resect.errors import InputError

# Fields of a turn beside role and content, and of a row, that say something to the model.
SPOKEN = (
    "tool_calls", "function_call", "reasoning_content", "reasoning", "thinking", "refusal", "audio",
    "images",
)  # fmt: skip
# Who speaks where messages have `from` and `value`.
SPEAKERS = {
    "human": "user", "user": "user", "system": "system", "gpt": "assistant", "chatgpt": "assistant",
    "assistant": "assistant", "model": "assistant", "bard": "assistant", "bing": "assistant",
}  # fmt: skip
SHAPE = 'text, or [{"role": "user", "content": "..."}]'


class Turn(NamedTuple):
    """One message: who speaks, and what."""

    role: str
    content: str


def turns_of(value: object, where: str, column: str) -> tuple[Turn, ...]:
    """Return the messages of a conversation.

    Args:
        value: A list of objects with `role` and `content`, or with `from` and `value`.
        where: File and row, for the message.
        column: The column that holds it.

    Raises:
        InputError: It is something else, a turn has no text, or it says more than text.
    """
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
        raise InputError(
            f"{where}: {column!r} is neither text nor a list of messages",
            got=repr(value)[:80],
            allowed=SHAPE,
            fix="write numbers as text" if isinstance(value, int | float) else "",
        )
    return tuple(
        _turn(message, f"{where}: message {number} of {column!r}")
        for number, message in enumerate(value, start=1)
    )


def _turn(message: object, where: str) -> Turn:
    if isinstance(message, Mapping) and "role" not in message and "from" in message:
        message = _of_speaker(message, where)
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise InputError(f"{where} has no role", got=repr(message)[:80], allowed=SHAPE)
    spoken = [name for name in SPOKEN if message.get(name)]
    if spoken:
        raise InputError(
            f"{where} says more than its content",
            got=", ".join(spoken),
            allowed="role and content",
            fix="write it into the content as the model writes it, or leave the row out",
        )
    return Turn(message["role"], content_text(message.get("content"), where))


def _of_speaker(message: Mapping[object, object], where: str) -> dict[object, object]:
    """Return a message of `from` and `value` with a role and a content."""
    speaker = message["from"]
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        raise InputError(
            f"{where} is of an unknown speaker",
            got=repr(speaker)[:80],
            allowed=", ".join(SPEAKERS),
            fix="leave the row out: calls of tools and what they return are not put to models here",
        )
    others = {name: value for name, value in message.items() if name not in ("from", "value")}
    return {**others, "role": SPEAKERS[speaker], "content": message.get("value")}


def content_text(content: object, where: str) -> str:
    """Return the text of a message, whose parts, if it has any, are joined without a blank.

    Raises:
        InputError: There is no text, or something else than text.
    """
    if isinstance(content, str):
        return content
    if content is None:
        raise InputError(f"{where} has no text", got="null", allowed=SHAPE)
    if isinstance(content, Mapping) or not isinstance(content, Sequence):
        raise InputError(f"{where} is no text", got=repr(content)[:80], allowed=SHAPE)
    return "".join(_part_text(part, where) for part in content)


def _part_text(part: object, where: str) -> str:
    if isinstance(part, str):
        return part
    text = part.get("text") if isinstance(part, Mapping) else None
    # Columnar files fill the fields of other parts up with null.
    if not isinstance(part, Mapping) or not isinstance(text, str) or _says_more(part):
        raise InputError(
            f"{where} has a part that is no text",
            got=repr(part)[:80],
            allowed='{"type": "text", "text": "..."}',
            fix="leave the row out: images and sound are not put to models here",
        )
    return text


def _says_more(part: Mapping[object, object]) -> bool:
    others = {name for name, value in part.items() if value is not None} - {"type", "text"}
    return part.get("type", "text") != "text" or bool(others & {"image", "image_url", "audio"})
