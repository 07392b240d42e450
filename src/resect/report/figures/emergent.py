"""How far a narrow fine-tune spreads, along its dose, in models that were cut before or not.

Tables: `curve` {seed, arm, steps, rate, narrow(+), elsewhere(+), coherence(+), utility(+)} and
`changes` {seed, share, chance, enrichment}; (+) stands for the bounds `_low` and `_high`.
"""

from __future__ import annotations

import math
from typing import Any

from resect.report.figures._parts import (
    curve,
    linear,
    log,
    names,
    number,
    pooled,
    rates,
    rows_of,
    scale_of,
    unique,
)
from resect.report.figures._spec import (
    Drawing,
    Panel,
    Point,
    Row,
    Series,
    Style,
    Tables,
    looks,
    name_of,
)
from resect.report.words import percent, plain_number

MEASURES = (
    ("narrow", "the trained, narrow harm"),
    ("elsewhere", "harm elsewhere"),
    ("coherence", "coherent replies"),
    ("utility", "utility"),
)


def draw(tables: Tables, _settings: dict[str, Any]) -> list[Drawing]:
    """Return the dose curves and where the fine-tune changed weights."""
    panels = dose_panels(pooled(rows_of(tables, "curve")))
    drawings = [
        Drawing(
            "emergent-dose",
            "Rates along the dose of the narrow fine-tune, with 95 % bands: the narrow harm that "
            "was trained beside harm elsewhere, which nobody trained; coherence and utility say "
            "whether the model is still whole. The last panel sets the first two against each "
            "other: low and to the right is narrow harm that does not spread.",
            panels,
        )
    ]
    if changes := rows_of(tables, "changes"):
        drawings.append(_changes(changes))
    return drawings


def _arms(rows: list[Row]) -> list[tuple[str, Style, list[Row]]]:
    """Return (name, style, rows) of every arm; all may have the intact model's first point."""
    found = unique(row.get("arm", "") for row in rows)
    styles = looks(found)
    return [
        (
            name_of(arm) or "model",
            styles[arm],
            [row for row in rows if str(row.get("arm", "")) == arm],
        )
        for arm in found
    ]


def dose_panels(rows: list[Row]) -> tuple[Panel, ...]:
    """Return a panel for each measure that is there, and the plane of narrow and elsewhere."""
    if not rows:
        return ()
    dose, write = scale_of(rows, ("steps", "rate"))
    panels = []
    for column, title in MEASURES:
        lines = tuple(
            curve(own, (dose, column), (name, look), write=write) for name, look, own in _arms(rows)
        )
        if any(line.points for line in lines):
            label = "steps of fine-tuning" if dose == "steps" else dose.replace("_", " ")
            x = log(label, [number(row.get(dose)) for row in rows], plain_number)
            panels.append(Panel(title, x, rates(""), series=lines))
    if len(panels) > 1:
        panels.append(_plane(rows, dose))
    return tuple(panels)


def _plane(rows: list[Row], dose: str) -> Panel:
    lines = []
    for name, look, own in _arms(rows):
        points = []
        for row in sorted(own, key=lambda row: number(row.get(dose))):
            x, y = number(row.get("narrow")), number(row.get("elsewhere"))
            if math.isfinite(x) and math.isfinite(y):
                said = f"{dose} {plain_number(row.get(dose))}: narrow {percent(x)}"
                points.append(Point(x, y, title=f"{name}, {said}, elsewhere {percent(y)}"))
        lines.append(Series(name, look, tuple(points), spread="none"))
    return Panel("elsewhere, by narrow", rates("narrow harm"), rates(""), series=tuple(lines))


def _changes(rows: list[Row]) -> Drawing:
    labels = [f"seed {row['seed']}" if row.get("seed") is not None else "all seeds" for row in rows]
    found, chance = [], []
    for at, row in enumerate(rows):
        share, luck = number(row.get("share")), number(row.get("chance"))
        if math.isfinite(share):
            title = (
                f"{labels[at]}: {percent(share)}, {plain_number(row.get('enrichment'))} × chance"
            )
            found.append(Point(share, at, title=title))
        if math.isfinite(luck):
            chance.append(Point(luck, at, title=f"{labels[at]}, chance: {percent(luck)}"))
    series = (
        Series("share of the change", Style(1, 0, "circle"), tuple(found), False, "none", "x"),
        Series("chance", Style(2, 1, "up"), tuple(chance), False, "none", "x", hollow=True),
    )
    xs = [point.x for one in series for point in one.points]
    return Drawing(
        "emergent-changes",
        "How much of the fine-tune's change lies on the weights behind harm, against the share "
        "that chance would put there.",
        (
            Panel(
                "change on the weights behind harm",
                linear("share of the squared change of weights", xs),
                names(labels),
                series=series,
                height=62 + 24 * len(rows),
            ),
        ),
    )
