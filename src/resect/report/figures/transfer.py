"""Which harm types fall when one is cut, and how far the cut sets overlap.

Tables: `matrix` {source, measured, harm_drop(+)} and `overlap` {seed, first, second, jaccard,
expected_jaccard, enrichment, p_value}; (+) stands for the bounds `_low` and `_high`.
"""

from __future__ import annotations

from typing import Any

from resect.report.figures.parts import matrix, matrix_panel, number, pooled, rows_of, unique
from resect.report.figures.spec import Drawing, Panel, Row, Tables, Tile
from resect.report.words import plain_number


def draw(tables: Tables, _settings: dict[str, Any]) -> list[Drawing]:
    """Return both heat maps in one figure."""
    panels = []
    rows = rows_of(tables, "matrix")
    if rows:
        columns = ("source", "measured", "harm_drop")
        labels = ("located with", "measured on")
        panels.append(matrix(rows, columns, "relative drop of harm, %", labels=labels))
    pairs = pooled(rows_of(tables, "overlap"))
    if pairs:
        panels.append(_overlap(pairs))
    caption = (
        "First: drop of harm of each type (columns) after a cut that was located with one type "
        "(rows). Second: overlap of the cut sets as Jaccard index (1: the same set)"
        f"{_luck(pairs)}; tooltips say how many times chance it is."
    )
    return [Drawing("transfer-matrix", caption, tuple(panels))]


def _luck(pairs: list[Row]) -> str:
    known = [row["expected_jaccard"] for row in pairs if row.get("expected_jaccard") is not None]
    return f"; chance gives {max(known):.2g} or less" if known else ""


def _overlap(pairs: list[Row]) -> Panel:
    listed = unique(row[key] for row in pairs for key in ("first", "second"))
    top = max((row["jaccard"] for row in pairs if row.get("jaccard")), default=1.0)
    cells = []
    for row in pairs:
        if row.get("jaccard") is None:
            continue
        early, late = sorted((listed.index(str(row["first"])), listed.index(str(row["second"]))))
        title = (
            f"{row['first']} | {row['second']}: Jaccard {plain_number(row['jaccard'])}, "
            f"{plain_number(row.get('enrichment'))} times chance"
        )
        shade = number(row["jaccard"]) / top
        cells.append(Tile(early, late - 1, shade, f"{row['jaccard']:.2f}", title))
    return matrix_panel("overlap of the cut sets (Jaccard)", (listed[1:], listed[:-1]), cells)
