"""The same cuts on several checkpoints: base, aligned, controls.

Tables: `curve` {seed, role, arm or method, q, removed_fraction, harm_drop(+), utility_drop(+)};
`index` {seed, role, method, drop_at_budget(+), fraction_needed}, or `at_budget` {seed, model, arm,
harm_drop(+)}. `model` is read where there is no `role`. (+) stands for `_low` and `_high`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from resect.records import Row
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
from resect.report.figures.spec import (
    Drawing,
    Panel,
    Series,
    Settings,
    Style,
    Tables,
    looks,
    name_of,
)
from resect.report.words import readable

RANDOM = Style(2, 0, "circle")


def draw(tables: Tables, settings: Settings) -> list[Drawing]:
    """Return the curves along the fraction with the plane of harm and utility, and the index."""
    rows = [row for row in pooled(rows_of(tables, "curve")) if row.get("arm") != "intact"]
    curves = (*_along(rows, settings), _plane(rows, settings)) if rows else ()
    title = "drop of harm within the budget"
    index: tuple[Panel, ...] = ()
    if budgets := pooled(rows_of(tables, "index")):
        index = (bars(budgets, "drop_at_budget", _label, title),)
    elif budgets := pooled(rows_of(tables, "at_budget")):
        index = (bars(budgets, "harm_drop", _label, title),)
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
    ranking = str(row.get("method") or row.get("arm") or "")
    name = name_of(role_of(row))
    return name if ranking in ("", "target") else f"{name}, {ranking}"


@dataclass(frozen=True)
class _Group:
    """The rows of one checkpoint that were ranked in one way, or cut at random."""

    role: str
    ranking: str
    rows: list[Row]


def _groups(rows: Sequence[Row]) -> list[_Group]:
    """Return the rows of every line, in order of appearance."""
    groups: dict[tuple[str, str], _Group] = {}
    for row in rows:
        role, ranking = role_of(row), str(row.get("arm") or row.get("method") or "target")
        groups.setdefault((role, ranking), _Group(role, ranking, [])).rows.append(row)
    return list(groups.values())


def _along(rows: Sequence[Row], settings: Settings) -> list[Panel]:
    """Return a panel for each way to rank, with the random cuts as thin lines in each."""
    measured = all(row.get("removed_fraction") is not None for row in rows)
    x = "removed_fraction" if measured else "q"
    styles = looks(role_of(row) for row in rows)
    groups = _groups(rows)
    lines = [
        curve(group.rows, x, "harm_drop", name_of(group.role), styles[group.role])
        for group in groups
    ]
    compared = {settings.get("aligned", "aligned"), settings.get("base", "base")}
    plain = [
        replace(line, name="random cuts", style=RANDOM, faint=True, spread="none")
        for group, line in zip(groups, lines, strict=True)
        if group.ranking == "random"
    ]
    label = "fraction of prunable weights cut" if measured else "q"
    fractions = log(label, [number(row.get(x)) for row in rows])
    drop = drops("", _values(lines), 1.0)
    rankings = list(dict.fromkeys(group.ranking for group in groups if group.ranking != "random"))
    panels = []
    for ranking in rankings:
        shown = [
            line if group.role in compared else replace(line, spread="none")
            for group, line in zip(groups, lines, strict=True)
            if group.ranking == ranking
        ]
        named = "the configured ranking" if ranking == "target" else readable(ranking)
        title = "relative drop of harm" + (f": {named}" if len(rankings) > 1 else "")
        panels.append(Panel(title, fractions, drop, series=(*plain, *shown)))
    return panels


def _values(lines: Sequence[Series]) -> list[float]:
    """Return what must fit on the y axis."""
    return [
        value
        for line in lines
        for point in line.points
        for value in (point.y, number(point.low), number(point.high))
        if math.isfinite(value)
    ]


def _plane(rows: Sequence[Row], settings: Settings) -> Panel:
    styles = looks(role_of(row) for row in rows)
    groups = _groups(rows)
    lines = [
        replace(plane(group.rows, name_of(group.role), styles[group.role]), name="")
        for group in groups
        if group.ranking == groups[0].ranking
    ]
    return plane_panel(lines, settings.get("utility_drop"), "drop of harm by its cost")
