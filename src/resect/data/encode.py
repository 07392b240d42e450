"""Turn examples into token ids.

Two formats, as DESIGN fixes them:
- `raw`: the prompt and a newline, and the completion, tokenised apart without special tokens and
  concatenated, as the released code of arXiv 2604.09544 does.
- `chat`: prompt and completion where the chat template writes an answered turn (`chat.py`); no end
  token is added, so none is scored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from resect.data.chat import Answered, answered_ids, asked_ids
from resect.data.chat import text_ids as _text_ids
from resect.errors import InputError
from resect.records import Encoded, Example, Format, Tokenizer


@dataclass(frozen=True)
class PromptIds:
    """A prompt ready for generation.

    Attributes:
        ids: Token ids of the prompt and of the attack's prefix.
        prefix: Text of the prefix that was put into the assistant's mouth, "" for none.
    """

    ids: tuple[int, ...]
    prefix: str = ""


# Prompts that a tokenizer has encoded, by all that they were written from.
Written = dict[tuple[object, ...], PromptIds]


def prompt_text(example: Example) -> str:
    """Return the prompt as one text, for `raw` format and for display."""
    if isinstance(example.prompt, str):
        return example.prompt
    return "\n".join(content for _, content in example.prompt)


def text_ids(tokenizer: Tokenizer, example: Example) -> list[int]:
    """Return a held-out text as token ids: the prompt, if any, a newline and the completion.

    A tokenizer that knows a token for the beginning of a text gets it, since models that were
    trained with it do not expect a text without; it is context and is not scored.
    """
    prompt = prompt_text(example)
    text = f"{prompt}\n{example.completion}" if prompt else example.completion
    beginning = getattr(tokenizer, "bos_token_id", None)
    return ([] if beginning is None else [int(beginning)]) + _text_ids(tokenizer, text)


def _prompt_ids(
    tokenizer: Tokenizer, example: Example, format: Format, opening: str | None = None
) -> list[int]:
    """Return the ids of a prompt, with an opening of the assistant's turn if there is one."""
    _check_prompt(example)
    if format == "raw":
        return _text_ids(tokenizer, prompt_text(example) + "\n") + _text_ids(
            tokenizer, opening or ""
        )
    return asked_ids(tokenizer, example, opening)


def _check_prompt(example: Example) -> None:
    if not example.prompt:
        raise InputError(
            f"example {example.id!r} is a text without a prompt",
            allowed="texts for the perplexity probe, rows with prompt and completion elsewhere",
            fix="a .txt file is one whole text here; FILE.txt#prompt=line is a prompt a line, and "
            'answers need rows: {"prompt": "...", "completion": "..."}',
        )


def _answered_ids(tokenizer: Tokenizer, example: Example, format: Format) -> Answered:
    """Return the ids of a prompt and of its completion."""
    _check_prompt(example)
    if format == "chat":
        return answered_ids(tokenizer, example)
    return Answered(
        tuple(_prompt_ids(tokenizer, example, format)),
        tuple(_text_ids(tokenizer, example.completion)),
    )


def check_format(tokenizer: Tokenizer, format: Format) -> None:
    """Refuse `chat` for a tokenizer without a chat template.

    Raises:
        InputError: The tokenizer has no template.
    """
    if format == "chat" and not getattr(tokenizer, "chat_template", None):
        raise InputError(
            "the tokenizer has no chat template", allowed="--format raw", fix="use --format raw"
        )


def encode(
    examples: Iterable[Example],
    tokenizer: Tokenizer,
    *,
    format: Format = "chat",
    skip: int = 0,
    tokens: int | None = None,
    max_length: int | None = None,
) -> list[Encoded]:
    """Encode prompts with their completions for scoring.

    Args:
        examples: The examples.
        tokenizer: A Hugging Face tokenizer.
        format: `raw` or `chat`.
        skip: Response tokens that are not scored, from the first. Tokens that an attack wrote
            (`Example.prefix_tokens`) are not scored either way.
        tokens: Most response tokens that are scored after those; what follows is left out.
        max_length: The model's context in tokens; None for no limit.

    Raises:
        InputError: No chat template; an example without a scored token or longer than the
            context, named by its id.
    """
    check_format(tokenizer, format)
    encoded = []
    for example in examples:
        prompt, response, split = _answered_ids(tokenizer, example, format)
        unscored = skip
        if example.prefix_tokens:
            unscored = max(skip, example.prefix_tokens + split)
        if tokens is not None:
            response = response[: unscored + tokens]
        if len(response) <= unscored or not prompt:
            raise InputError(
                f"example {example.id!r} has no token to score",
                got=f"{len(prompt)} prompt and {len(response)} response tokens, skip={unscored}",
                allowed="a prompt, and more response tokens than skip",
                fix="lower --skip or remove the example"
                if response
                else "elicit responses with `resect data collect`, or give a set that has them",
            )
        length = len(prompt) + len(response)
        if max_length is not None and length > max_length:
            raise InputError(
                f"example {example.id!r} is longer than the model's context",
                got=f"{length} tokens",
                allowed=f"{max_length} tokens",
                fix="shorten or remove it: a cut response would change the loss",
            )
        encoded.append(Encoded(example.id, (*prompt, *response), len(prompt) + unscored))
    return encoded


def encode_prompt(
    example: Example,
    tokenizer: Tokenizer,
    *,
    format: Format,
    prefix_tokens: int = 0,
    prefix_text: str | None = None,
) -> PromptIds:
    """Encode a prompt for generation, with the start of an answer if an attack gives one.

    Args:
        example: The example.
        tokenizer: A Hugging Face tokenizer.
        format: `raw` or `chat`.
        prefix_tokens: How many tokens of the example's completion open the answer.
        prefix_text: A fixed opening instead.

    In `chat` format the template continues an assistant turn (`continue_final_message`); in `raw`
    format the opening's tokens follow the prompt's.
    """
    opening = prefix_text
    if prefix_text is None and prefix_tokens:
        opening = decode(tokenizer, _text_ids(tokenizer, example.completion)[:prefix_tokens])
    return PromptIds(tuple(_prompt_ids(tokenizer, example, format, opening)), opening or "")


def decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Return the text of token ids, without special tokens."""
    return tokenizer.decode(list(ids), skip_special_tokens=True)
