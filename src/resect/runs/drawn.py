"""The rows of a run of one model: on which side each is, which have something left to score."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from resect.data import BehaviourSet
from resect.data.task import is_task
from resect.errors import InputError
from resect.files.origin import hash_text
from resect.records import Example, Tokenizer


class Longer(NamedTuple):
    """The rows with something left to score after the opening, and how many have nothing."""

    data: BehaviourSet
    dropped: int


def refuse_bare(name: str, data: BehaviourSet) -> None:
    """Refuse rows that can be neither asked nor scored; lm-eval knows itself what it asks.

    Raises:
        InputError: A row lacks its prompt or its completion.
    """
    bare = any(not example.completion or not example.prompt for example in data.examples)
    if bare and not is_task(data.source):
        raise InputError(
            f"the {name} set {data.source} has rows without a prompt or a completion",
            allowed="rows with both",
            fix="collect answers first: resect data collect MODEL --data SPEC -o FILE",
        )


class Placed(NamedTuple):
    """The files that a run writes, path to rows, and the SPEC of each set by its name."""

    texts: dict[Path, str]
    specs: dict[str, str]


def placed(sets: Mapping[str, BehaviourSet], folder: Path) -> Placed:
    """Return where the rows of each set will be; what lm-eval asks has no file.

    Args:
        sets: The sets by name.
        folder: The whole path, so that the configuration runs again from anywhere.
    """
    ours = {name: data for name, data in sets.items() if not is_task(data.source)}
    places = {name: folder / f"{name}.jsonl" for name in ours}
    specs = {name: str(places.get(name, data.source)) for name, data in sets.items()}
    return Placed({places[name]: as_lines(data) for name, data in ours.items()}, specs)


def side_of(example: Example) -> str:
    """Return the half of a row, by a hash of its prompt."""
    odd = int(hash_text("run", str(example.prompt)), 16) % 2
    return "calibration" if odd else "evaluation"


def counted(data: BehaviourSet) -> str:
    """Return in words how many rows are for what."""
    splits = [example.split for example in data.examples]
    sides = [side for side in ("calibration", "evaluation") if side in splits]
    return ", ".join(f"{splits.count(side)} for {side}" for side in sides)


def lengths_of(tokenizer: Tokenizer, data: BehaviourSet) -> list[int]:
    """Return the tokens of each answer."""
    return [
        len(tokenizer(example.completion, add_special_tokens=False)["input_ids"])
        for example in data.examples
    ]


def longer_than(data: BehaviourSet, tokenizer: Tokenizer, opening: int) -> Longer:
    """Return the rows with something left to score after the opening, and how many have not."""
    lengths = lengths_of(tokenizer, data)
    rows = [
        example
        for example, length in zip(data.examples, lengths, strict=True)
        if length > max(opening, example.prefix_tokens)
    ]
    return Longer(replace(data, examples=tuple(rows)), len(lengths) - len(rows))


def as_lines(data: BehaviourSet) -> str:
    """Return the rows as JSON lines that `load_data` reads back as they are."""
    lines = []
    for example in data.examples:
        prompt: object = example.prompt
        if not isinstance(example.prompt, str):
            prompt = [{"role": role, "content": content} for role, content in example.prompt]
        row: dict[str, object] = {
            "id": example.id,
            "prompt": prompt,
            "completion": example.completion,
        }
        row |= {"category": example.category, "split": example.split}
        row |= {"key": example.key} if example.key else {}
        row |= {"prefix_tokens": example.prefix_tokens} if example.prefix_tokens else {}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return "".join(lines)
