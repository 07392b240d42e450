"""How fast harm comes back when a cut model is fine-tuned on a few harmful examples.

Table: `curve` {seed, arm, examples, steps, harm(+), utility(+)}; (+) stands for the bounds `_low`
and `_high`. A dose is a number of steps on a number of examples: one panel follows the steps at the
most examples, another the examples at the most steps.
"""

from __future__ import annotations

from collections.abc import Sequence

from resect.records import Row
from resect.report.figures.parts import curve, log, number, pooled, rates, rows_of, unique
from resect.report.figures.spec import Drawing, Panel, Settings, Tables, looks, name_of
from resect.report.words import plain_number

DOSES = {"steps": "steps of fine-tuning", "examples": "harmful examples trained on"}


def draw(tables: Tables, _settings: Settings) -> list[Drawing]:
    """Return harm along the steps and along the examples of relearning, and utility beside it."""
    rows = pooled(rows_of(tables, "curve", texts=("arm",), numbers=("steps", "examples")))
    panels = [
        panel
        for dose, measure in (("steps", "harm"), ("examples", "harm"), ("steps", "utility"))
        if (panel := _panel(rows, dose, measure)) is not None
    ]
    caption = (
        "Harm, and utility, as the cut model is trained on harmful examples "
        "again, with 95 % bands, beside what was never cut and what was cut at random."
    )
    return [Drawing("relearning-curve", caption, tuple(panels))]


def _panel(rows: Sequence[Row], dose: str, measure: str) -> Panel | None:
    """Return a measure along one part of the dose, the other at its largest; None without doses."""
    fixed = "examples" if dose == "steps" else "steps"
    largest = max((number(row[fixed]) for row in rows if row.get(fixed) is not None), default=None)
    along = [row for row in rows if row.get(fixed) is None or number(row[fixed]) == largest]
    doses = [number(row.get(dose)) for row in along if row.get(dose) is not None]
    if len(set(doses)) < 2 or all(row.get(measure) is None for row in along):
        return None
    arms = unique(row["arm"] for row in along)
    styles = looks(arms)
    lines = [
        curve(
            [row for row in along if str(row["arm"]) == arm],
            dose,
            measure,
            name_of(arm),
            styles[arm],
            write=plain_number,
        )
        for arm in arms
    ]
    # An arm with a single dose says nothing about the dose.
    lines = [line for line in lines if len(line.points) > 1]
    setting = "" if largest is None else f" ({plain_number(largest)} {fixed})"
    title = measure + setting
    x = log(DOSES[dose], doses, plain_number)
    return Panel(title, x, rates(""), series=tuple(lines))
