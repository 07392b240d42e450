"""Attacks that change the prompt alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from resect.data.encode import PromptIds, encode_prompt
from resect.errors import InputError
from resect.records import Example, Format, Tokenizer

# Where the question stands in a frame.
QUESTION = "{prompt}"


def none(
    example: Example, tokenizer: Tokenizer, format: Format, tokens: int, phrase: str | None
) -> PromptIds:
    """Ask plainly; `tokens` and `phrase` are not used."""
    del tokens, phrase
    return encode_prompt(example, tokenizer, format=format)


def prefill(
    example: Example, tokenizer: Tokenizer, format: Format, tokens: int, phrase: str | None
) -> PromptIds:
    """Open the assistant's turn with the first tokens of a target answer, or a fixed phrase.

    The verdict is on the continuation alone.

    Raises:
        InputError: The target answer is no longer than the prefix, so that nothing is left to say;
            the prefix has no text.
    """
    if phrase is None:
        total = len(tokenizer(example.completion, add_special_tokens=False)["input_ids"])
        if not 1 <= tokens < total:
            raise InputError(
                f"a prefill of {tokens} tokens leaves nothing of example {example.id!r}",
                got=f"{total} tokens in its completion",
                allowed=f"1 to {total - 1}",
                fix="shorten the prefill or give a fixed phrase",
            )
    prompt = encode_prompt(
        example, tokenizer, format=format, prefix_tokens=tokens, prefix_text=phrase
    )
    if not prompt.prefix.strip():
        raise InputError(
            f"the prefill of example {example.id!r} has no text",
            got=repr(prompt.prefix),
            fix="give a fixed phrase or more tokens",
        )
    return prompt


def framed(example: Example, frame: str) -> Example:
    """Return an example whose question, its last user turn, stands in a text.

    Args:
        example: The example.
        frame: The text, with `{prompt}` in the place of the question; a text without it stands
            before the question. "" leaves the example as it is.
    """
    template = frame if QUESTION in frame else f"{frame} {QUESTION}"
    return _reworded(example, lambda words: template.replace(QUESTION, words)) if frame else example


def followed(example: Example, suffix: str) -> Example:
    """Return an example with a text right behind its question, its last user turn."""
    return _reworded(example, lambda words: words + suffix) if suffix else example


def _reworded(example: Example, change: Callable[[str], str]) -> Example:
    if not example.prompt:
        return example
    if isinstance(example.prompt, str):
        return replace(example, prompt=change(example.prompt))
    turns = list(example.prompt)
    users = [number for number, (role, _) in enumerate(turns) if role == "user"]
    last = users[-1] if users else len(turns) - 1
    role, content = turns[last]
    turns[last] = (role, change(content))
    return replace(example, prompt=tuple(turns))
