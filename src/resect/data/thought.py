"""Thoughts of reasoning models: where they end and the answer begins, in text.

A thought stands between two tags before the answer (`BLOCKS`), or in a message of its own for
another recipient or channel than the user's, as gpt-oss writes it:

    <think> ... </think> answer
    <|channel|>analysis<|message|> ... <|end|><|start|>assistant<|channel|>final<|message|>answer

Texts are read with their special tokens, which many of these tags are.
"""

from __future__ import annotations

import re
from typing import NamedTuple

BLOCKS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|channel>", "<channel|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
)
_CHANNEL, _MESSAGE = "<|channel|>", "<|message|>"
_MESSAGE_END = re.compile(r"<\|(?:end|eom|eot|return|call|start)\|>")
# What a generation prompt may write after a tag that it leaves open.
_OPEN = re.compile(
    "(?:"
    + "|".join(re.escape(opening) for opening, _ in BLOCKS)
    + rf"|(?:{re.escape(_CHANNEL)}analysis|to=self){re.escape(_MESSAGE)})(?:thought)?\s*$"
)
# gpt-oss without its special tokens.
_BARE_CHANNELS = re.compile(r"analysis(.*)assistantfinal(.*)", re.DOTALL)


class Heard(NamedTuple):
    """A text taken apart.

    Attributes:
        thought: What was thought; None where nothing is marked as a thought.
        answer: What was said; empty where the thought has no end.
    """

    thought: str | None
    answer: str


def has_marks(text: str) -> bool:
    """Return whether a text holds a tag of a thought."""
    return _MESSAGE in text or any(tag in text for block in BLOCKS for tag in block)


def ends_in_thought(prompt: str) -> bool:
    """Return whether a prompt ends in an open tag, so that what follows is a thought."""
    return _OPEN.search(prompt) is not None


def leaves_thought_open(opening: str) -> bool:
    """Return whether the opening of an answer ends within a thought."""
    return any(opening.rfind(begin) > opening.rfind(end) for begin, end in BLOCKS)


def heard(text: str, *, within: bool = False) -> Heard:
    """Take a reply apart.

    Args:
        text: The reply, with special tokens if it has them.
        within: Whether it begins within a thought.
    """
    if _MESSAGE in text or _CHANNEL in text:
        return _messages(text, within=within)
    if (bare := _BARE_CHANNELS.fullmatch(text)) is not None:
        return Heard(bare[1], bare[2])
    thoughts: list[str] = []
    rest = text
    while (block := _first_block(rest, within=within)) is not None:
        thoughts.append(block.thought or "")
        rest, within = block.answer, False
    return Heard("\n".join(thoughts) if thoughts else None, rest)


def _first_block(text: str, *, within: bool) -> Heard | None:
    """Return the thought that a text begins with and what follows it, if it begins with one."""
    stripped = text.lstrip()
    for begin, end in BLOCKS:
        inner = stripped.removeprefix(begin)
        if inner != stripped:
            thought, _, rest = inner.partition(end)
            return Heard(thought, rest.lstrip())
    # The prompt has opened it, or a record lost its first tag.
    closed = [(text.find(end), begin, end) for begin, end in BLOCKS if end in text]
    if closed:
        place, begin, end = min(closed)
        if begin not in text[:place]:
            return Heard(text[:place], text[place + len(end) :].lstrip())
    return Heard(text, "") if within else None


def _messages(text: str, *, within: bool) -> Heard:
    """Take a reply of several messages apart; the last one to the user is the answer."""
    thoughts: list[str] = []
    answer = ""
    for number, message in enumerate(text.split("<|start|>")):
        header, mark, body = message.partition(_MESSAGE)
        if not mark:
            # The prompt ended within a message, or the limit within a header.
            header, body = ("analysis" if within else "final", header) if number == 0 else ("", "")
            if _CHANNEL in body:
                header, body = "", ""
        body = _MESSAGE_END.split(body)[0]
        if "final" in header or "to=user" in header:
            answer = body
        elif body:
            thoughts.append(body)
    return Heard("\n".join(thoughts) if thoughts or not answer else None, answer)


def before_thought(before: str, completion: str) -> str:
    """Return what stands before a completion that brings its own thought.

    Templates write an empty thought, or the answer's channel, before an answer that has none.

    Args:
        before: What a template writes before an answer.
        completion: The answer.
    """
    begun, end = completion.lstrip(), before.rstrip()
    if begun.startswith(_CHANNEL) and end.endswith(f"{_CHANNEL}final{_MESSAGE}"):
        return before[: before.rfind(_CHANNEL)]
    for opening, closing in BLOCKS:
        if begun.startswith(opening) and end.endswith((opening, closing)) and opening in before:
            return before[: before.rfind(opening)]
    return before
