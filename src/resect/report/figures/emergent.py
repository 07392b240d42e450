"""How far a narrow fine-tune spreads, along its dose, in models that were cut before or not.

Tables: `curve` {seed, arm, steps, rate, narrow(+), elsewhere(+), coherence(+), utility(+)} and
`changes` {seed, share, chance, enrichment}; (+) stands for the bounds `_low` and `_high`.
"""

from __future__ import annotations

import math
from typing import Any

from resect.report.figures.parts import (
    curve,
    linear,
    log,
    number,
    pooled,
    rates,
    rows_of,
    scale_of,
    unique,
)
from resect.report.figures.spec import (
    Drawing,
    Panel,
    Point,
    Row,
    Series,
    Style,
    Tables,
    Threshold,
    looks,
    name_of,
)
from resect.report.words import cell, percent, plain_number

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
    """Return how far the weights behind harm move, in multiples of chance and of like weights."""
    panels = []
    for column, against in (("chance", "any weights"), ("matched", "like weights")):
        known = [row for row in rows if number(row.get(column)) > 0]
        if known:
            panels.append(_moved(known, column, against))
    caption = (
        "How much of the fine-tune's squared change lies on the weights behind harm, over the "
        "share of as many other weights, whichever they are or of the same magnitude: 1 is what "
        "chance gives. The line is the geometric mean of the seeds."
    )
    return Drawing("emergent-changes", caption, tuple(panels))


def _moved(rows: list[Row], column: str, against: str) -> Panel:
    by_dose: dict[float, list[tuple[Row, float]]] = {}
    for row in rows:
        ratio = number(row.get("share")) / row[column]
        if ratio > 0:
            by_dose.setdefault(number(row.get("steps")), []).append((row, ratio))
    # Rows that do not say their dose stand at 1.
    places = {dose: 1.0 if math.isnan(dose) else dose for dose in by_dose}
    dots, means = [], []
    for dose, found in by_dose.items():
        for row, ratio in found:
            said = f"seed {cell(row.get('seed'))}, {cell(row.get('steps'))} steps"
            dots.append(Point(places[dose], ratio, title=f"{said}: {plain_number(ratio)} ×"))
        mean = math.exp(sum(math.log(ratio) for _, ratio in found) / len(found))
        said = f"mean of {len(found)} seeds, {plain_number(places[dose])} steps"
        means.append(Point(places[dose], mean, title=f"{said}: {plain_number(mean)} ×"))
    series = (
        Series("one seed", Style(2, 0, "circle"), tuple(dots), False, "none", hollow=True),
        Series("mean of the seeds", Style(1, 0, "circle"), tuple(means), spread="none"),
    )
    y = linear("", [point.y for point in dots], _times, reach=(1.0,))
    return Panel(
        f"change behind harm, × {against}",
        log("steps of fine-tuning", list(places.values()), plain_number),
        y,
        series=series,
        rules=(Threshold(1.0, "y", "chance"),),
    )


def _times(value: float) -> str:
    return f"{value:g} ×"
