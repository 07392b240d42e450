"""Load a behaviour set in TRL's prompt-completion format and say what is wrong with it.

A set is a JSONL, JSON, CSV or Parquet file, a Hub dataset, or a preset that maps the columns of a
public set. It has the columns `prompt` and `completion` (strings or message lists) and optionally
`category`, `id`, `split`, `key` and `prefix_tokens`; or `text` alone, for the perplexity probe.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from resect import stats
from resect.data.messages import content_text, turns_of
from resect.data.preset import Table, find_preset, preset_names, read_preset
from resect.data.rows import SUFFIXES, hub_rows, read_rows, suffix_of
from resect.errors import InputError
from resect.files.origin import hash_file, hash_value
from resect.records import Example

HUB_PREFIX = "hub:"
DATA_DIR = "RESECT_DATA_DIR"
# Fields of an answer key that hold a list each.
KEY_LISTS = ("accept", "benign", "content", "refusal", "aliases")
SPEC_HELP = "a file ({}), a preset ({}), or hub:<id>[@revision][:split]"


@dataclass(frozen=True)
class BehaviourSet:
    """Examples with their origin.

    Attributes:
        source: The SPEC as given.
        examples: The rows in file order.
        hash: 16 hex digits over prompts, completions and categories, in order.
        origin: Where the rows come from: file hashes, or Hub id and revision; counts of rows that
            a preset left out.
    """

    source: str
    examples: tuple[Example, ...]
    hash: str
    origin: dict[str, object] = field(default_factory=dict)

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
        return self.at(chosen)

    def at(self, positions: Sequence[int]) -> BehaviourSet:
        """Return the rows at these positions, in this order."""
        return self._with([self.examples[position] for position in positions])

    def _with(self, examples: Sequence[Example]) -> BehaviourSet:
        return replace(self, examples=tuple(examples), hash=_hash_examples(examples))


def load_data(
    spec: str | Path, *, data_dir: str | Path | None = None, prompts_only: bool = False
) -> BehaviourSet:
    """Load a behaviour set.

    Args:
        spec: Path of a file, name of a preset as `name[@revision][:split]`, path of a preset's
            YAML file, or `hub:<id>[@revision][:split]`.
        data_dir: Folder with local copies of public sets, for presets; None takes the folder named
            by the environment variable RESECT_DATA_DIR, if there is one.
        prompts_only: Accept a file without completions, as `resect data collect` does. Presets of
            sets without responses are always accepted; what needs a response says so.

    Raises:
        InputError: The set is missing or empty, or a row lacks what it needs; the message names
            the file, the line and the column.
    """
    name = str(spec)
    folder = data_dir or os.environ.get(DATA_DIR) or None
    table = _read(name, None if folder is None else Path(folder).expanduser())
    examples = [
        _example(row, position, name, bare=table.bare or prompts_only)
        for position, row in enumerate(table.rows, start=1)
    ]
    if not examples:
        raise InputError(f"{name} has no rows", fix="give a set with at least one example")
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            raise InputError(
                f"{name} has two rows with one id", got=example.id, fix="make the ids unique"
            )
        seen.add(example.id)
    return BehaviourSet(name, tuple(examples), _hash_examples(examples), table.origin)


def name_of(spec: str) -> str:
    """Return what a set is called: its file without folder and ending, or its preset or Hub set."""
    name = spec.removeprefix(HUB_PREFIX).rpartition("/")[2]
    for ending in (".gz", *SUFFIXES):
        name = name.removesuffix(ending)
    return name.partition("@")[0].partition(":")[0] or spec


def _read(name: str, data_dir: Path | None) -> Table:
    """Return the rows of a SPEC."""
    if name.startswith(HUB_PREFIX):
        source, _, split = name.removeprefix(HUB_PREFIX).partition(":")
        hub, _, revision = source.partition("@")
        rows = hub_rows(hub, revision or None, split or "train")
        return Table(rows, {"hub": hub, "revision": revision or None, "rows": len(rows)})
    path = Path(name).expanduser()
    if path.is_file() and path.suffix != ".yaml":
        rows = read_rows(path)
        return Table(rows, {"files": {path.name: hash_file(path)}, "rows": len(rows)})
    source, _, split = name.partition(":")
    title, _, revision = source.partition("@")
    if title.endswith(".yaml") or title in preset_names():
        return read_preset(find_preset(title), revision or None, split or None, data_dir)
    raise InputError(
        "no such data file" if suffix_of(path) in SUFFIXES else "no such data file or preset",
        got=name,
        allowed=SPEC_HELP.format(", ".join(SUFFIXES), ", ".join(preset_names())),
    )


def check_disjoint(calibration: BehaviourSet, evaluation: BehaviourSet) -> None:
    """Refuse an evaluation that shares a prompt with its calibration.

    Raises:
        InputError: A prompt stands in both; its ids are named.
    """
    ids = {example.prompt: example.id for example in calibration.examples}
    for example in evaluation.examples:
        if example.prompt in ids:
            raise InputError(
                "a prompt stands in the calibration and in the evaluation set",
                got=f"{ids[example.prompt]} in {calibration.source}, "
                f"{example.id} in {evaluation.source}",
                allowed="disjoint sets",
                fix="give the rows a split column, or remove the shared rows",
            )


def _hash_examples(examples: Sequence[Example]) -> str:
    # Prefixes enter only where there are some, so that sets without keep the hash they always had.
    return hash_value(
        [
            [e.prompt, e.completion, e.category, *([e.prefix_tokens] if e.prefix_tokens else [])]
            for e in examples
        ]
    )


def _example(row: Mapping[str, object], position: int, source: str, *, bare: bool) -> Example:
    where = f"{source} row {position}"
    if _is_given(row, "text") and not _is_given(row, "prompt") and not _is_given(row, "completion"):
        return Example(
            id=_label(row.get("id")) or str(position),
            prompt="",
            completion=content_text(row["text"], f"{where}: 'text'"),
            category=_label(row.get("category")),
            split=_label(row.get("split")),
        )
    for column in ("prompt",) if bare else ("prompt", "completion"):
        if not _is_given(row, column):
            raise _lacks(row, column, where)
    if row.get("tools"):
        raise InputError(
            f"{where} has tools, which are not put to models here",
            fix="leave the column out where the answers do not use them, else the rows",
        )
    prompt = row["prompt"]
    example = Example(
        id=_label(row.get("id")) or str(position),
        prompt=prompt if isinstance(prompt, str) else turns_of(prompt, where, "prompt"),
        completion=_completion(row["completion"], where) if _is_given(row, "completion") else "",
        category=_label(row.get("category")),
        split=_label(row.get("split")),
        key=answer_key(row.get("key"), where),
        prefix_tokens=_count(row.get("prefix_tokens"), where),
    )
    if not bare and not example.completion:
        raise _lacks(row, "completion", where)
    return example


def _is_given(row: Mapping[str, object], column: str) -> bool:
    """Return whether a row has something in a column; 0 is something."""
    return row.get(column) not in (None, "", [], ())


def _label(value: object) -> str:
    """Return a name, which files may hold as a number; empty if there is none."""
    return "" if value is None else str(value)


def _lacks(row: Mapping[str, object], column: str, where: str) -> InputError:
    return InputError(
        f"{where} has no {column!r}",
        got="columns " + ", ".join(str(key) for key in row),
        allowed="prompt and completion, neither empty; or text, for --probe perplexity",
        fix=""
        if column in row
        else "rename the columns, or say what they mean in a preset of your own (a YAML file)"
        + ("; a model's own answers: resect data collect" if column == "completion" else ""),
    )


def _completion(value: object, where: str) -> str:
    if isinstance(value, str):
        return value
    turns = turns_of(value, where, "completion")
    if len(turns) != 1 or turns[0].role != "assistant":
        raise InputError(f"{where}: the completion must be one turn of the assistant")
    return turns[0].content


def answer_key(value: object, where: str) -> dict[str, object]:
    """Return an answer key; of a plain text, or a list of them, a reply has to hold one.

    Args:
        value: What a row has under `key`.
        where: The row, for messages.

    Raises:
        InputError: It is no answer key.
    """
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        # CSV has no objects.
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    if not value:
        return {}
    texts = [value] if isinstance(value, str) else value
    if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
        return {"aliases": texts, "match": "contains"}
    if not isinstance(value, dict):
        raise InputError(
            f"{where}: 'key' is no answer key",
            got=repr(value)[:80],
            allowed='a text, a list of texts, or an object such as {"aliases": ["Paris"]}',
        )
    # In a Parquet file every row has every field.
    key = {str(field): item for field, item in value.items() if item is not None}
    _check_key(key, where)
    return key


def _check_key(key: Mapping[str, object], where: str) -> None:
    for name in filter(key.__contains__, KEY_LISTS):
        # Names of an answer may be numbers.
        allowed = (str, int, float) if name == "aliases" else str
        texts = key[name]
        if not isinstance(texts, list) or not all(isinstance(text, allowed) for text in texts):
            raise InputError(
                f"{where}: {name!r} of the answer key is no list of texts",
                got=repr(texts)[:80],
                allowed=f'for instance {{"{name}": ["a", "b"]}}',
            )
        if name == "content" and not (texts and all(any(map(str.isalnum, text)) for text in texts)):
            raise InputError(
                f"{where}: 'content' of the answer key holds no word",
                got=repr(texts)[:80],
                allowed="words with letters or digits",
                fix="name the words that count, or leave 'content' out",
            )
    if {"aliases", "content"} <= key.keys():
        raise InputError(
            f"{where}: an answer key with 'aliases' has no 'content'",
            got=repr(dict(key))[:80],
            fix="give names of the one right answer, or words of which a reply may have a share",
        )


def _count(value: Any, where: str) -> int:
    try:
        count = int(value or 0)
    except (TypeError, ValueError):
        count = -1
    if count < 0:
        raise InputError(
            f"{where}: 'prefix_tokens' is no count", got=repr(value)[:80], allowed="0, 1, 2, ..."
        )
    return count
