"""Each capability cut, every capability measured.

Table: `matrix` {cut, measured, value(+), retained(+)}; (+) stands for `_low` and `_high`.
"""

from __future__ import annotations

from collections.abc import Sequence

from resect.records import Row
from resect.report.figures.parts import matrix, rows_of
from resect.report.figures.spec import Drawing, Settings, Tables


def draw(tables: Tables, _settings: Settings) -> list[Drawing]:
    """Return the matrix of what is left, and the matrix of rates."""
    rows = rows_of(tables, "matrix", texts=("cut", "measured"))
    panels = [
        matrix(
            rows,
            "cut",
            "measured",
            column,
            title,
            row_label="what was cut",
            column_label="what was measured",
        )
        for column, title in (
            ("retained", "retained, % of the intact model"),
            ("value", "rate, %"),
        )
        if _has(rows, column)
    ]
    caption = (
        "What is left of each capability (columns) after each cut (rows): as a share of the intact "
        "model, and as a rate. A cut that stays within its capability darkens all of its row but "
        "one cell."
    )
    return [Drawing("dissociation-matrix", caption, tuple(panels))]


def _has(rows: Sequence[Row], column: str) -> bool:
    return any(row.get(column) is not None for row in rows)
