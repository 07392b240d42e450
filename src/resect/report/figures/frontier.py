"""Every cut of a grid by what it costs and does, the front of the best ones, and the chosen one.

Table: `grid` {seed, scope, method, rounds, p, q, removed_fraction, harm_drop(+), utility_drop(+),
on_front, chosen, split}; (+) stands for the bounds `_low` and `_high`.
"""

from __future__ import annotations

import math
from typing import Any

from resect.report.figures.parts import number, plane_panel, pooled, rows_of, unique
from resect.report.figures.spec import Drawing, Panel, Point, Row, Series, Style, Tables
from resect.report.words import cell, percent

HALVES = {"selection": "chosen on this half", "test": "weighed on this half"}
FACTS = ("scope", "method", "rounds", "p", "q")


def draw(tables: Tables, settings: dict[str, Any]) -> list[Drawing]:
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


def _panel(rows: list[Row], split: str, settings: dict[str, Any]) -> Panel:
    front = sorted(_points(rows, "on_front"), key=lambda point: (point.x, point.y))
    # A grid has hundreds of cuts; those that are beaten carry no tooltip, to keep the page small.
    rest = [Point(p.x, p.y) for p in _points([r for r in rows if not r.get("on_front")], None)]
    series = [
        Series("beaten cuts", Style(2, 0, "circle"), tuple(rest), False, "none", hollow=True),
        Series("front", Style(3, 0, "square"), tuple(front), spread="none"),
        Series("chosen", Style(1, 0, "star"), tuple(_points(rows, "chosen")), False, "whisker"),
    ]
    where = HALVES.get(split, split)
    title = "drop of harm by its cost" + (f": {where}" if split not in ("None", "") else "")
    found = [one for one in series if one.points]
    return plane_panel(found, settings.get("utility_drop"), title)


def _points(rows: list[Row], flag: str | None) -> list[Point]:
    points = []
    for row in rows:
        x, y = number(row.get("utility_drop")), number(row.get("harm_drop"))
        if math.isfinite(x) and math.isfinite(y) and (flag is None or row.get(flag)):
            facts = ", ".join(
                f"{key} {cell(row[key])}" for key in FACTS if row.get(key) is not None
            )
            title = f"{facts}: drop of harm {percent(y)}, of utility {percent(x)}"
            low, high = row.get("harm_drop_low"), row.get("harm_drop_high")
            points.append(Point(x, y, low, high, title))
    return points
