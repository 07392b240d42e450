"""Read rows from files and from the Hub, as plain dictionaries.

Files are read here and not through `datasets`, because a message that names the file, the line and
the column is worth more than a shared cache; `datasets` serves the Hub.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import re
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from resect.errors import InputError
from resect.files.reading import Counter, bounded_file
from resect.files.tables import read_parquet

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet", ".txt")
COMMIT = re.compile(r"[0-9a-f]{40}")

logger = logging.getLogger(__name__)


def suffix_of(path: Path) -> str:
    """Return the ending of a file name, `.jsonl.gz` included."""
    return ".jsonl.gz" if path.name.endswith(".jsonl.gz") else path.suffix


def read_rows(
    path: Path, header: Sequence[str] | None = None, *, marked: bool = False, skip: int = 0
) -> list[dict[str, object]]:
    """Read a data file.

    Args:
        path: A file with one of `SUFFIXES`; a `.txt` file is one row with the column `text`.
        header: Column names of a CSV file that has no header line.
        marked: Whether a CSV file may begin with lines that start with #, which say something of
            the file and are left out.
        skip: How many lines of a CSV file to leave out at its beginning.

    Raises:
        InputError: The file is missing, empty or broken; the message names the line.
    """
    suffix = suffix_of(path)
    if suffix not in SUFFIXES:
        raise InputError("unknown data format", got=str(path), allowed=", ".join(SUFFIXES))
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty", fix="give a file with at least one example")
        if suffix == ".parquet":
            return read_parquet(path)
        with (
            bounded_file(path, packed=suffix.endswith(".gz")) as file,
            # JSON strings and quoted fields may hold any other line end.
            io.TextIOWrapper(file, "utf-8-sig", newline="" if suffix == ".csv" else "\n") as text,
        ):
            if suffix == ".csv":
                for _ in range(skip):
                    text.readline()
                return _csv_rows(text, path, header, marked=marked, before=skip)
            return _READERS[suffix](text, path)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}", got=str(error), allowed="UTF-8 text") from error


def remarks_of(path: Path, columns: Collection[str]) -> int:
    """Count the lines at the beginning of a CSV file that start with # and say something of it.

    A line that names one of `columns` is a header whose first name begins with #.

    Raises:
        InputError: The file is not readable.
    """
    count = 0
    try:
        with bounded_file(path) as file, io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
            for line in text:
                if not line.startswith("#") or set(next(csv.reader([line]), [])) & set(columns):
                    break
                count += 1
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {path}", got=str(error), allowed="UTF-8 text") from error
    return count


def _csv_rows(
    text: TextIO, path: Path, header: Sequence[str] | None, *, marked: bool, before: int
) -> list[dict[str, object]]:
    counter = Counter(path)
    skipped = before

    def lines() -> Iterator[str]:
        nonlocal skipped
        mark = marked
        for line in text:
            counter.add(line)
            mark = mark and line.startswith("#")
            skipped += mark
            if not mark:
                yield line

    reader = csv.DictReader(lines(), fieldnames=header, strict=True)
    rows = []
    try:
        for row in reader:
            if None in row or None in row.values():
                line = reader.line_num + skipped
                raise InputError(
                    f"{path} line {line} has another number of fields than the header",
                    allowed=", ".join(reader.fieldnames or ()),
                    fix="quote fields that hold commas or line ends",
                )
            rows.append(row)
    except csv.Error as error:
        raise InputError(
            f"{path} line {reader.line_num + skipped} is not valid CSV", got=str(error)
        ) from error
    return rows


def _array(text: TextIO, path: Path) -> list[dict[str, object]]:
    content = text.read()
    Counter(path).add(content)
    try:
        rows = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is not valid JSON",
            got=str(error),
            fix="call a file with an object a line .jsonl" if "Extra data" in str(error) else "",
        ) from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path} is not an array of objects", allowed="[{...}, {...}]")
    if _may_halve(content):
        for number, row in enumerate(rows, start=1):
            _refuse_halves(row, f"{path} row {number}")
    return rows


def _objects(text: TextIO, path: Path) -> list[dict[str, object]]:
    counter = Counter(path)
    rows = []
    for number, line in enumerate(text, start=1):
        counter.add(line)
        if line.strip():
            rows.append(_object(line, number, path))
    return rows


def _whole(text: TextIO, _path: Path) -> list[dict[str, object]]:
    return [{"text": text.read()}]


def _object(line: str, number: int, path: Path) -> dict[str, object]:
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
    if _may_halve(line):
        _refuse_halves(row, f"{path} line {number}")
    return row


def _may_halve(text: str) -> bool:
    """Return whether JSON may name a half of a character: only an escape can."""
    return "\\ud" in text or "\\uD" in text


def _refuse_halves(row: Mapping[str, object], where: str) -> None:
    """Refuse text with one of two surrogates, which no tokenizer and no file takes.

    Raises:
        InputError: There is such text.
    """
    try:
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where} holds half of a character",
            got=ascii(error.object[error.start : error.end]),
            allowed="whole characters; those beyond \\uffff are two escapes in JSON",
            fix="mend or remove the row: such text is often cut off in the middle of an emoji",
        ) from error


_READERS = {
    ".jsonl": _objects,
    ".jsonl.gz": _objects,
    ".json": _array,
    ".txt": _whole,
}


def hub_rows(
    name: str, revision: str | None, split: str, config: str | None = None, **options: object
) -> list[dict[str, object]]:
    """Read a split of a Hub dataset through `datasets`.

    Args:
        name: The dataset's id.
        revision: A commit; a branch or nothing is read with a warning, since it may change.
        split: The split.
        config: The subset, if the dataset has several.
        options: What else `datasets.load_dataset` takes, for instance `data_files`.

    Raises:
        InputError: The dataset cannot be had.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    if revision is None or not COMMIT.fullmatch(revision):
        logger.warning(
            "%s is read at %s, which may change: pin it as @<commit of 40 hex digits>",
            name,
            revision or "its newest revision",
        )
    try:
        rows = load_dataset(name, config, revision=revision, split=split, **options)
    except (OSError, ValueError, DatasetsError) as error:
        raise InputError(
            f"cannot load {name} from the Hub",
            got=str(error).strip().split("\n", 1)[0],
            fix="check the id, the revision, the split and the network; a gated set needs "
            "`hf auth login` after its terms are accepted; or give a local copy",
        ) from error
    return [dict(row) for row in rows]
