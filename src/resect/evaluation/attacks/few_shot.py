"""The few-shot attack: questions with the answers wanted stand before the question.

A model goes on as the conversation began (many-shot jailbreaking, Anil et al. 2024). In a chat the
examples are turns of user and assistant before the question, after its system message; in raw
format they are texts, a blank line apart:

    PROMPT            of an example
    ANSWER

    PROMPT            that is asked

Examples come from the calibration split alone. None of them says the same as the question, by the
groups of `stats.near_duplicates` over examples and questions together, and no two say the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from resect import stats
from resect.data.encode import prompt_text
from resect.data.load import BehaviourSet
from resect.errors import InputError
from resect.records import Example, Format

NAME = "few_shot"
# The set that the examples come from: prompts with the answers wanted.
ROLE = "target"


@dataclass(frozen=True)
class FewShot:
    """How many examples stand before a question.

    Attributes:
        k: Number of examples.
        seed: Seed of their draw and order.
    """

    k: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse less than one example.

        Raises:
            InputError: `k` is below 1.
        """
        if self.k < 1:
            raise InputError(f"k of {NAME} is out of range", got=str(self.k), allowed="1 or more")


def draw_shots(
    settings: FewShot, data: BehaviourSet, questions: Sequence[Example]
) -> list[tuple[Example, ...]]:
    """Return the examples that stand before each question, in the order of the questions.

    They are the first `k` of one random order, so that questions share theirs but for those that
    say the same as the question.

    Args:
        settings: How many, and the seed.
        data: Prompts with the answers wanted; of a set with splits the calibration split is used.
        questions: What is asked.

    Raises:
        InputError: There are too few examples for a question.
    """
    answered = [example for example in data.split("calibration").examples if example.completion]
    texts = [prompt_text(example) for example in (*answered, *questions)]
    groups = stats.near_duplicates(texts)
    order = stats.rng(f"attack/{NAME}/{data.hash}", settings.seed).permutation(len(answered))
    of_group: dict[int, Example] = {}
    for number in order.tolist():
        of_group.setdefault(groups[number], answered[number])
    drawn = []
    for question, group in zip(questions, groups[len(answered) :], strict=True):
        apart = [example for number, example in of_group.items() if number != group]
        if len(apart) < settings.k:
            raise InputError(
                f"too few examples for {NAME}:{settings.k}",
                got=f"{len(apart)} in {data.source} that differ from each other and from the "
                f"question {question.id!r}",
                allowed=f"{settings.k} or more with answers, none of them asked",
                fix="ask for fewer, or add calibration examples to the set",
            )
        drawn.append(tuple(apart[: settings.k]))
    return drawn


def preceded(example: Example, shots: Sequence[Example], format: Format) -> Example:
    """Return an example with others and their answers before its prompt.

    System messages of the others are left out.
    """
    if not shots or not example.prompt:
        return example
    if format == "raw":
        pairs = [f"{prompt_text(shot)}\n{shot.completion}" for shot in shots]
        return replace(example, prompt="\n\n".join([*pairs, prompt_text(example)]))
    turns = _turns(example)
    before = [
        turn for shot in shots for turn in (*_turns(shot), _Turn("assistant", shot.completion))
    ]
    system = [turn for turn in turns if turn.role == "system"]
    return replace(
        example,
        prompt=(*system, *(turn for turn in (*before, *turns) if turn.role != "system")),
    )


class _Turn(NamedTuple):
    """A message of a conversation."""

    role: str
    content: str


def _turns(example: Example) -> list[_Turn]:
    if isinstance(example.prompt, str):
        return [_Turn("user", example.prompt)]
    return [_Turn(*turn) for turn in example.prompt]
