"""Rows to tables for readers: bounds beside their value, constants said once, the rest in a file.

The page holds what a reader looks at; every row, seeds apart, stands in a CSV file beside it. So
the page stays small however many seeds and cuts a run has.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from resect.errors import visible
from resect.records import Row, StudyResult, Value
from resect.report.figures.parts import bound, number
from resect.report.figures.spec import name_of
from resect.report.measured import OF_WEIGHTS, UNKNOWN, WHOLE, Measured
from resect.report.words import OUTCOME_NAMES, cell, percent, slug, spread

# Columns that are fractions of something; so are all that have bounds.
FRACTIONS = {"q", "p", "removed_fraction", "share", "chance", "budget"}
# Fractions that were measured, though some tables have them without bounds.
MEASURED = {"harm_drop", "harm_exact", "utility_drop"}
NAMED = {"arm", "role", "model"}
LABELS = {"removed_fraction": "weights cut", "n": "prompts"} | OUTCOME_NAMES
TABLES = {"permuted": "swapped labels"}
# What a curve has beside harm and utility: for those who look closer, in the CSV file.
FINER = ("preserve_kl", "preserve_nll", "repetition", "reply_nll")
# What names a row, before what was measured.
NAMES_FIRST = ("seed", "role", "model", "arm", "attack", "axis", "q", "removed_fraction")
MOST_ROWS = 40
MOST_SEED_ROWS = 12


class Column(NamedTuple):
    """A column's heading, and whether it holds numbers."""

    heading: str
    numeric: bool


@dataclass(frozen=True)
class Table:
    """A table as the page shows it.

    Attributes:
        name: Of the table, for readers.
        caption: What is the same in every row, and how many rows are left out.
        columns: Headings.
        rows: Texts.
        file: Path of the CSV file with every row, relative to the report; empty for none.
    """

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    file: str = ""


def tables_of(study: StudyResult, measured: Measured = UNKNOWN) -> list[Table]:
    """Return the tables of a study: pooled rows, and seeds apart where they are few.

    Args:
        study: The study.
        measured: Who scored what its rows count.
    """
    measured = measured.of_study(study.study)
    tables = []
    for name, rows in study.tables.items():
        if not rows:
            continue
        file = file_of(study.study, name)
        pooled = [row for row in rows if row.get("seed") is None]
        seeds = [row for row in rows if row.get("seed") is not None]
        label = TABLES.get(name, name.replace("_", " "))
        by = UNKNOWN if name in OF_WEIGHTS else measured
        if pooled:
            tables.append(shape(label, wide(pooled), file, by))
        if seeds and (len(seeds) <= MOST_SEED_ROWS or not pooled):
            tables.append(shape(f"{label}, seeds apart", wide(seeds), file, by))
    return tables


def file_of(study: str, table: str) -> str:
    """Return where a table's CSV file lies beside the report."""
    return f"tables/{slug(study)}-{slug(table)}.csv"


def wide(rows: Sequence[Row]) -> list[Row]:
    """Return a table of outcomes with one column an outcome; other tables as they are."""
    if not rows or not all({"outcome", "share"} <= set(row) for row in rows):
        return list(rows)
    lines: dict[tuple[tuple[str, Value], ...], dict[str, Value]] = {}
    for row in rows:
        names = {key: value for key, value in row.items() if key not in ("outcome", "share")}
        line = lines.setdefault(tuple(names.items()), names)
        line[str(row["outcome"])] = percent(number(row["share"]))
    return list(lines.values())


