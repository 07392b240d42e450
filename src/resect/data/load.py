"""Load a behaviour set in TRL's prompt-completion format and say what is wrong with it.

A set is a JSONL, JSON, CSV or Parquet file, a Hub dataset, or a preset that maps the columns of a
public set. It has the columns `prompt` and `completion` (strings or message lists) and optionally
`category`, `id`, `split`, `key` and `prefix_tokens`; or `text` alone, for the perplexity probe.
Other layouts are found by themselves (`layouts.py`), or a user says what the columns mean
(`columns.py`); what was found is logged in one line and stands in the origin.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from resect import stats
from resect.data.columns import BESIDE, MARK, NAMES, WHOLE, Named, hint, parse_columns
from resect.data.layouts import LAYOUTS, LINE, Reading, lines_of, read_columns, split_columns
from resect.data.messages import content_text, turns_of
from resect.data.preset import Table, find_preset, preset_names, read_preset
from resect.data.rows import SUFFIXES, hub_rows, read_rows, remarks_of, suffix_of
from resect.data.seeds import SEED_SUFFIXES, read_seeds
from resect.data.task import is_task
from resect.errors import InputError
from resect.files.origin import hash_file, hash_value
from resect.records import Example

HUB_PREFIX = "hub:"
DATA_DIR = "RESECT_DATA_DIR"
# Fields of an answer key that hold a list each.
KEY_LISTS = ("accept", "benign", "content", "refusal", "aliases")
SPEC_HELP = "a file ({}), a preset ({}), or hub:<id>[@revision][:split]"

logger = logging.getLogger(__name__)


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
    spec: str | Path,
    *,
    data_dir: str | Path | None = None,
    prompts_only: bool = False,
    lines: bool | None = None,
) -> BehaviourSet:
    """Load a behaviour set.

    Args:
        spec: Path of a file, name of a preset as `name[@revision][:split]`, path of a preset's
            YAML file, or `hub:<id>[@revision][:split]`. A file and a Hub set may say behind a #
            what their columns mean: `harm.jsonl#prompt=question,completion=answer.text`.
        data_dir: Folder with local copies of public sets, for presets; None takes the folder named
            by the environment variable RESECT_DATA_DIR, if there is one.
        prompts_only: Accept a file without completions, as `resect data collect` does. Presets of
            sets without responses are always accepted; what needs a response says so.
        lines: Whether a .txt file is a prompt a line and not one running text; None does what
            `prompts_only` says.

    Raises:
        InputError: The set is missing or empty, a row lacks what it needs, or its columns can mean
            several things; the message names the file, the line and the column.
    """
    name = str(spec)
    if is_task(name):
        raise InputError(
            "an lm-eval task is no set of examples",
            got=name,
            allowed="as --utility of resect run and sweep, or under data for the probe utility",
            fix="resect tasks compares an intact and a cut model by any task",
        )
    folder = data_dir or os.environ.get(DATA_DIR) or None
    named = _named(name)
    needs = _Needs(prompts_only, prompts_only if lines is None else lines)
    table = _read(named, None if folder is None else Path(folder).expanduser(), needs)
    examples = [
        _example(row, position, named.place, bare=table.bare or prompts_only)
        for position, row in enumerate(table.rows, start=1)
    ]
    if not examples:
        raise InputError(f"{name} has no rows", fix="give a set with at least one example")
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            raise InputError(
                f"{name} has two rows with one id",
                got=example.id,
                fix=f"make the ids unique, or leave them out: {named.place}{MARK}id=",
            )
        seen.add(example.id)
    without = sum(not example.split for example in examples)
    if 0 < without < len(examples):
        logger.info(
            "%s: %d of %d rows have no split, and are left out where splits count",
            named.place, without, len(examples),
        )  # fmt: skip
    return BehaviourSet(name, tuple(examples), _hash_examples(examples), table.origin)


def name_of(spec: str) -> str:
    """Return what a set is called: its file without folder and ending, or its preset or Hub set."""
    name = _named(spec).place.removeprefix(HUB_PREFIX).rpartition("/")[2]
    for ending in (".gz", *SUFFIXES):
        name = name.removesuffix(ending)
    return name.partition("@")[0].partition(":")[0] or spec


def takes_columns(spec: str) -> bool:
    """Return whether a user may say what the columns of a set mean, and has not yet."""
    if is_task(spec):
        return False
    named = _named(spec)
    title = named.place.partition(":")[0].partition("@")[0]
    fixed = title.endswith((*SEED_SUFFIXES, ".txt"))
    of_preset = title in preset_names() and not Path(spec).is_file()
    return named.columns is None and not fixed and not of_preset


def file_of(spec: str) -> Path | None:
    """Return the file that a SPEC reads, whatever it says of columns; None for what is no file."""
    if is_task(spec):
        return None
    path = Path(_named(spec).place).expanduser()
    return path if path.is_file() else None


class _Needs(NamedTuple):
    """Whether prompts are enough, and whether the lines of a text are some."""

    prompts_only: bool
    lines: bool


def _named(spec: str) -> Named:
    """Return a SPEC and what it says of columns; a file may have a # in its name or folders."""
    if Path(spec).expanduser().is_file():
        return Named(spec, None)
    parts = spec.split(MARK)
    for count in range(len(parts) - 1, 0, -1):
        place = MARK.join(parts[:count])
        if Path(place).expanduser().is_file():
            return Named(place, parse_columns(MARK.join(parts[count:])))
    return split_columns(spec)


