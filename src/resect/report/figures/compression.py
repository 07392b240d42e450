"""The same cuts on several checkpoints: base, aligned, controls.

Tables: `curve` {seed, role, arm or method, q, removed_fraction, harm_drop(+), utility_drop(+)};
`index` {seed, role, method, drop_at_budget(+), fraction_needed}, or `at_budget` {seed, model, arm,
harm_drop(+)}. `model` is read where there is no `role`. (+) stands for `_low` and `_high`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from resect.report.figures.parts import (
    bars,
    curve,
    drops,
    log,
    number,
    plane,
    plane_panel,
    pooled,
    rows_of,
)
from resect.report.figures.spec import Drawing, Panel, Row, Style, Tables, looks, name_of
from resect.report.words import readable

RANDOM = Style(2, 0, "circle")


def draw(tables: Tables, settings: dict[str, Any]) -> list[Drawing]:
    """Return the curves along the fraction with the plane of harm and utility, and the index."""
    rows = [row for row in pooled(rows_of(tables, "curve")) if row.get("arm") != "intact"]
    curves = (*_along(rows, settings), _plane(rows, settings)) if rows else ()
    title = "drop of harm within the budget"
    index: tuple[Panel, ...] = ()
    if found := pooled(rows_of(tables, "index")):
        index = (bars(found, "drop_at_budget", _label, title),)
    elif found := pooled(rows_of(tables, "at_budget")):
        index = (bars(found, "harm_drop", _label, title),)
    return [
        Drawing(
            "compression-curves",
            "Drop of harm along the fraction cut for each checkpoint, a panel for each way to rank "
            "weights (95 % bands for the pair that is compared; thin lines: random cuts of the "
            "same size), and the cuts of the first way by their cost of utility.",
            curves,
        ),
        Drawing(
            "compression-budget",
            "The largest drop of harm within the utility budget, with 95 % intervals.",
            index,
        ),
    ]


def role_of(row: Row) -> str:
    """Return the checkpoint of a row."""
    return str(row.get("role") or row.get("model") or "model")


def _label(row: Row) -> str:
    how = str(row.get("method") or row.get("arm") or "")
    return f"{name_of(role_of(row))}, {how}" if how not in ("", "target") else name_of(role_of(row))


def _groups(rows: list[Row]) -> list[tuple[str, str, list[Row]]]:
    """Return (role, arm or method, rows) of every line."""
    keys = dict.fromkeys(
        (role_of(row), str(row.get("arm") or row.get("method") or "target")) for row in rows
    )
    return [
        (
            role,
            how,
            [
                row
                for row in rows
                if (role_of(row), str(row.get("arm") or row.get("method") or "target"))
                == (role, how)
            ],
        )
        for role, how in keys
    ]


def _along(rows: list[Row], settings: dict[str, Any]) -> list[Panel]:
    """Return a panel for each way to rank, with the random cuts as thin lines in each."""
    known = all(row.get("removed_fraction") is not None for row in rows)
    x = "removed_fraction" if known else "q"
    styles = looks(role_of(row) for row in rows)
    groups = [(role, how, curve(own, (x, "harm_drop"), (name_of(role), styles[role])))
              for role, how, own in _groups(rows)]  # fmt: skip
    compared = {settings.get("aligned", "aligned"), settings.get("base", "base")}
    plain = [
        replace(line, name="random cuts", style=RANDOM, faint=True, spread="none")
        for _, how, line in groups
        if how == "random"
    ]
    ys = [
        value
        for _, _, one in groups
        for point in one.points
        for value in (point.y, number(point.low), number(point.high))
        if math.isfinite(value)
    ]
    label = "fraction of prunable weights cut" if known else "q"
    scale, drop = log(label, [number(row.get(x)) for row in rows]), drops("", ys, 1.0)
    ways = [how for how in dict.fromkeys(how for _, how, _ in groups) if how != "random"]
    panels = []
    for way in ways:
        lines = [
            line if role in compared else replace(line, spread="none")
            for role, how, line in groups
            if how == way
        ]
        named = "the configured ranking" if way == "target" else readable(way)
        title = "relative drop of harm" + (f": {named}" if len(ways) > 1 else "")
        panels.append(Panel(title, scale, drop, series=(*plain, *lines)))
    return panels


def _plane(rows: list[Row], settings: dict[str, Any]) -> Panel:
    styles = looks(role_of(row) for row in rows)
    groups = _groups(rows)
    lines = [
        replace(plane(own, (name_of(role), styles[role])), name="")
        for role, how, own in groups
        if how == groups[0][1]
    ]
    return plane_panel(lines, settings.get("utility_drop"), "drop of harm by its cost")
