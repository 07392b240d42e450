"""Every cut of a grid by what it costs and does, the front of the best ones, and the chosen one.

Table: `grid` {seed, scope, method, rounds, p, q, removed_fraction, harm_drop(+), utility_drop(+),
on_front, chosen, split}; (+) stands for the bounds `_low` and `_high`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from resect.records import Row
from resect.report.figures.parts import bound, number, plane_panel, pooled, rows_of, unique
from resect.report.figures.spec import Drawing, Panel, Point, Series, Settings, Style, Tables
from resect.report.words import cell, percent

HALVES = {"selection": "chosen on this half", "test": "weighed on this half"}
SETTINGS = ("scope", "method", "rounds", "p", "q")


def draw(tables: Tables, settings: Settings) -> list[Drawing]:
    """Return the plane of harm and utility, one panel a split."""
    rows = pooled(rows_of(tables, "grid"))
    panels = tuple(
        _panel([row for row in rows if str(row.get("split")) == split], split, settings)
        for split in unique(row.get("split") for row in rows)
    )
    caption = (
        "Each mark is a cut by what it costs (utility) and does (harm). The line joins the front: "
        "the cuts that no other beats in both. The star is the cut that was chosen; it is chosen "
        "on one split and weighed on another, so that luck in choosing does not count."
    )
    return [Drawing("frontier-pareto", caption, panels)]


def _panel(rows: Sequence[Row], split: str, settings: Settings) -> Panel:
    front = [row for row in rows if row.get("on_front")]
    # A grid has hundreds of cuts; those that are beaten carry no tooltip, to keep the page small.
    beaten = [
        Point(point.x, point.y)
        for point in _points([row for row in rows if not row.get("on_front")])
    ]
    chosen = _points([row for row in rows if row.get("chosen")])
    series = [
        Series("beaten cuts", Style(2, 0, "circle"), tuple(beaten), False, "none", hollow=True),
        Series(
            "front",
            Style(3, 0, "square"),
            tuple(sorted(_points(front), key=lambda point: (point.x, point.y))),
            spread="none",
        ),
        Series("chosen", Style(1, 0, "star"), tuple(chosen), False, "whisker"),
    ]
    half = HALVES.get(split, split)
    title = "drop of harm by its cost" + (f": {half}" if split not in ("None", "") else "")
    drawn = [marks for marks in series if marks.points]
    return plane_panel(drawn, settings.get("utility_drop"), title)


def _points(rows: Sequence[Row]) -> list[Point]:
    points = []
    for row in rows:
        x, y = number(row.get("utility_drop")), number(row.get("harm_drop"))
        if math.isfinite(x) and math.isfinite(y):
            cut = ", ".join(
                f"{key} {cell(row[key])}" for key in SETTINGS if row.get(key) is not None
            )
            title = f"{cut}: drop of harm {percent(y)}, of utility {percent(x)}"
            low, high = bound(row, "harm_drop_low"), bound(row, "harm_drop_high")
            points.append(Point(x, y, low, high, title))
    return points
