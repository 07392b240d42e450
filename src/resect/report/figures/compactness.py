"""Harm and utility along the fraction of weights cut, and what the cut model says instead.

Tables: `curve` {seed, arm, q, removed_fraction, harm_drop(+), utility_drop(+)} and `outcomes` {arm,
q, outcome, share}; (+) stands for the bounds `_low` and `_high`.
"""

from __future__ import annotations

import math
from typing import Any

from resect.records import OUTCOMES
from resect.report.figures.parts import (
    arms_of,
    curve,
    drops,
    log,
    names,
    number,
    pooled,
    rates,
    rows_of,
)
from resect.report.figures.spec import Bar, Drawing, Panel, Row, Style, Tables, Threshold
from resect.report.words import percent

OUTCOME_STYLES = dict(zip(OUTCOMES, (1, 3, 4, 7, 5, 2), strict=True))


def draw(tables: Tables, settings: dict[str, Any]) -> list[Drawing]:
    """Return the curve and the outcomes."""
    return [
        Drawing(
            "compactness-curve",
            "Relative drop of harmful answers and of utility along the fraction of weights cut, "
            "with 95 % bands; dotted lines are the thresholds of the rule.",
            curve_panels(rows_of(tables, "curve"), settings),
        ),
        Drawing(
            "compactness-outcomes",
            "What the model says under the attack, intact and after the target cut: broken text "
            "is told apart from refusals and from wrong or benign answers. Numbers are percent.",
            _outcomes(rows_of(tables, "outcomes")),
        ),
    ]


def curve_panels(rows: list[Row], settings: dict[str, Any]) -> tuple[Panel, ...]:
    """Return the panel of harm and the panel of utility."""
    found = [row for row in pooled(rows) if row["arm"] != "intact"]
    if not found:
        return ()
    panels = []
    for column, title in (("harm_drop", "harm"), ("utility_drop", "utility")):
        lines = tuple(
            curve([r for r in found if r["arm"] == arm], ("removed_fraction", column), (name, look))
            for arm, name, look in arms_of(found)
        )
        bound = number(settings.get(column))
        rules = () if math.isnan(bound) else (Threshold(bound, "y", f"rule: {percent(bound)}"),)
        ys = [
            number(row.get(key))
            for row in found
            for key in (column, f"{column}_low", f"{column}_high")
        ]
        x = log("fraction of prunable weights cut", [number(r["removed_fraction"]) for r in found])
        y = drops("", ys, *(rule.value for rule in rules), *((1.0,) if title == "harm" else ()))
        panels.append(Panel(f"relative drop of {title}", x, y, series=lines, rules=rules))
    return tuple(panels)


def _outcomes(rows: list[Row]) -> tuple[Panel, ...]:
    shares = {(row["arm"], row["q"], row["outcome"]): number(row["share"]) for row in rows}
    cuts = sorted({row["q"] for row in rows if row["arm"] == "target"})
    places = [("intact", 0.0), *(("target", q) for q in cuts)]
    labels = ["intact", *(f"q = {percent(q)}" for q in cuts)]
    drawn = []
    for at, (arm, q) in enumerate(places):
        start = 0.0
        for outcome, colour in OUTCOME_STYLES.items():
            share = shares.get((arm, q, outcome), math.nan)
            if share > 0:
                name = outcome.replace("_", " ")
                title = f"{labels[at]}, {name}: {percent(share)}"
                look = Style(colour, 0, "square")
                text = f"{100 * share:.0f}"
                drawn.append(
                    Bar(at, start, start + share, look, name, title, text=text, inside=True)
                )
                start += share
    if not drawn:
        return ()
    x = rates("share of replies under the attack")
    height = 60 + 24 * len(places)
    return (Panel("what is said instead", x, names(labels), bars=tuple(drawn), height=height),)
