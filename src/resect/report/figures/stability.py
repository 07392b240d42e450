"""How far the set and its effect depend on choices that should not matter.

Tables: `agreement` {axis, first, second, seed, jaccard, chance, enrichment, rank_correlation} and
`effects` {axis, value, seed, harm_drop(+), utility_drop(+)}; (+) stands for `_low` and `_high`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from resect.records import Row
from resect.report.figures.parts import (
    drops,
    linear,
    names,
    number,
    pooled,
    rows_of,
    unique,
    violin,
)
from resect.report.figures.spec import (
    Drawing,
    Panel,
    Point,
    Scale,
    Series,
    Settings,
    Style,
    Tables,
)
from resect.report.words import percent, plain_number

# Dots of a row are moved apart by turns, so that equal values stay visible.
JITTER = (0.0, -0.16, 0.16, -0.08, 0.08, -0.24, 0.24)
AGREEMENT = {
    "jaccard": "overlap of two sets (Jaccard)",
    "rank_correlation": "rank correlation of two scores",
}
EFFECTS = {"harm_drop": "relative drop of harm", "utility_drop": "relative drop of utility"}
PAIRS, RUNS, CHANCE = Style(3, 0, "circle"), Style(1, 0, "circle"), Style(2, 1, "up")


def draw(tables: Tables, _settings: Settings) -> list[Drawing]:
    """Return the spread of agreement over pairs of sets, and of the effect over all variants."""
    pairs = _apart(rows_of(tables, "agreement", texts=("axis", "first", "second")))
    effects = _apart(rows_of(tables, "effects", texts=("axis", "value")))
    violins = "a violin is their density, its line the median; tooltips say which."
    return [
        Drawing(
            "stability-agreement",
            f"Each dot is a pair of runs that differ in one choice, seeds apart; {violins} "
            "Triangles: the overlap that chance gives.",
            _panels(pairs, AGREEMENT, PAIRS),
        ),
        Drawing(
            "stability-effects",
            f"Each dot is one run with one choice made otherwise, seeds apart; {violins}",
            _panels(effects, EFFECTS, RUNS),
        ),
    ]


def _panels(rows: Sequence[Row], titles: dict[str, str], style: Style) -> tuple[Panel, ...]:
    return tuple(
        _spread(rows, column, title, style)
        for column, title in titles.items()
        if any(row.get(column) is not None for row in rows)
    )


def _apart(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of single seeds; where there are none, all rows."""
    return [row for row in rows if row.get("seed") is not None] or pooled(rows)


def _spread(rows: Sequence[Row], column: str, title: str, style: Style) -> Panel:
    axes = unique(row["axis"] for row in rows)
    write = percent if column.endswith("_drop") else plain_number
    dots: list[Point] = []
    violins = []
    for index, axis in enumerate(axes):
        measured = [
            row
            for row in rows
            if str(row["axis"]) == axis and math.isfinite(number(row.get(column)))
        ]
        values = [number(row[column]) for row in measured]
        if (shape := violin(index, style, values, axis, write)) is not None:
            violins.append(shape)
        dots += [
            Point(value, index + JITTER[turn % len(JITTER)], title=f"{_name(row)}: {write(value)}")
            for turn, (row, value) in enumerate(zip(measured, values, strict=True))
        ]
    series = [Series("", style, tuple(dots), False, "none", "x", hollow=True)]
    if column == "jaccard" and (luck := _chance(rows, axes)):
        series.append(Series("chance", CHANCE, luck, False, "none", "x"))
    scale = _scale(column, [point.x for point in dots])
    return Panel(
        title,
        scale,
        names(axes),
        series=tuple(series),
        violins=tuple(violins),
        height=56 + 40 * len(axes),
    )


def _scale(column: str, values: Sequence[float]) -> Scale:
    if column.endswith("_drop"):
        return drops("", values, *((1.0,) if column == "harm_drop" else ()))
    return linear("", values, plain_number, reach=(0.0, 1.0))


def _chance(rows: Sequence[Row], axes: Sequence[str]) -> tuple[Point, ...]:
    by_axis = {str(row["axis"]): number(row.get("chance")) for row in rows}
    return tuple(
        Point(luck, axes.index(axis), title=f"{axis}, chance: {plain_number(luck)}")
        for axis, luck in by_axis.items()
        if math.isfinite(luck)
    )


def _name(row: Row) -> str:
    seed = "" if row.get("seed") is None else f", seed {row['seed']}"
    variant = row["value"] if "value" in row else f"{row['first']} | {row['second']}"
    return f"{row['axis']}, {variant}{seed}"
