"""How much less likely each set becomes along the fraction of weights cut, arm by arm.

Table: `rises` {seed, arm, set, q, removed_fraction, rise(+)}; (+) stands for the bounds `_low` and
`_high`. `chosen`, the chosen cut of each arm with its margin and selectivity, is a table alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from resect.records import Interval, Row
from resect.report.figures.parts import (
    estimate,
    linear,
    log,
    number,
    pooled,
    rows_of,
    unique,
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
from resect.report.words import interval, percent, plain_number, readable

# A destroyed model loses ten nats a token; what is to be compared lies far below.
MOST, LEAST = 2.0, -0.5
HARM = "generation"


def draw(tables: Tables, settings: Settings) -> list[Drawing]:
    """Return a panel for each arm, a line for each set."""
    rows = pooled(rows_of(tables, "rises", texts=("arm", "set"), numbers=("rise", "rise_low")))
    arms = unique(row["arm"] for row in rows)
    panels = tuple(
        _panel([row for row in rows if str(row["arm"]) == arm], arm, settings) for arm in arms
    )
    caption = (
        "Rise of the mean negative log-likelihood of each set over the intact model, in nats a "
        "token, along the fraction of weights cut, with 95 % bands. A selective cut raises harmful "
        f"answers and leaves the other lines at 0. Beyond {MOST:g} nats marks stand at the edge."
    )
    return [Drawing("selectivity-rises", caption, panels)]


def _panel(rows: Sequence[Row], arm: str, settings: Settings) -> Panel:
    sets = sorted(unique(row["set"] for row in rows), key=lambda name: name != HARM)
    styles = looks(["target", *(name for name in sets if name != HARM)])
    lines = tuple(
        _line(
            [row for row in rows if str(row["set"]) == name],
            "harmful answers" if name == HARM else readable(name),
            styles["target" if name == HARM else name],
        )
        for name in sets
    )
    fractions = [number(row.get("removed_fraction")) for row in rows]
    least = number(settings.get("rise"))
    rules = () if math.isnan(least) else (Threshold(least, "y", f"rule: {least:g}"),)
    ys = [number(row.get(key)) for row in rows for key in ("rise", "rise_low", "rise_high")]
    scale = linear(
        "",
        [*ys, *(rule.value for rule in rules)],
        plain_number,
        least=LEAST,
        most=MOST,
    )
    x = log("fraction of prunable weights cut", fractions)
    return Panel(f"{name_of(arm)}: nats a token", x, scale, series=lines, rules=rules)


def _line(rows: Sequence[Row], name: str, style: Style) -> Series:
    """Return the rises of a set as a line with its band."""
    points = []
    for row in sorted(rows, key=lambda row: number(row.get("removed_fraction"))):
        across, up = number(row.get("removed_fraction")), estimate(row, "rise")
        if math.isfinite(across) and math.isfinite(up.value):
            text = interval(Interval("rise (nats)", *up))
            points.append(Point(across, *up, f"{name}, {percent(across)}: {text}"))
    return Series(name, style, tuple(points))
