"""Presets: how the columns of public sets become prompts and completions.

A preset is a YAML file in `presets/`, or one of the user's own given by its path. It says where the
set is, at which revision, which columns mean what, which rows count, under which licence it is and
whom to cite. It holds no rows. A column that is not there is an error that names it and the preset,
so that a set that has changed is never read as something else.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from resect.data.messages import content_text, turns_of
from resect.data.rows import SUFFIXES, hub_rows, read_rows
from resect.errors import InputError, unknown_name
from resect.files.origin import hash_file, hash_text, hash_value
from resect.files.reading import MOST_YAML, read_text, read_yaml

FOLDER = Path(__file__).parent / "presets"
# A column, or the names that different copies of a set have for it, the first that is there wins.
# A dot reaches into a nested value: `answer.value`.
Column = str | tuple[str, ...]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Columns(_Strict):
    """What the set's columns mean.

    Attributes:
        prompt: The request.
        context: Text that is put after the prompt and a blank line where it is not empty.
        completion: The response; None for a set of prompts alone.
        messages: Instead of both: a list of messages whose last one is the response.
        choices: A list of answers; prompt and completion become a multiple-choice question.
        answer: Place of the right one among the choices, from 0.
        aliases: Answers that are as good as the completion.
        category: A name, or a mapping of names to true and false.
        text: Instead of all: running text for the perplexity probe.
    """

    prompt: Column | None = None
    context: Column | None = None
    completion: Column | None = None
    messages: Column | None = None
    choices: Column | None = None
    answer: Column | None = None
    aliases: Column | None = None
    category: Column | None = None
    text: Column | None = None

    @model_validator(mode="after")
    def _says_enough(self) -> Columns:
        ways = [self.prompt is not None, self.messages is not None, self.text is not None]
        if sum(ways) != 1:
            raise ValueError("give one of prompt, messages and text")
        if (self.choices is None) != (self.answer is None):
            raise ValueError("choices and answer belong together")
        return self


class Filter(_Strict):
    """Rows that count: those whose column has this value.

    Attributes:
        column: The column.
        equals: The value; "False" in a CSV equals false.
        optional: Whether a copy without the column is read whole.
    """

    column: Column
    equals: str | bool | int
    optional: bool = False


class Part(_Strict):
    """One piece of a set.

    Attributes:
        config: Subset on the Hub.
        split: Split on the Hub.
        data_file: A file of the Hub repository, where the set is no configured dataset.
        files: Names or patterns of the files of a local copy.
        label: The category of its rows, if no column has one.
        use: Whether its rows are for calibration or evaluation.
    """

    config: str | None = None
    split: str = "train"
    data_file: str | None = None
    files: tuple[str, ...] = ()
    label: str | None = None
    use: Literal["calibration", "evaluation", ""] = ""


class Preset(_Strict):
    """A public set; see the module's text.

    Attributes:
        name: Name in a SPEC.
        title: What it is.
        hub: Dataset id, None if it is not on the Hub.
        revision: Commit that is read, 40 hex digits; None where none could be verified. Then a
            revision must be given with the name.
        home: Where to get it otherwise.
        licence: Its licence.
        gated: Whether its terms must be accepted on the Hub.
        cite: The paper.
        checked: Where the columns and the revision were looked up, or that they were not.
        columns: The map.
        filters: Rows that count.
        template: Prompt with `{prompt}` in it.
        match: What counts where there are aliases, see `evaluation/judges/exact.py`.
        header: Column names of a CSV without a header line.
        joined: For text: what joins all rows to one document; None keeps them apart.
        calibration: Share of the rows for calibration, the others are for evaluation. A row's side
            depends on its prompt alone, so that equal prompts are on one side. None gives no split.
        drop_empty: Leave out rows without a prompt or a completion instead of refusing the set.
        parts: Its pieces.
    """

    name: str
    title: str
    hub: str | None = None
    revision: str | None = Field(None, pattern=r"^[0-9a-f]{40}$")
    home: str
    licence: str
    gated: bool = False
    cite: str
    checked: str
    columns: Columns
    filters: tuple[Filter, ...] = ()
    template: str = "{prompt}"
    match: Literal["exact", "contains"] = "exact"
    header: tuple[str, ...] | None = None
    joined: str | None = None
    calibration: float | None = Field(None, gt=0, lt=1)
    drop_empty: bool = False
    parts: tuple[Part, ...] = Field((Part(),), min_length=1)

    @property
    def prompts_only(self) -> bool:
        """Whether the set has no responses."""
        columns = self.columns
        return columns.completion is columns.messages is columns.choices is columns.text is None


@dataclass(frozen=True)
class Table:
    """Rows in our columns.

    Attributes:
        rows: The rows.
        origin: Where they come from, and how many were left out.
        bare: Whether they may lack completions.
    """

    rows: list[dict[str, object]]
    origin: dict[str, object]
    bare: bool = False


class _Question(NamedTuple):
    """A multiple-choice question, its answer, and the key by which a reply is judged."""

    prompt: str
    completion: str
    key: dict[str, object]


def preset_names() -> list[str]:
    """Return the names of the presets that come with resect."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find_preset(name: str) -> Preset:
    """Return a preset by name, or by the path of a YAML file.

    Raises:
        InputError: There is none, or the file does not fit.
    """
    path = Path(name) if name.endswith(".yaml") else FOLDER / f"{name}.yaml"
    if not name.endswith(".yaml") and name not in preset_names():
        raise unknown_name("preset", name, preset_names())
    try:
        return Preset.model_validate(read_yaml(read_text(path, limit=MOST_YAML), path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the preset {path}", got=str(error)) from error
    except ValidationError as error:
        lines = [
            f"{'.'.join(map(str, problem['loc'])) or 'whole file'}: {problem['msg']}"
            for problem in error.errors()
        ]
        raise InputError(f"{path} is no preset", got="\n    ".join(lines)) from error


def read_preset(
    preset: Preset, revision: str | None, split: str | None, folder: Path | None
) -> Table:
    """Read the set of a preset.

    Args:
        preset: The preset.
        revision: Instead of the preset's.
        split: Read this split alone.
        folder: Folder with a local copy; None reads from the Hub.

    Raises:
        InputError: The set cannot be had, or has other columns.
    """
    pieces = preset.parts
    if split is not None:
        of_split = tuple(piece for piece in pieces if piece.split == split)
        pieces = of_split or (Part(config=pieces[0].config, split=split, files=(f"*{split}*",)),)
    rows: list[dict[str, object]] = []
    files: dict[str, str] = {}
    left_out = dict.fromkeys(("filtered_out", "empty", "repeated"), 0)
    where = f"preset {preset.name}"
    for piece in pieces:
        tables = _local(preset, piece, folder, files) if folder else [_hub(preset, piece, revision)]
        # A row that an earlier file has too counts once: a folder may hold a set beside its parts.
        before: set[str] = set()
        for table in tables:
            counted = [row for row in table if _counts(preset, row, where)]
            left_out["filtered_out"] += len(table) - len(counted)
            names: set[str] = set()
            for row in counted:
                number = len(rows) + left_out["empty"] + 1
                mapped = _mapped(preset, piece, row, f"{where}, row {number}")
                names.add(name := _row_name(mapped))
                if name in before:
                    left_out["repeated"] += 1
                elif preset.drop_empty and not all(mapped.get(c) for c in ("prompt", "completion")):
                    left_out["empty"] += 1
                else:
                    rows.append({"id": f"{preset.name}-{number}"} | mapped)
            before |= names - {""}
    origin: dict[str, object] = {"preset": preset.name}
    if folder is None:
        origin |= {"hub": preset.hub, "revision": revision or preset.revision}
    else:
        origin["files"] = files
    # An origin without repeated rows looks as it did before they were counted.
    left_out = {name: count for name, count in left_out.items() if count or name != "repeated"}
    origin |= {"rows": len(rows)} | left_out
    if preset.joined is not None:
        rows = [{"id": preset.name, "text": preset.joined.join(str(row["text"]) for row in rows)}]
    return Table(rows, origin, bare=preset.prompts_only)


def _row_name(mapped: Mapping[str, object]) -> str:
    """Return a name that rows of one prompt and completion share; running text has none."""
    return hash_value([mapped["prompt"], mapped["completion"]]) if "prompt" in mapped else ""


def _hub(preset: Preset, piece: Part, revision: str | None) -> list[dict[str, object]]:
    if preset.hub is None:
        raise InputError(
            f"the set of preset {preset.name} is not on the Hub",
            allowed="a local copy, given with --data-dir or RESECT_DATA_DIR",
            fix=f"get it from {preset.home}",
        )
    commit = revision or preset.revision
    if commit is None:
        raise InputError(
            f"preset {preset.name} has no pinned revision, since none could be verified",
            allowed=f"{preset.name}@<commit of {preset.hub}>, or a local copy with --data-dir",
            fix=f"look the commit up on the page of {preset.hub} and give it after an @",
        )
    options: dict[str, object] = {}
    if piece.data_file is not None:
        options["data_files"] = {piece.split: piece.data_file}
    if preset.header is not None:
        # `column_names`, its other name in `datasets`, is ignored for repositories of files.
        options["names"] = list(preset.header)
    return hub_rows(preset.hub, commit, piece.split, piece.config, **options)


def _local(
    preset: Preset, piece: Part, folder: Path, files: dict[str, str]
) -> list[list[dict[str, object]]]:
    """Read the files of a local copy, from the folder or from one in it named like the preset.

    Returns:
        The rows of each file.

    Args:
        preset: The preset.
        piece: The piece of it to read.
        folder: The folder of local copies.
        files: Gets the name and hash of each file that is read.
    """
    name = f"{preset.name}-{piece.label}" if piece.label and len(preset.parts) > 1 else preset.name
    patterns = [*piece.files, *(f"{name}{suffix}" for suffix in SUFFIXES)]
    for home in (folder / preset.name, folder):
        for pattern in patterns:
            paths = sorted(path for path in home.glob(pattern) if path.is_file())
            if paths:
                files |= {str(path.relative_to(folder)): hash_file(path) for path in paths}
                return [read_rows(path, preset.header) for path in paths]
    raise InputError(
        f"no local copy of preset {preset.name}",
        got=str(folder),
        allowed=", ".join(patterns),
        fix=f"put one of these files there; get it from {preset.home}",
    )


def _names(column: Column) -> tuple[str, ...]:
    return (column,) if isinstance(column, str) else column


def _get(preset: Preset, row: Mapping[str, object], column: Column, where: str) -> Any:
    """Return the value of the first of a column's names that the row has."""
    for name in _names(column):
        value: object = row
        for step in name.split("."):
            if not isinstance(value, Mapping) or step not in value:
                break
            value = value[step]
        else:
            return value
    raise InputError(
        f"{where} has no column {' or '.join(repr(name) for name in _names(column))}",
        got="columns " + ", ".join(str(name) for name in row),
        fix=f"the set differs from what preset {preset.name} was written for: give another "
        "revision, or a preset of your own as a YAML file",
    )


def _counts(preset: Preset, row: Mapping[str, object], where: str) -> bool:
    for rule in preset.filters:
        if rule.optional and not any(name in row for name in _names(rule.column)):
            continue
        value = _get(preset, row, rule.column, where)
        if str(value).strip().lower() != str(rule.equals).lower():
            return False
    return True


def _mapped(
    preset: Preset, piece: Part, row: Mapping[str, object], where: str
) -> dict[str, object]:
    """Return one row in our columns."""
    columns = preset.columns

    def get(column: Column) -> Any:
        return _get(preset, row, column, where)

    if columns.text is not None:
        return {"text": _text(get(columns.text), where)}
    prompt: object
    completion: object = ""
    key: dict[str, object] = {}
    if columns.messages is not None:
        turns = turns_of(get(columns.messages) or (), where, str(columns.messages))
        messages = [turn._asdict() for turn in turns]
        prompt, completion = messages[:-1], messages[-1:]
        # One plain question is plain text, as in every other set.
        if len(turns) == 2 and turns[0].role == "user":
            prompt = turns[0].content
    else:
        prompt = _text(get(columns.prompt or ()), where)
    if columns.completion is not None:
        completion = _text(get(columns.completion), where)
    if columns.context is not None and (context := _text(get(columns.context), where).strip()):
        prompt = f"{prompt}\n\n{context}"
    if columns.choices is not None and columns.answer is not None:
        choices = get(columns.choices)
        prompt, completion, key = _multiple_choice(str(prompt), choices, int(get(columns.answer)))
    if columns.aliases is not None:
        aliases = [completion, *get(columns.aliases)]
        key = {"aliases": list(dict.fromkeys(aliases)), "match": preset.match}
    if isinstance(prompt, str) and prompt:
        prompt = preset.template.replace("{prompt}", prompt)
    category = piece.label or ""
    if columns.category is not None:
        category = _category(get(columns.category))
    return {
        "prompt": prompt,
        "completion": completion,
        **({"key": key} if key else {}),
        "category": category,
        "split": piece.use or _side(preset, str(prompt)),
    }


def _text(value: object, where: str) -> str:
    """Return a cell as text: numbers as they are written, nothing as nothing."""
    if value is None or isinstance(value, int | float):
        return "" if value is None else str(value)
    return content_text(value, where)


def _multiple_choice(question: str, choices: list[str], answer: int) -> _Question:
    """Return a lettered question; the letter alone, with a full stop or with its text is right."""
    letters = string.ascii_uppercase
    lines = [f"{letter}. {choice}" for letter, choice in zip(letters, choices, strict=False)]
    right = letters[answer]
    return _Question(
        prompt="\n".join([question, *lines, "Answer:"]),
        completion=right,
        key={
            "accept": [right, f"{right}.", f"{right}. {choices[answer]}"],
            "form": rf"[a-{letters[len(choices) - 1].lower()}]\b.*",
        },
    )


def _category(value: object) -> str:
    """Return the name, or the names of the true entries of a mapping joined by +."""
    if isinstance(value, Mapping):
        return "+".join(str(name) for name, holds in value.items() if holds)
    return str(value or "")


def _side(preset: Preset, prompt: str) -> str:
    if preset.calibration is None:
        return ""
    share = int(hash_text(preset.name, prompt), 16) / 16**16
    return "calibration" if share < preset.calibration else "evaluation"
