"""Load a behaviour set in TRL's prompt-completion format and say what is wrong with it.

A set is JSONL, CSV, Parquet or a Hub dataset with the columns `prompt` and `completion` (strings
or message lists) and optionally `category`, `id`, `split` and `key`. Files are read here and not
through `datasets`, because a message that names the file, the line and the column is worth more
than a shared cache; `datasets` serves the Hub.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from resect import stats
from resect.errors import InputError
from resect.records import Example
from resect.store import hash_value, read_parquet

SUFFIXES = (".jsonl", ".csv", ".parquet")
HUB_PREFIX = "hub:"


@dataclass(frozen=True)
class BehaviourSet:
    """Examples with their origin.

    Attributes:
        source: The SPEC as given.
        examples: The rows in file order.
        hash: 16 hex digits over prompts, completions and categories, in order.
    """

    source: str
    examples: tuple[Example, ...]
    hash: str

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.examples)

    @property
    def categories(self) -> tuple[str, ...]:
        """Categories in order of appearance."""
        return tuple(dict.fromkeys(example.category for example in self.examples))

    def split(self, name: str) -> BehaviourSet:
        """Return the rows of one split; a set without splits is returned as it is.

        Raises:
            InputError: The set has splits, but not this one.
        """
        splits = {example.split for example in self.examples}
        if splits == {""}:
            return self
        rows = [example for example in self.examples if example.split == name]
        if not rows:
            raise InputError(
                f"{self.source} has no rows of split {name!r}",
                allowed=", ".join(sorted(splits)),
                fix="add rows with this split or leave the column out",
            )
        return self._with(rows)

    def category(self, name: str) -> BehaviourSet:
        """Return the rows of one category.

        Raises:
            InputError: No row has it.
        """
        rows = [example for example in self.examples if example.category == name]
        if not rows:
            raise InputError(
                f"unknown category for {self.source}",
                got=repr(name),
                allowed=", ".join(self.categories) or "none: the set has no categories",
            )
        return self._with(rows)

    def limit(self, count: int | None, seed: int = 0) -> BehaviourSet:
        """Return `count` rows drawn without replacement, in file order; all if there are fewer.

        Raises:
            InputError: `count` is not positive.
        """
        if count is None or count >= len(self.examples):
            return self
        if count < 1:
            raise InputError("the limit on examples is too small", got=str(count), allowed="≥ 1")
        draw = stats.rng(f"limit/{self.hash}", seed)
        chosen = sorted(draw.choice(len(self.examples), size=count, replace=False).tolist())
        return self._with([self.examples[position] for position in chosen])

    def _with(self, examples: Sequence[Example]) -> BehaviourSet:
        return replace(self, examples=tuple(examples), hash=_hash_examples(examples))


def load_data(spec: str | Path) -> BehaviourSet:
    """Load a behaviour set.

    Args:
        spec: Path of a `.jsonl`, `.csv` or `.parquet` file, or `hub:<id>[@revision][:split]`.

    Raises:
        InputError: The file is missing or empty, or a row lacks what it needs; the message names
            the file, the line and the column.
    """
    name = str(spec)
    rows = _hub_rows(name) if name.startswith(HUB_PREFIX) else _file_rows(Path(name).expanduser())
    examples = [_example(row, position, name) for position, row in enumerate(rows, start=1)]
    if not examples:
        raise InputError(f"{name} has no rows", fix="give a file with at least one example")
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            raise InputError(
                f"{name} has two rows with one id", got=example.id, fix="make the ids unique"
            )
        seen.add(example.id)
    return BehaviourSet(name, tuple(examples), _hash_examples(examples))


def check_disjoint(calibration: BehaviourSet, evaluation: BehaviourSet) -> None:
    """Refuse an evaluation that shares a prompt with its calibration.

    Raises:
        InputError: A prompt stands in both; its ids are named.
    """
    known = {example.prompt: example.id for example in calibration.examples}
    for example in evaluation.examples:
        if example.prompt in known:
            raise InputError(
                "a prompt stands in the calibration and in the evaluation set",
                got=f"{known[example.prompt]} in {calibration.source}, "
                f"{example.id} in {evaluation.source}",
                allowed="disjoint sets",
                fix="give the rows a split column, or remove the shared rows",
            )


def _hash_examples(examples: Sequence[Example]) -> str:
    return hash_value([[e.prompt, e.completion, e.category] for e in examples])


def _file_rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise InputError(
            "no such data file",
            got=str(path),
            allowed="a path of a .jsonl, .csv or .parquet file, or hub:<id>[@revision][:split]",
        )
    if path.suffix not in SUFFIXES:
        raise InputError("unknown data format", got=str(path), allowed=", ".join(SUFFIXES))
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty", fix="give a file with at least one example")
    if path.suffix == ".parquet":
        return read_parquet(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}", got=str(error), allowed="UTF-8 text") from error
    if path.suffix == ".csv":
        return list(csv.DictReader(text.splitlines(keepends=True)))
    return [_json_row(line, number, path) for number, line in _lines(text)]


def _lines(text: str) -> Iterable[tuple[int, str]]:
    # split("\n") and not splitlines(): JSON strings may hold other line separators.
    return ((n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip())


def _json_row(line: str, number: int, path: Path) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} line {number} is not valid JSON", got=str(error), allowed="an object a line"
        ) from error
    if not isinstance(row, dict):
        raise InputError(
            f"{path} line {number} is not an object",
            got=type(row).__name__,
            allowed='{"prompt": ..., "completion": ...}',
        )
    return row


def _hub_rows(spec: str) -> list[dict[str, Any]]:
    from datasets import load_dataset

    place, _, split = spec.removeprefix(HUB_PREFIX).partition(":")
    name, _, revision = place.partition("@")
    try:
        rows = load_dataset(name, revision=revision or None, split=split or "train")
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot load {spec} from the Hub",
            got=str(error).splitlines()[0],
            fix="check the id, the revision, the split and the network, or give a local file",
        ) from error
    return [dict(row) for row in rows]


def _example(row: Mapping[str, Any], position: int, source: str) -> Example:
    where = f"{source} row {position}"
    for column in ("prompt", "completion"):
        if not row.get(column):
            raise InputError(
                f"{where} has no {column!r}",
                got="columns " + ", ".join(str(key) for key in row),
                allowed="prompt and completion, neither empty",
            )
    completion = row["completion"]
    if not isinstance(completion, str):
        turns = _messages(completion, where, "completion")
        if len(turns) != 1 or turns[0][0] != "assistant":
            raise InputError(f"{where}: the completion must be one turn of the assistant")
        completion = turns[0][1]
    prompt = row["prompt"]
    key = row.get("key") or {}
    return Example(
        id=str(row.get("id") or position),
        prompt=prompt if isinstance(prompt, str) else _messages(prompt, where, "prompt"),
        completion=completion,
        category=str(row.get("category") or ""),
        split=str(row.get("split") or ""),
        key=json.loads(key) if isinstance(key, str) else dict(key),
    )


def _messages(value: Any, where: str, column: str) -> tuple[tuple[str, str], ...]:
    try:
        return tuple((str(turn["role"]), str(turn["content"])) for turn in value)
    except (TypeError, KeyError) as error:
        raise InputError(
            f"{where}: {column!r} is neither text nor a list of messages",
            got=repr(value)[:80],
            allowed='text, or [{"role": "user", "content": "..."}]',
        ) from error
