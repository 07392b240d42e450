"""What is wrong with a set before it is used: doubled rows, leaks, lengths, categories.

A leak is a prompt that stands on both sides, calibration and evaluation. Prompts are compared as
they are and without case, marks and blanks, since "How to X?" and "how to x" ask the same.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from resect.data.encode import prompt_text
from resect.data.load import BehaviourSet
from resect.records import Example

Likeness = Literal["same row", "same prompt", "alike"]


@dataclass(frozen=True)
class Pair:
    """Two rows that ask the same.

    Attributes:
        likeness: `same row` (prompt and completion), `same prompt`, or `alike` (but for case, marks
            and blanks).
        earlier: Id of the one row.
        later: Id of the row after it.
    """

    likeness: Likeness
    earlier: str
    later: str


class Sides(NamedTuple):
    """How many rows are for calibration and for evaluation."""

    calibration: int
    evaluation: int


@dataclass(frozen=True)
class SetCheck:
    """What `check_set` found.

    Attributes:
        duplicates: Pairs within the set, each later row with the first one that asks the same. A
            prompt with several completions is no error, but its rows are not independent.
        leaks: Pairs across calibration and evaluation.
        sides: How many rows are on either side; None where nothing tells them apart.
        lengths: A row for prompt and completion: unit, least, median, 95th percentile, most.
        categories: A row a category: rows, and how many of each split.
    """

    duplicates: tuple[Pair, ...]
    leaks: tuple[Pair, ...]
    sides: Sides | None
    lengths: tuple[dict[str, object], ...]
    categories: tuple[dict[str, object], ...]


def check_set(
    data: BehaviourSet,
    against: BehaviourSet | None = None,
    count_tokens: Callable[[str], int] | None = None,
) -> SetCheck:
    """Look for doubled rows and leaks, and measure lengths.

    Args:
        data: The set; its calibration rows are compared with its evaluation rows.
        against: A set whose evaluation rows are compared with the calibration rows of `data` too.
        count_tokens: Counts the tokens of a text; None measures characters.
    """
    rows = data.examples
    splits = {example.split for example in rows}
    calibration = [e for e in rows if e.split == "calibration"]
    evaluation = [e for e in rows if e.split == "evaluation"]
    leaks = _across(calibration, evaluation)
    sides = None
    if {"calibration", "evaluation"} <= splits:
        sides = Sides(len(calibration), len(evaluation))
    if against is not None:
        calibration = list(data.split("calibration").examples)
        evaluation = list(against.split("evaluation").examples)
        leaks += _across(calibration, evaluation)
        sides = Sides(len(calibration), len(evaluation))
    return SetCheck(
        duplicates=tuple(_within(rows)),
        leaks=tuple(leaks),
        sides=sides,
        lengths=tuple(_lengths(rows, count_tokens)),
        categories=tuple(_categories(rows)),
    )


def asked(example: Example) -> str:
    """Return what a row asks: its prompt, or the text itself where there is none."""
    return prompt_text(example) or example.completion


def plain(text: str) -> str:
    """Return a text without case, marks and repeated blanks."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.sub(r"[^\w\s]|_", " ", folded).split())


def _likeness(earlier: Example, later: Example) -> Likeness:
    if earlier.prompt != later.prompt or not earlier.prompt:
        return "alike" if asked(earlier) != asked(later) else "same row"
    return "same row" if earlier.completion == later.completion else "same prompt"


def _within(rows: Iterable[Example]) -> list[Pair]:
    seen: dict[str, Example] = {}
    pairs = []
    for row in rows:
        earlier = seen.setdefault(plain(asked(row)), row)
        if earlier is not row:
            pairs.append(Pair(_likeness(earlier, row), earlier.id, row.id))
    return pairs


def _across(calibration: Iterable[Example], evaluation: Iterable[Example]) -> list[Pair]:
    seen: dict[str, Example] = {}
    for row in calibration:
        seen.setdefault(plain(asked(row)), row)
    return [
        Pair(_likeness(seen[key], row), seen[key].id, row.id)
        for row in evaluation
        if (key := plain(asked(row))) in seen
    ]


def _lengths(
    rows: Iterable[Example], count_tokens: Callable[[str], int] | None
) -> Iterable[dict[str, object]]:
    count = count_tokens or len
    texts = {"prompt": [prompt_text(e) for e in rows], "completion": [e.completion for e in rows]}
    for field, column in texts.items():
        filled = [count(text) for text in column if text]
        if filled:
            yield {
                "part": field,
                "unit": "characters" if count_tokens is None else "tokens",
                "rows": len(filled),
                "least": min(filled),
                "median": float(np.median(filled)),
                "95 %": float(np.percentile(filled, 95)),
                "most": max(filled),
            }


def _categories(rows: Iterable[Example]) -> Iterable[dict[str, object]]:
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        counts.setdefault(row.category, Counter())[row.split] += 1
    splits = dict.fromkeys(split for sizes in counts.values() for split in sizes if split)
    for category, sizes in counts.items():
        counted: dict[str, object] = {"category": category or "none", "rows": sizes.total()}
        yield counted | {split: sizes[split] for split in splits}
