"""Each capability cut, every capability measured.

Table: `matrix` {cut, measured, value(+), retained(+)}; (+) stands for `_low` and `_high`.
"""

from __future__ import annotations

from typing import Any

from resect.report.figures.parts import matrix, rows_of
from resect.report.figures.spec import Drawing, Row, Tables


def draw(tables: Tables, _settings: dict[str, Any]) -> list[Drawing]:
    """Return the matrix of what is left, and the matrix of rates."""
    rows = rows_of(tables, "matrix")
    labels = ("what was cut", "what was measured")
    panels = []
    if _has(rows, "retained"):
        columns = ("cut", "measured", "retained")
        title = "retained, % of the intact model"
        panels.append(matrix(rows, columns, title, labels=labels))
    if _has(rows, "value"):
        panels.append(matrix(rows, ("cut", "measured", "value"), "rate, %", labels=labels))
    caption = (
        "What is left of each capability (columns) after each cut (rows): as a share of the intact "
        "model, and as a rate. A cut that stays within its capability darkens all of its row but "
        "one cell."
    )
    return [Drawing("dissociation-matrix", caption, tuple(panels))]


def _has(rows: list[Row], column: str) -> bool:
    return any(row.get(column) is not None for row in rows)