def _read(named: Named, data_dir: Path | None, needs: _Needs) -> Table:
    """Return the rows of a SPEC."""
    name = named.place
    if name.startswith(HUB_PREFIX):
        source, _, split = name.removeprefix(HUB_PREFIX).partition(":")
        hub, _, revision = source.partition("@")
        rows = hub_rows(hub, revision or None, split or "train")
        origin: dict[str, object] = {"hub": hub, "revision": revision or None, "rows": len(rows)}
        of_hub = read_columns(rows, named.columns, name, prompts_only=needs.prompts_only)
        return _table(of_hub, name, origin)
    path = Path(name).expanduser()
    if path.is_file():
        reading = _read_file(path, named, needs)
        if reading is not None:
            origin = {"files": {path.name: hash_file(path)}, "rows": len(reading.rows)}
            return _table(reading, name, origin)
    source, _, split = name.partition(":")
    title, _, revision = source.partition("@")
    if title.endswith(".yaml") or title in preset_names():
        if named.columns is not None:
            raise InputError(
                "a preset says itself what its columns mean",
                got=f"{title}{MARK}…",
                fix="leave the columns out, or read a copy of the set by the path of its file",
            )
        return read_preset(find_preset(title), revision or None, split or None, data_dir)
    raise _no_such(name)


def refuse_unknown(spec: str) -> None:
    """Refuse a SPEC that names nothing, before anything is read or written.

    Raises:
        InputError: It is no file here, no preset, no set of the Hub and no task.
    """
    if is_task(spec) or file_of(spec) is not None:
        return
    name = _named(spec).place
    title = name.partition(":")[0].partition("@")[0]
    if not (name.startswith(HUB_PREFIX) or title.endswith(".yaml") or title in preset_names()):
        raise _no_such(name)


def _no_such(name: str) -> InputError:
    of_file = suffix_of(Path(name)) in SUFFIXES
    return InputError(
        "no such data file" if of_file else "no such data file or preset",
        got=name,
        allowed=SPEC_HELP.format(", ".join(SUFFIXES), ", ".join(preset_names())),
    )


def _read_file(path: Path, named: Named, needs: _Needs) -> Reading | None:
    """Return the rows of a file; None of a YAML file without seeds, which may be a preset."""
    if path.suffix in SEED_SUFFIXES:
        seeds = read_seeds(path)
        if seeds is None and path.suffix == ".yaml":
            return None
        if seeds is None or named.columns is not None:
            raise InputError(
                f"{path} holds no list under 'seeds'"
                if seeds is None
                else f"seeds have the columns that they have, and {path} holds some",
                allowed="{seeds: [{value: TEXT, harm_categories: [...]}]}",
            )
        return Reading(seeds.rows, seeds.said, bare=True)
    if path.suffix == ".txt":
        rows = read_rows(path)
        told = set((named.columns or {}).items())
        if told <= {("text", "text")} and (told or not needs.lines):
            return Reading(rows)
        if told <= {("prompt", LINE)}:
            return lines_of(str(rows[0]["text"]))
        raise InputError(
            f"{path} has no columns",
            allowed=f"prompt={LINE} for a prompt a line, text=text for one running text",
        )
    known = _KNOWN | set((named.columns or {}).values())
    remarks = remarks_of(path, known) if path.suffix == ".csv" else 0
    rows = read_rows(path, skip=remarks)
    reading = read_columns(rows, named.columns, named.place, prompts_only=needs.prompts_only)
    if remarks:
        said = reading.said or "by its own columns"
        lines = "line 1" if remarks == 1 else f"lines 1 to {remarks}"
        reading = replace(reading, said=f"{said}; {lines} left out, for the # at the beginning")
    return reading


# What a header of CSV names.
_KNOWN = {*NAMES, *WHOLE, *BESIDE, *(need for layout in LAYOUTS for need in layout.needs)}


def _table(reading: Reading, place: str, origin: dict[str, object]) -> Table:
    if reading.said:
        logger.info("%s: %s", place, reading.said)
        origin["read_as"] = reading.said
    return Table(reading.rows, origin, bare=reading.bare)


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
        else f"say what the columns mean, for instance {hint(row)}; rename the columns; or write a "
        "preset of your own (a YAML file)"
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