def shape(name: str, rows: Sequence[Row], file: str, measured: Measured = UNKNOWN) -> Table:
    """Return a table for readers; columns that are empty are left out, constant ones said once.

    Args:
        name: Of the table.
        rows: Its rows.
        file: Path of the CSV file with all of them.
        measured: Who scored what they count; the caption names the judge.
    """
    keys = list(dict.fromkeys(key for row in rows for key in row))
    keys = [key for key in keys if not _is_bound(key, keys)]
    keys = [key for key in keys if any(row.get(key) is not None for row in rows)]
    graded = _is_graded(rows)
    labels = {key: measured.say(_label(key, LABELS)) for key in keys}
    labels |= _graded_labels(measured) if graded else {}
    keys = _graded_beside(keys, graded=graded)
    if "label" in keys and "arm" in keys:
        keys.remove("label")
    finer = [key for key in keys if key in FINER]
    keys = [key for key in keys if key not in FINER]
    texts = {key: [_text(row, key) for row in rows] for key in keys}
    # What was measured keeps its column, even where all values agree.
    settings = [key for key in keys if not _is_measured(key, rows)]
    constant = [key for key in settings if len(rows) > 2 and len(set(texts[key])) == 1]
    if len(constant) == len(keys):
        constant = []
    notes = [f"{_label(key, labels)} {texts[key][0]} in every row" for key in constant]
    hidden = len(rows) - MOST_ROWS
    if hidden > 0:
        notes.append(f"{hidden} more rows are in the CSV file")
    if finer:
        notes.append(f"{', '.join(_label(key, labels) for key in finer)} are in the CSV file")
    if measured.kind:
        notes.append(f"scored by: {measured.name}{_beside(keys, measured)}")
    shown = _names_first([key for key in keys if key not in constant])
    return Table(
        name,
        "; ".join(notes),
        tuple(Column(_label(key, labels), _is_numeric(rows, key)) for key in shown),
        tuple(tuple(texts[key][at] for key in shown) for at in range(min(len(rows), MOST_ROWS))),
        file,
    )


def _names_first(keys: list[str]) -> list[str]:
    """Put what names a row before what was measured."""
    last = len(NAMES_FIRST)
    return sorted(keys, key=lambda key: NAMES_FIRST.index(key) if key in NAMES_FIRST else last)


def _is_bound(key: str, keys: Sequence[str]) -> bool:
    stem = key.removesuffix("_low").removesuffix("_high")
    return stem != key and stem in keys


def _is_measured(key: str, rows: Sequence[Row]) -> bool:
    return key in MEASURED or any(f"{key}_low" in row for row in rows)


def _is_graded(rows: Sequence[Row]) -> bool:
    """Return whether harm is something else than the share of whole hits in some row."""
    pairs = [(row.get("harm"), row.get("harm_exact")) for row in rows]
    return any(
        isinstance(harm, int | float)
        and isinstance(whole, int | float)
        and not math.isclose(harm, whole, abs_tol=1e-9)
        for harm, whole in pairs
    )


def _beside(keys: Sequence[str], measured: Measured) -> str:
    """Return what of a table another judge has scored, or none."""
    if measured.kind in ("exact", "likelihood") or not any(
        key.startswith("utility") for key in keys
    ):
        return ""
    return ", but utility by answer keys or by likelihood"


def _graded_labels(measured: Measured) -> dict[str, str]:
    """Return headings where answers are graded: a mean grade, and whole hits beside it."""
    if measured.kind in ("", "exact"):
        return {"harm": "harm (content words)", "harm_exact": "wholly harmful"}
    return {"harm": f"{measured.behaviour} (mean score)", "harm_exact": WHOLE}


def _graded_beside(keys: list[str], *, graded: bool) -> list[str]:
    """Put the share of whole hits beside harm, or leave it out where it is the same number."""
    shown = [key for key in keys if key != "harm_exact"]
    if graded:
        shown.insert(shown.index("harm") + 1, "harm_exact")
    return shown


def _label(key: str, labels: Mapping[str, str]) -> str:
    return labels.get(key, key.replace("_", " "))


def _is_numeric(rows: Sequence[Row], key: str) -> bool:
    values = [row[key] for row in rows if row.get(key) is not None]
    return all(
        (isinstance(value, int | float) and not isinstance(value, bool)) or _is_percent(value)
        for value in values
    )


def _is_percent(value: Value) -> bool:
    return isinstance(value, str) and value.endswith(" %") and value[:1].isdigit()


def _text(row: Row, key: str) -> str:
    value = row.get(key)
    if key == "permutation" and value is None:
        return "none: true labels"
    if isinstance(value, int | float) and not isinstance(value, bool):
        if f"{key}_low" in row:
            return spread(value, bound(row, f"{key}_low"), bound(row, f"{key}_high"))
        if key in FRACTIONS | MEASURED:
            return percent(value)
    if key in NAMED and isinstance(value, str):
        return cell(name_of(value))
    return cell(value)


def csv_text(rows: Sequence[Row]) -> str:
    """Return rows as CSV, every column and every seed; unknown values are empty."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([_plain(key) for key in keys])
    for row in rows:
        writer.writerow([_plain(row.get(key)) for key in keys])
    return buffer.getvalue()


def _plain(value: Value) -> Value:
    if not isinstance(value, str):
        return "" if value is None else value
    # Office programs run a text that starts like a formula.
    return visible(f"'{value}" if value[:1] in ("=", "+", "-", "@", "\t", "\r") else value)
