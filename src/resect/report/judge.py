"""How the judge of a run errs, for its report; reads `judge.json` alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from resect import files
from resect.records import Row
from resect.report.tables import Column, Table, csv_text
from resect.report.words import cell, spread

FILE = "judge.json"
CSV = {"errors": "tables/judge-errors.csv", "corrected": "tables/judge-corrected.csv"}
NAMES = {
    "errors": "How the judge errs, on labelled replies that it had not seen",
    "corrected": "Rates corrected for the judge's error",
}
LABELS = {"auroc": "AUROC", "rate": "corrected rate", "called": "rate as judged"}
# A mean of no fractions: written as it is.
PLAIN = {"auroc"}


@dataclass(frozen=True)
class JudgeFile:
    """What `judge.json` holds; `resect.runs.judged` says what the columns mean."""

    errors: tuple[Row, ...]
    corrected: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> dict[str, tuple[Row, ...]]:
        """The tables that have rows, by name."""
        return {
            name: rows
            for name, rows in (("errors", self.errors), ("corrected", self.corrected))
            if rows
        }

    def tables(self) -> list[Table]:
        """Return the tables as a page shows them."""
        return [shape_judge(NAMES[name], rows, CSV[name]) for name, rows in self.rows.items()]

    def write_tables(self, run: Path) -> None:
        """Write a CSV file for each table."""
        for name, rows in self.rows.items():
            files.write_text(run / CSV[name], csv_text(rows))


def read_judge(run: Path) -> JudgeFile | None:
    """Read `judge.json` of a run; None if it has none.

    Raises:
        InputError: A field of it is missing or holds something else.
    """
    path = run / FILE
    return files.read_as(path, JudgeFile, "file on a judge") if path.is_file() else None


def shape_judge(name: str, rows: Sequence[Row], file: str = "") -> Table:
    """Return a table with bounds beside their value; columns without any value are left out."""
    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if not _is_bound(key)]
    keys = [key for key in keys if any(row.get(key) not in (None, "") for row in rows)]
    columns = tuple(
        Column(
            LABELS.get(key, key.replace("_", " ")),
            all(not isinstance(row.get(key), str | bool) for row in rows),
        )
        for key in keys
    )
    return Table(
        name, "", columns, tuple(tuple(_text(row, key) for key in keys) for row in rows), file
    )


def _is_bound(key: str) -> bool:
    return key in ("low", "high") or key.endswith(("_low", "_high"))


def _text(row: Row, key: str) -> str:
    value = row.get(key)
    bounds = [
        row.get(f"{key}_{end}", row.get(end) if key == "rate" else None) for end in ("low", "high")
    ]
    low, high = (float(bound) if isinstance(bound, int | float) else None for bound in bounds)
    if isinstance(value, float) and key in PLAIN:
        inner = "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"
        return f"{value:.2f}{inner}"
    if isinstance(value, int | float) and not isinstance(value, bool) and _is_share(row, key):
        return spread(value, low, high)
    return cell("–" if value == "" else value)


def _is_share(row: Row, key: str) -> bool:
    return f"{key}_low" in row or key in ("rate", "incoherent")
