"""Harm and utility along the fraction of weights cut, and what the cut model says instead.

Tables: `curve` {seed, arm, q, removed_fraction, harm_drop(+), utility_drop(+)} and `outcomes` {arm,
q, outcome, share}; (+) stands for the bounds `_low` and `_high`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from resect.records import OUTCOMES, Row
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
from resect.report.figures.spec import (
    Bar,
    Drawing,
    Panel,
    Settings,
    Style,
    Tables,
    Threshold,
)
from resect.report.words import outcome as outcome_name
from resect.report.words import percent

OUTCOME_COLOURS = dict(zip(OUTCOMES, (1, 6, 3, 4, 7, 5, 2), strict=True))


def draw(tables: Tables, settings: Settings) -> list[Drawing]:
    """Return the curve and the outcomes."""
    return [
        Drawing(
            "compactness-curve",
            "Relative drop of harm and of utility along the fraction of weights cut, "
            "with 95 % bands; dotted lines are the thresholds of the rule.",
            curve_panels(rows_of(tables, "curve", texts=("arm",)), settings),
        ),
        Drawing(
            "compactness-outcomes",
            "What the model says under the attack, intact and after the target cut: broken text "
            "is told apart from refusals and from wrong, partly right or benign answers. Numbers "
            "are percent.",
            _outcomes(
                rows_of(tables, "outcomes", texts=("arm", "outcome"), numbers=("q", "share"))
            ),
        ),
    ]


def curve_panels(rows: Sequence[Row], settings: Settings) -> tuple[Panel, ...]:
    """Return the panel of harm and the panel of utility."""
    cut = [row for row in pooled(rows) if row["arm"] != "intact"]
    if not cut:
        return ()
    panels = []
    for column, title in (("harm_drop", "harm"), ("utility_drop", "utility")):
        lines = tuple(
            curve(arm.rows, "removed_fraction", column, arm.name, arm.style) for arm in arms_of(cut)
        )
        threshold = number(settings.get(column))
        rules = (
            ()
            if math.isnan(threshold)
            else (Threshold(threshold, "y", f"rule: {percent(threshold)}"),)
        )
        ys = [
            number(row.get(key))
            for row in cut
            for key in (column, f"{column}_low", f"{column}_high")
        ]
        fractions = [number(row.get("removed_fraction")) for row in cut]
        x = log("fraction of prunable weights cut", fractions)
        y = drops("", ys, *(rule.value for rule in rules), *((1.0,) if title == "harm" else ()))
        panels.append(Panel(f"relative drop of {title}", x, y, series=lines, rules=rules))
    return tuple(panels)


def _outcomes(rows: Sequence[Row]) -> tuple[Panel, ...]:
    shares = {
        (str(row["arm"]), number(row.get("q")), str(row["outcome"])): number(row.get("share"))
        for row in rows
    }
    fractions = sorted({q for arm, q, _ in shares if arm == "target" and math.isfinite(q)})
    variants = [("intact", 0.0), *(("target", q) for q in fractions)]
    labels = ["intact", *(f"q = {percent(q)}" for q in fractions)]
    drawn = []
    for index, (arm, q) in enumerate(variants):
        start = 0.0
        for outcome, colour in OUTCOME_COLOURS.items():
            share = shares.get((arm, q, outcome), math.nan)
            if share > 0:
                name = outcome_name(outcome)
                title = f"{labels[index]}, {name}: {percent(share)}"
                style = Style(colour, 0, "square")
                text = f"{100 * share:.0f}"
                drawn.append(
                    Bar(index, start, start + share, style, name, title, text=text, inside=True)
                )
                start += share
    if not drawn:
        return ()
    x = rates("share of replies under the attack")
    height = 60 + 24 * len(variants)
    return (Panel("what is said instead", x, names(labels), bars=tuple(drawn), height=height),)
