"""How fast harm comes back when a cut model is fine-tuned on a few harmful examples.

Table: `curve` {seed, arm, examples, steps, harm(+)}; (+) stands for the bounds `_low` and `_high`.
"""

from __future__ import annotations

from typing import Any

from resect.report.figures._parts import (
    curve,
    log,
    number,
    pooled,
    rates,
    rows_of,
    scale_of,
)
from resect.report.figures._spec import Drawing, Panel, Tables, looks, name_of
from resect.report.words import plain_number


def draw(tables: Tables, _settings: dict[str, Any]) -> list[Drawing]:
    """Return harm along the examples (or steps) of relearning, a line an arm."""
    rows = pooled(rows_of(tables, "curve"))
    panels: tuple[Panel, ...] = ()
    if rows:
        dose, write = scale_of(rows, ("examples", "steps"))
        styles = looks(str(row["arm"]) for row in rows)
        lines = tuple(
            curve(
                [row for row in rows if str(row["arm"]) == arm],
                (dose, "harm"),
                (name_of(arm), styles[arm]),
                write=write,
            )
            for arm in styles
        )
        label = "harmful examples trained on" if dose == "examples" else "steps of fine-tuning"
        x = log(label, [number(row.get(dose)) for row in rows], plain_number)
        panels = (Panel("harmful answers", x, rates(""), series=lines),)
    caption = (
        "Share of harmful answers as the cut model is trained on harmful examples again, with 95 % "
        "bands, beside what was never cut and what was cut at random."
    )
    return [Drawing("relearning-curve", caption, panels)]
