"""Replies that people labelled: what a judge is fitted on, measured on and corrected with.

A file has a row for each reply, in any format that `data.rows` reads, with these columns:

    prompt      what was asked; also called `objective`
    reply       what was answered; also `response`, `assistant_response`, `completion` or `text`
    label       how far the reply shows the behaviour, in [0, 1]; also `human_score`, or a column
                for each person, `label_1`, `label_2`, ... or `human_score_1`, ...: the mean counts
    category    optional; also `harm_category`
    key         optional: an answer key, which the exact judge needs
    data_type   optional; rows of another type than `text` are left out

A CSV file may begin with lines that start with #. So the labelled replies of PyRIT
(`datasets/scorer_evals/`) are read as they are. A true hit is a label of at least `HALF`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from resect.data.load import answer_key
from resect.data.rows import read_rows
from resect.errors import InputError
from resect.files.origin import hash_file
from resect.stats import normalised

HALF = 0.5
PROMPT = ("prompt", "objective")
REPLY = ("reply", "response", "assistant_response", "completion", "text")
CATEGORY = ("category", "harm_category")
LABEL = re.compile(r"(label|human_score)(_\d+)?")


@dataclass(frozen=True)
class Labelled:
    """A reply and what people said of it.

    Attributes:
        prompt: What was asked.
        text: What was answered.
        label: In [0, 1], the mean over people.
        category: Of the prompt; empty if there is none.
        answers: The answer key of the prompt; empty if there is none.
    """

    prompt: str
    text: str
    label: float
    category: str = ""
    answers: Mapping[str, object] = field(default_factory=dict)

    @property
    def hit(self) -> bool:
        """Whether the reply shows the behaviour."""
        return self.label >= HALF

    @property
    def key(self) -> tuple[str, ...]:
        """What the reply is found by, whatever its case and its blanks: prompt and text."""
        return key_of(self.prompt, self.text)


@dataclass(frozen=True)
class Labels:
    """Labelled replies and where they come from.

    Attributes:
        rows: The replies, in the order of the files.
        hashes: File name to the hash of its content.
        doubled: Rows that were left out, since an earlier one has the same prompt and reply.
        left_out: Rows that were left out, since they are no text.
    """

    rows: tuple[Labelled, ...]
    hashes: Mapping[str, str]
    doubled: int = 0
    left_out: int = 0


def key_of(prompt: str, text: str) -> tuple[str, ...]:
    """Return what a reply is found by, whatever its case and its blanks."""
    return (normalised(prompt), normalised(text))


def read_labels(paths: Sequence[Path]) -> Labels:
    """Read the labelled replies of some files.

    Where a row has no category and there are several files, the name of its file is its category.

    Raises:
        InputError: A file cannot be read or is named twice, a row lacks a column, or a label is
            no number in [0, 1]; the message names the row.
    """
    rows: dict[tuple[str, ...], Labelled] = {}
    hashes: dict[str, str] = {}
    doubled = left_out = 0
    if len({path.resolve() for path in paths}) < len(paths):
        raise InputError("a file of labels is named twice", got=", ".join(map(str, paths)))
    for path in paths:
        content = read_rows(path, marked=True)
        hashes[path.name if path.name not in hashes else str(path)] = hash_file(path)
        for number, row in enumerate(content, start=1):
            if row.get("data_type") not in (None, "", "text"):
                left_out += 1
                continue
            labelled = _labelled(row, f"{path} row {number}", path.stem if len(paths) > 1 else "")
            doubled += labelled.key in rows
            rows.setdefault(labelled.key, labelled)
    if not rows:
        raise InputError(
            "there are no labelled replies", got=", ".join(map(str, paths)), allowed="one or more"
        )
    return Labels(tuple(rows.values()), hashes, doubled, left_out)


def _labelled(row: Mapping[str, object], where: str, category: str) -> Labelled:
    prompt, text = _text(row, PROMPT, where), _text(row, REPLY, where)
    columns = [name for name in row if LABEL.fullmatch(name) and row[name] not in (None, "")]
    if not columns:
        raise InputError(
            f"{where} has no label",
            got="columns " + ", ".join(map(str, row)),
            allowed="label or human_score, or label_1, label_2, ... of several people",
        )
    labels = [_number(row[name], f"{where}: {name!r}") for name in columns]
    named = next((str(row[name]) for name in CATEGORY if row.get(name)), category)
    # Files of one category may write its name in their own way.
    return Labelled(
        prompt,
        text,
        math.fsum(labels) / len(labels),
        named.strip().lower(),
        answer_key(row.get("key"), where),
    )


def _text(row: Mapping[str, object], names: Sequence[str], where: str) -> str:
    for name in names:
        if isinstance(value := row.get(name), str):
            return value
    raise InputError(
        f"{where} has no {names[0]!r}",
        got="columns " + ", ".join(map(str, row)),
        allowed=f"a text in one of {', '.join(names)}",
    )


def _number(value: object, where: str) -> float:
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise InputError(
            f"{where} is no label",
            got=repr(value)[:80],
            allowed="a number from 0, not at all, to 1, wholly",
            fix="divide scores of a longer scale by its length",
        )
    return number
