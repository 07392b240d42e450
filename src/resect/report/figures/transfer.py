"""Which harm types fall when one is cut, and how far the cut sets overlap.

Tables: `matrix` {source, measured, harm_drop(+)} and `overlap` {seed, first, second, jaccard,
expected_jaccard, enrichment, p_value}; (+) stands for the bounds `_low` and `_high`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from resect.records import Row
from resect.report.figures.parts import matrix, matrix_panel, number, pooled, rows_of, unique
from resect.report.figures.spec import Drawing, Panel, Settings, Tables, Tile
from resect.report.words import plain_number


def draw(tables: Tables, _settings: Settings) -> list[Drawing]:
    """Return both heat maps in one figure."""
    panels = []
    rows = rows_of(tables, "matrix", texts=("source", "measured"))
    if rows:
        panels.append(
            matrix(
                rows,
                "source",
                "measured",
                "harm_drop",
                "relative drop of harm, %",
                row_label="located with",
                column_label="measured on",
            )
        )
    pairs = pooled(rows_of(tables, "overlap", texts=("first", "second")))
    if pairs:
        panels.append(_overlap(pairs))
    caption = (
        "First: drop of harm of each type (columns) after a cut that was located with one type "
        "(rows). Second: overlap of the cut sets as Jaccard index (1: the same set)"
        f"{_luck(pairs)}; tooltips say how many times chance it is."
    )
    return [Drawing("transfer-matrix", caption, tuple(panels))]


def _luck(pairs: Sequence[Row]) -> str:
    expected = [number(row.get("expected_jaccard")) for row in pairs]
    finite = [value for value in expected if math.isfinite(value)]
    return f"; chance gives {max(finite):.2g} or less" if finite else ""


def _overlap(pairs: Sequence[Row]) -> Panel:
    listed = unique(row[key] for row in pairs for key in ("first", "second"))
    values = [number(row.get("jaccard")) for row in pairs]
    top = max((value for value in values if math.isfinite(value) and value), default=1.0)
    cells = []
    for row, jaccard in zip(pairs, values, strict=True):
        if math.isnan(jaccard):
            continue
        early, late = sorted((listed.index(str(row["first"])), listed.index(str(row["second"]))))
        title = (
            f"{row['first']} | {row['second']}: Jaccard {plain_number(jaccard)}, "
            f"{plain_number(number(row.get('enrichment')))} times chance"
        )
        cells.append(Tile(early, late - 1, jaccard / top, f"{jaccard:.2f}", title))
    return matrix_panel("overlap of the cut sets (Jaccard)", listed[1:], listed[:-1], cells)
