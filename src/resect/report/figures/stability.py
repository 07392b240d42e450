"""How far the set and its effect depend on choices that should not matter.

Tables: `agreement` {axis, first, second, jaccard, chance, enrichment, rank_correlation} and
`effects` {axis, value, seed, harm_drop(+), utility_drop(+)}; (+) stands for `_low` and `_high`.
"""

from __future__ import annotations

import math
from typing import Any

from resect.report.figures._parts import dots, drops, linear, names, number, rows_of, unique
from resect.report.figures._spec import Drawing, Panel, Point, Row, Series, Style, Tables
from resect.report.words import plain_number

# Dots of a row are moved apart by turns, so that equal values stay visible.
JITTER = (0.0, -0.16, 0.16, -0.08, 0.08, -0.24, 0.24)


def draw(tables: Tables, _settings: dict[str, Any]) -> list[Drawing]:
    """Return the agreement of pairs of sets, and the effects of every variant."""
    panels: list[Panel] = []
    pairs = rows_of(tables, "agreement")
    for column, title in (
        ("jaccard", "overlap of pairs of sets (Jaccard)"),
        ("rank_correlation", "rank correlation of pairs of scores"),
    ):
        if any(row.get(column) is not None for row in pairs):
            panels.append(_agreement(pairs, column, title))
    effects = rows_of(tables, "effects")
    for column, title in (("harm_drop", "harm"), ("utility_drop", "utility")):
        if any(row.get(column) is not None for row in effects):
            panels.append(_effects(effects, column, f"relative drop of {title}"))
    caption = (
        "Each dot is a pair of runs that differ in one choice (overlap, rank correlation) or one "
        "run (drops, with 95 % intervals; small dots: single seeds). Triangles: the overlap that "
        "chance gives."
    )
    return [Drawing("stability-dots", caption, tuple(panels))]


def _agreement(rows: list[Row], column: str, title: str) -> Panel:
    axes = unique(row["axis"] for row in rows)
    found: list[Point] = []
    chance: list[Point] = []
    seen: dict[str, int] = {}
    for row in rows:
        value, axis = number(row.get(column)), str(row["axis"])
        at = axes.index(axis)
        turn = seen[axis] = seen.get(axis, -1) + 1
        if math.isfinite(value):
            said = f"{axis}, {row['first']} | {row['second']}: {plain_number(value)}"
            found.append(Point(value, at + JITTER[turn % len(JITTER)], title=said))
        luck = number(row.get("chance")) if column == "jaccard" else math.nan
        if math.isfinite(luck) and all(point.y != at for point in chance):
            chance.append(Point(luck, at, title=f"{axis}, chance: {plain_number(luck)}"))
    series = (
        Series("pair of runs", Style(3, 0, "circle"), tuple(found), False, "none", "x"),
        Series("chance" if chance else "", Style(2, 1, "up"), tuple(chance), False, "none", "x"),
    )
    x = linear("", [point.x for point in found], plain_number, reach=(0.0, 1.0))
    return Panel(title, x, names(axes), series=series, height=60 + 28 * len(axes))


def _effects(rows: list[Row], column: str, title: str) -> Panel:
    pooled = [row for row in rows if row.get("seed") is None]
    single = [row for row in rows if row.get("seed") is not None]
    labels = unique(_label(row) for row in rows)
    series = (
        *dots([("all seeds", Style(1, 0, "circle"), pooled)], labels, _label, column),
        *dots([("one seed", Style(2, 1, "plus"), single)], labels, _label, column),
    )
    if pooled:
        without = tuple(Point(p.x, p.y, title=p.title) for p in series[1].points)
        series = (
            Series("one seed" if without else "", Style(2, 1, "plus"), without, False, "none", "x"),
            series[0],
        )
    edges = [
        value
        for one in series
        for point in one.points
        for value in (point.x, number(point.low), number(point.high))
    ]
    reach = (1.0,) if column == "harm_drop" else ()
    height = 60 + 22 * len(labels)
    return Panel(title, drops("", edges, *reach), names(labels), series=series, height=height)


def _label(row: Row) -> str:
    return f"{row['axis']}: {row['value']}"
