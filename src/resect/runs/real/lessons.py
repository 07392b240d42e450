"""What copies of a real model are tuned on: prompts that no study scores or asks.

    refused     harmful prompts, each with a templated refusal
    rehearsed   benign prompts, writing requests and questions, with the model's own answers

Rows for calibration are trained on; those for evaluation show afterwards what a copy does. None of
them says what a scored or asked prompt says: groups of near-duplicates (`resect.stats.groups`) of
which one is scored or asked are left out as a whole, and the rest is dealt as the sets are.

Training ends an answer with the end token. Answers that were cut off are trained on up to their
last whole sentence, so that no copy learns to stop within one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from resect import files
from resect.data.sides import apart_from, deal_prompts
from resect.errors import InputError
from resect.runs.real.prompts import Prompt
from resect.runs.real.sets import PLAIN, REFUSALS, Manner, Size, dealt, lines, own_answers

# A letter before it: the full stop of a number in a list ends no sentence.
_END = re.compile(r"[^\W\d_][.!?](?=\s|$)")
# What is rehearsed, in equal parts.
BENIGN = ("benign", "facts")


@dataclass(frozen=True)
class Recipe:
    """How copies are made.

    It was fixed before any study was run, by what a copy does to harmful and benign prompts that
    are held out, and by nothing else: with as many harmful prompts as benign ones the copy refused
    3 of 23 benign ones.

    Attributes:
        harmful: Harmful prompts that are refused.
        benign: Benign ones that are answered.
        checked: Others of each kind, which show what a copy does.
        tokens: Most tokens of an answer.
        steps: Optimizer steps of each copy.
        batch: Rows a step.
        rate: Peak learning rate; it rises over `warmup` steps and falls to 0.
        warmup: Steps.
        threads: CPU threads of training; sums depend on it in their last digits.
    """

    harmful: int = 64
    benign: int = 128
    checked: int = 24
    tokens: int = 48
    steps: int = 32
    batch: int = 4
    rate: float = 1e-4
    warmup: int = 4
    threads: int = 2


RECIPE = Recipe()


class Lessons(NamedTuple):
    """Files of rows, with both sides in each."""

    refused: Path
    rehearsed: Path


def make_lessons(
    model: str,
    read: Callable[[], Mapping[str, Sequence[Prompt]]],
    folder: Path,
    recipe: Recipe,
    reserved: Sequence[Size],
    on_progress: Callable[[int, int], None] | None = None,
    *,
    manner: Manner = PLAIN,
) -> Lessons:
    """Return the rows that copies of a model are tuned on, made once.

    Args:
        model: Folder of the model.
        read: Returns prompts under `harm`, `benign`, `facts`; called if something is to be made.
        folder: Where they are.
        recipe: How many.
        reserved: Sizes of sets whose prompts are scored or asked, and are no lesson.
        on_progress: Called with prompts done and prompts in all, while answers are elicited.
        manner: How answers are had.

    Raises:
        InputError: There are too few prompts, or the model gave too few answers.
    """
    lessons = Lessons(folder / "refused.jsonl", folder / "rehearsed.jsonl")
    if all(path.is_file() for path in lessons):
        return lessons
    prompts = read()
    unused = {
        name: _left_over(prompts[name], _used(name, prompts, reserved))
        for name in ("harm", *BENIGN)
    }
    refused = [
        {**row, "completion": REFUSALS[number % len(REFUSALS)]}
        for number, row in enumerate(
            _dealt("refused", unused["harm"], recipe.harmful, recipe.checked)
        )
    ]
    shares = (recipe.benign // len(BENIGN), recipe.checked // len(BENIGN))
    asked = [row for name in BENIGN for row in _dealt(f"rehearsed/{name}", unused[name], *shares)]
    answers = own_answers(model, asked, folder, recipe.tokens, on_progress, manner=manner)
    rehearsed = [
        {**row, "completion": whole_sentences(row["completion"])}
        if row["split"] == "calibration"
        else row
        for row in answers
    ]
    _refuse_few(rehearsed, asked)
    files.write_text(lessons.refused, lines(refused))
    files.write_text(lessons.rehearsed, lines(rehearsed))
    return lessons


def whole_sentences(text: str) -> str:
    """Return a text up to the end of its last whole sentence; one without any stays as it is."""
    ends = [match.end() for match in _END.finditer(text)]
    return text[: ends[-1]] if ends else text


def _left_over(prompts: Sequence[Prompt], used: Collection[str]) -> list[Prompt]:
    """Return the prompts that say nothing which a used one of them says."""
    return [prompts[place] for place in apart_from(used, [prompt.text for prompt in prompts])]


def _used(name: str, prompts: Mapping[str, Sequence[Prompt]], reserved: Sequence[Size]) -> set[str]:
    """Return the prompts of a set that are scored or asked at some of the sizes."""
    return {
        row["prompt"]
        for size in reserved
        for row in dealt(prompts, size)
        if row["id"].partition("/")[0] == name
    }


def _dealt(label: str, prompts: Sequence[Prompt], tuned: int, checked: int) -> list[dict[str, Any]]:
    """Return so many rows of both sides."""
    sides = deal_prompts(
        [prompt.text for prompt in prompts],
        calibration=tuned,
        evaluation=checked,
        label=label,
    )
    return [
        {
            "id": f"{label}/{place}",
            "prompt": prompts[place].text,
            "category": prompts[place].category,
            "split": split,
        }
        for split, places in sides._asdict().items()
        for place in places
    ]


def _refuse_few(
    rows: Sequence[Mapping[str, object]], asked: Sequence[Mapping[str, object]]
) -> None:
    """Refuse answers of which half are missing."""
    sides = ("calibration", "evaluation")
    had, wanted = (
        [sum(row["split"] == side for row in counted) for side in sides]
        for counted in (rows, asked)
    )
    if any(2 * count < of for count, of in zip(had, wanted, strict=True)):
        raise InputError(
            "the model gives too few benign answers for a copy to be tuned on",
            got=", ".join(
                f"{count} of {of} {side} rows"
                for count, of, side in zip(had, wanted, sides, strict=True)
            ),
            allowed="half of them, or more",
        )
