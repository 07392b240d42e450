"""Conversations through a chat template: what asks for an answer, and where an answer begins.

A model is asked by the generation prompt. An answer that is scored stands where the template writes
the assistant's answered turn, which is not always where the generation prompt ends: gpt-oss names a
channel first, and templates of reasoning models end their generation prompt in an open thought.
What the template writes before an answered turn is the truth, for scored answers as for prefills.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from resect.data.template import bounded_template
from resect.data.thought import before_thought
from resect.errors import InputError
from resect.records import Example, Tokenizer

# Stands for an answer while a template is asked what it writes before one.
MARK = "resectanswermark"
QUESTION = "resectquestionmark"

Message = dict[str, object]

# Chat template -> whether it writes text only where text comes in parts.
_in_parts: dict[str, bool] = {}


class Answered(NamedTuple):
    """A conversation with its answer as token ids.

    Attributes:
        prompt: All that the template writes before the answer.
        response: The answer; its first token may begin with a blank of the template's.
        split: Tokens of the answer that there would be less if it were tokenised by itself.
    """

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    split: int = 0


def text_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids of a text without special tokens."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def asked_ids(tokenizer: Tokenizer, example: Example, opening: str | None = None) -> list[int]:
    """Return a prompt as ids, with its generation prompt or with the opening of an answer.

    Raises:
        InputError: The template fails.
    """
    messages: Sequence[Message] = _conversation(example)
    ending = {"add_generation_prompt": True}
    if opening is not None:
        # The template itself writes the turn that goes on: some write more than the generation
        # prompt (a closed thought) or strip the text, and a model has only seen that.
        messages = [*messages, {"role": "assistant", "content": opening}]
        ending = {"continue_final_message": True}
    messages = _formed(tokenizer, messages)
    chat: Any = tokenizer  # `Tokenizer` says nothing of chat templates
    # enable_thinking is read by the templates of reasoning models and ignored by the others.
    with bounded_template(f"example {example.id!r}"):
        encoded = chat.apply_chat_template(
            messages, return_dict=True, enable_thinking=False, **ending
        )
    return list(encoded["input_ids"])


def answered_ids(tokenizer: Tokenizer, example: Example) -> Answered:
    """Return a prompt and its completion as ids, the completion where the template writes it.

    Raises:
        InputError: The template fails, or writes no answer.
    """
    messages: list[Message] = [*_conversation(example), {"role": "assistant", "content": MARK}]
    text = _written(tokenizer, _formed(tokenizer, messages), f"example {example.id!r}")
    before, mark, _ = text.rpartition(MARK)
    if not mark:
        raise InputError(
            "the chat template of the tokenizer writes no answer of the assistant",
            got=f"example {example.id!r}",
            fix="use --format raw, or mend the template",
        )
    return _split(tokenizer, before_thought(before, example.completion), example.completion)


def _split(tokenizer: Tokenizer, before: str, completion: str) -> Answered:
    """Tokenise what stands before an answer and the answer itself.

    Apart, as a model that is asked sees the one and writes the other. Only a blank between them
    belongs to the first word of the answer, in most vocabularies.
    """
    apart = text_ids(tokenizer, completion)
    if not before.endswith(" ") or not completion:
        return Answered(tuple(text_ids(tokenizer, before)), tuple(apart))
    chat: Any = tokenizer  # nor of offsets
    try:
        whole = chat(before + completion, add_special_tokens=False, return_offsets_mapping=True)
        ends = [end for _, end in whole["offset_mapping"]]
    except (NotImplementedError, TypeError, KeyError):  # one that is not written in Rust
        return Answered(tuple(text_ids(tokenizer, before.rstrip(" "))), tuple(apart))
    start = next((n for n, end in enumerate(ends) if end > len(before)), len(ends))
    ids = tuple(whole["input_ids"])
    return Answered(ids[:start], ids[start:], max(0, len(ids) - start - len(apart)))


def _conversation(example: Example) -> list[Message]:
    turns = (("user", example.prompt),) if isinstance(example.prompt, str) else example.prompt
    return [{"role": role, "content": content} for role, content in turns]


def _formed(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[Message]:
    """Return messages in the form in which the template writes their text.

    Templates of models that also see images may leave plain text out without a word.
    """
    template = str(getattr(tokenizer, "chat_template", ""))
    if template not in _in_parts:
        plain: list[Message] = [
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": MARK},
        ]
        _in_parts[template] = not _writes(tokenizer, plain) and _writes(tokenizer, _parts(plain))
    return _parts(messages) if _in_parts[template] else list(messages)


def _parts(messages: Sequence[Message]) -> list[Message]:
    return [
        message | {"content": [{"type": "text", "text": message["content"]}]}
        for message in messages
    ]


def _writes(tokenizer: Tokenizer, messages: Sequence[Message]) -> bool:
    """Return whether the template writes a question and its answer."""
    try:
        text = _written(tokenizer, messages, "a question and its answer")
    except InputError:
        return False
    return QUESTION in text and MARK in text


def _written(tokenizer: Tokenizer, messages: Sequence[Message], whose: str) -> str:
    chat: Any = tokenizer
    with bounded_template(whose):
        return str(chat.apply_chat_template(list(messages), tokenize=False, enable_thinking=False))
