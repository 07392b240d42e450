"""What a model said: the answer, the thought before it, and why the reply ended."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from resect.data.encode import PromptIds, decode
from resect.data.thought import ends_in_thought, has_marks, heard, leaves_thought_open
from resect.records import Finish, Reply, Tokenizer

# Tokens at the end of a prompt that are looked at for a thought that it leaves open.
TAIL = 32
# From this share on, replies that the limit cut off are warned of.
MANY_CUT_OFF = 0.2


class Spoken(NamedTuple):
    """A reply as text.

    Attributes:
        text: The answer, without special tokens; empty where a thought has no end.
        thought: The thought before it, None if there is none.
        finish: Why the reply ended; None if that is not known.
    """

    text: str
    thought: str | None = None
    finish: Finish | None = None


def finish_of(reply: Sequence[int], limit: int) -> Finish:
    """Return why a reply ended, which holds its tokens up to and without an end token."""
    return "length" if len(reply) >= limit else "stop"


def spoken(
    tokenizer: Tokenizer, prompt: PromptIds, reply: Sequence[int], finish: Finish | None
) -> Spoken:
    """Return a reply as text, its thought apart.

    Args:
        tokenizer: The model's tokenizer.
        prompt: What was asked; it may leave a thought open.
        reply: Token ids of the reply.
        finish: Why it ended.
    """
    tail = tokenizer.decode(list(prompt.ids[-TAIL:]), skip_special_tokens=False)
    within = ends_in_thought(tail) or leaves_thought_open(prompt.prefix)
    # Tags of thoughts are special tokens in some vocabularies.
    marked = tokenizer.decode(list(reply), skip_special_tokens=False)
    if not within and not has_marks(marked):
        return Spoken(decode(tokenizer, reply), None, finish)
    thought, answer = heard(marked, within=within)
    if thought is None:
        return Spoken(decode(tokenizer, reply), None, finish)
    return Spoken(_plain(tokenizer, answer), _plain(tokenizer, thought), finish)


def _plain(tokenizer: Tokenizer, text: str) -> str:
    """Return a text without special tokens."""
    for token in getattr(tokenizer, "all_special_tokens", ()):
        text = text.replace(token, "")
    return text.strip()


def to_judge(reply: Reply) -> Reply:
    """Return a reply as a judge should see it: the answer alone, and the reference's likewise.

    Records of earlier versions hold a thought and its answer in one text.
    """
    thought, answer = heard(reply.reference)
    seen = reply if thought is None else replace(reply, reference=answer)
    if reply.thought is None:
        thought, answer = heard(reply.text, within=leaves_thought_open(reply.prefix))
        if thought is not None:
            return replace(seen, text=answer, thought=thought)
    return seen


def lacks_answer(reply: Reply) -> bool:
    """Return whether a reply that a judge should see is a thought without an answer."""
    return reply.thought is not None and not any(letter.isalnum() for letter in reply.text)


def cut_off(replies: Iterable[Reply]) -> float | None:
    """Return the share of replies that the limit on tokens cut off; None where it is not known."""
    finished = [reply.finish for reply in replies if reply.finish is not None]
    return finished.count("length") / len(finished) if finished else None


def cut_off_note(share: float | None, whose: str) -> str:
    """Return a warning of replies that the limit on tokens cut off; empty if they are few.

    Args:
        share: Their share; None where it is not known.
        whose: Which replies, for the text.
    """
    if share is None or share <= MANY_CUT_OFF:
        return ""
    return (
        f"{100 * share:.0f} % of the replies ({whose}) were cut off by the limit on tokens: what "
        "they would have said later, a refusal for instance, is not judged; raise --max-new-tokens"
    )
