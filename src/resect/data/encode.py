"""Turn examples into token ids.

Two formats, as DESIGN fixes them:
- `raw`: the prompt and a newline, and the completion, tokenised apart without special tokens and
  concatenated, as the released code of arXiv 2604.09544 does.
- `chat`: the prompt through the chat template with its generation prompt, then the completion; no
  end token is added, so none is scored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from resect.data.template import bounded_template
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


def prompt_text(example: Example) -> str:
    """Return the prompt as one text, for `raw` format and for display."""
    if isinstance(example.prompt, str):
        return example.prompt
    return "\n".join(content for _, content in example.prompt)


def _text_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


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
    if not example.prompt:
        raise InputError(
            f"example {example.id!r} is a text without a prompt",
            allowed="texts for the perplexity probe, rows with prompt and completion elsewhere",
            fix="a .txt file is one whole text; write prompts as lines of a .jsonl file: "
            '{"prompt": "...", "completion": "..."}',
        )
    if format == "raw":
        return _text_ids(tokenizer, prompt_text(example) + "\n") + _text_ids(
            tokenizer, opening or ""
        )
    turns = (("user", example.prompt),) if isinstance(example.prompt, str) else example.prompt
    messages = [{"role": role, "content": content} for role, content in turns]
    ending = {"add_generation_prompt": True}
    if opening is not None:
        # The template itself writes the turn that goes on: some write more than the generation
        # prompt (a closed thought) or strip the text, and a model has only seen that.
        messages.append({"role": "assistant", "content": opening})
        ending = {"continue_final_message": True}
    chat: Any = tokenizer  # `Tokenizer` says nothing of chat templates
    # enable_thinking is read by the templates of reasoning models and ignored by the others.
    with bounded_template(f"example {example.id!r}"):
        encoded = chat.apply_chat_template(
            messages, return_dict=True, enable_thinking=False, **ending
        )
    return list(encoded["input_ids"])


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
        prompt = _prompt_ids(tokenizer, example, format)
        response = _text_ids(tokenizer, example.completion)
        unscored = max(skip, example.prefix_tokens)
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
