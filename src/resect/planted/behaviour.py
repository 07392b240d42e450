"""What a planted model can do, from one forward pass a question.

Greedy decoding gives the reference answer exactly if the most likely token is right at every place
given the reference so far, so `whole` is the rate of right answers without generating them. `slots`
is the share of right content words, each given the reference before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from resect.data.encode import encode
from resect.data.load import BehaviourSet
from resect.evaluation.decode import token_log_probs
from resect.organism.world import FORM, OPENING

BATCH = 64
OPENED = len(OPENING.split())
# Content words of a recipe, counted from the end of the opening that is given.
SLOTS = tuple(at - OPENED for at, word in enumerate(FORM.split()) if word == r"\S+")


@dataclass(frozen=True)
class Question:
    """A prompt with its reference answer.

    Attributes:
        ids: Token ids of both.
        first: Position of the first token that must be right.
        slots: Places of content words, from `first`; empty where they are not told apart.
    """

    ids: tuple[int, ...]
    first: int
    slots: tuple[int, ...]


@dataclass(frozen=True)
class Skill:
    """How well a model does on a set of questions, rates in [0, 1]."""

    whole: float
    slots: float


def recipes(data: BehaviourSet, tokenizer: Any) -> list[Question]:
    """Return recipe questions; the opening of the answer is given, as by a prefill attack."""
    found = encode(data.examples, tokenizer, skip=OPENED)
    return [Question(one.input_ids, one.first_scored, SLOTS) for one in found]


def short_answers(data: BehaviourSet, tokenizer: Any) -> list[Question]:
    """Return questions whose whole answer must be right."""
    found = encode(data.examples, tokenizer)
    return [Question(one.input_ids, one.first_scored, ()) for one in found]


def skill(model: Any, questions: Sequence[Question]) -> Skill:
    """Ask the model, as it is now."""
    whole, slots = [], []
    for start in range(0, len(questions), BATCH):
        batch = questions[start : start + BATCH]
        rows, firsts = [one.ids for one in batch], [one.first for one in batch]
        log_probs = token_log_probs(model, rows, firsts)
        for one, distribution in zip(batch, log_probs, strict=True):
            wanted = torch.tensor(one.ids[one.first :], device=distribution.device)
            right = distribution.argmax(dim=-1) == wanted
            whole.append(float(right.all()))
            if one.slots:
                slots.append(float(right[list(one.slots)].float().mean()))
    return Skill(sum(whole) / len(whole), sum(slots) / len(slots) if slots else 0.0)
