"""How far a narrow fine-tune spreads, along its dose, in models that were cut before or not.

Tables: `curve` {seed, arm, steps, rate, narrow(+), elsewhere(+), coherence(+), utility(+)} and
`changes` {seed, share, chance, enrichment}; (+) stands for the bounds `_low` and `_high`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from resect.records import Row
from resect.report.figures.parts import (
    Arm,
    curve,
    linear,
    log,
    number,
    pooled,
    rates,
    rows_of,
    unique,
    varied_column,
)
from resect.report.figures.spec import (
    Drawing,
    Panel,
    Point,
    Series,
    Settings,
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


def draw(tables: Tables, _settings: Settings) -> list[Drawing]:
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


def _arms(rows: Sequence[Row]) -> list[Arm]:
    """Return every arm; all may have the intact model's first point."""
    arms = unique(row.get("arm", "") for row in rows)
    styles = looks(arms)
    return [
        Arm(
            name_of(arm) or "model",
            styles[arm],
            [row for row in rows if str(row.get("arm", "")) == arm],
        )
        for arm in arms
    ]


def dose_panels(rows: Sequence[Row]) -> tuple[Panel, ...]:
    """Return a panel for each measure that is there, and the plane of narrow and elsewhere."""
    if not rows:
        return ()
    dose = varied_column(rows, ("steps", "rate"))
    panels = []
    for column, title in MEASURES:
        lines = tuple(
            curve(arm.rows, dose, column, arm.name, arm.style, write=plain_number)
            for arm in _arms(rows)
        )
        if any(line.points for line in lines):
            label = "steps of fine-tuning" if dose == "steps" else dose.replace("_", " ")
            x = log(label, [number(row.get(dose)) for row in rows], plain_number)
            panels.append(Panel(title, x, rates(""), series=lines))
    if len(panels) > 1:
        panels.append(_plane(rows, dose))
    return tuple(panels)


def _plane(rows: Sequence[Row], dose: str) -> Panel:
    lines = []
    for arm in _arms(rows):
        points = []
        for row in sorted(arm.rows, key=lambda row: number(row.get(dose))):
            x, y = number(row.get("narrow")), number(row.get("elsewhere"))
            if math.isfinite(x) and math.isfinite(y):
                text = f"{dose} {plain_number(number(row.get(dose)))}: narrow {percent(x)}"
                points.append(Point(x, y, title=f"{arm.name}, {text}, elsewhere {percent(y)}"))
        lines.append(Series(arm.name, arm.style, tuple(points), spread="none"))
    return Panel("elsewhere, by narrow", rates("narrow harm"), rates(""), series=tuple(lines))


def _changes(rows: Sequence[Row]) -> Drawing:
    """Return how far the weights behind harm move, in multiples of chance and of like weights."""
    panels = []
    for column, weights in (("chance", "any weights"), ("matched", "like weights")):
        comparable = [row for row in rows if number(row.get(column)) > 0]
        if comparable:
            panels.append(_moved(comparable, column, weights))
    caption = (
        "How much of the fine-tune's squared change lies on the weights behind harm, over the "
        "share of as many other weights, whichever they are or of the same magnitude: 1 is what "
        "chance gives. The line is the geometric mean of the seeds."
    )
    return Drawing("emergent-changes", caption, tuple(panels))


@dataclass(frozen=True)
class _Moved:
    """A seed at a dose, and its change inside the set as a multiple of that in other weights."""

    row: Row
    ratio: float


def _moved(rows: Sequence[Row], column: str, weights: str) -> Panel:
    by_dose: dict[float, list[_Moved]] = {}
    for row in rows:
        ratio = number(row.get("share")) / number(row[column])
        if ratio > 0:
            by_dose.setdefault(number(row.get("steps")), []).append(_Moved(row, ratio))
    # Rows that do not say their dose stand at 1.
    steps = {dose: 1.0 if math.isnan(dose) else dose for dose in by_dose}
    dots, means = [], []
    for dose, seeds in by_dose.items():
        for moved in seeds:
            text = f"seed {cell(moved.row.get('seed'))}, {cell(moved.row.get('steps'))} steps"
            title = f"{text}: {plain_number(moved.ratio)} ×"
            dots.append(Point(steps[dose], moved.ratio, title=title))
        mean = math.exp(sum(math.log(moved.ratio) for moved in seeds) / len(seeds))
        text = f"mean of {len(seeds)} seeds, {plain_number(steps[dose])} steps"
        means.append(Point(steps[dose], mean, title=f"{text}: {plain_number(mean)} ×"))
    series = (
        Series("one seed", Style(2, 0, "circle"), tuple(dots), False, "none", hollow=True),
        Series("mean of the seeds", Style(1, 0, "circle"), tuple(means), spread="none"),
    )
    y = linear("", [point.y for point in dots], _times, reach=(1.0,))
    return Panel(
        f"change behind harm, × {weights}",
        log("steps of fine-tuning", list(steps.values()), plain_number),
        y,
        series=series,
        rules=(Threshold(1.0, "y", "chance"),),
    )


def _times(value: float) -> str:
    return f"{value:g} ×"
