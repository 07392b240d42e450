"""The target cut against every control at an equal cost of utility.

Tables: `bars` {arm, harm_drop(+)}: each arm's best cut within the budget; `equal_utility` {arm,
harm_drop(+)}: each arm's drop at the same utility, where the study gives it; `curve` {seed, arm, q,
harm_drop, utility_drop}. (+) stands for the bounds `_low` and `_high`. `permuted`, the drops of
swapped labels, is a table alone.
"""

from __future__ import annotations

from resect.records import Row
from resect.report.figures.parts import arms_of, bars, plane, plane_panel, pooled, rows_of
from resect.report.figures.spec import Drawing, Settings, Tables, name_of


def draw(tables: Tables, settings: Settings) -> list[Drawing]:
    """Return the bars beside the plane of harm and utility."""
    panels = []
    for table, title in (
        ("bars", "drop of harm within the utility budget"),
        ("equal_utility", "drop of harm at equal utility"),
    ):
        if rows := rows_of(tables, table, texts=("arm",)):
            panels.append(bars(rows, "harm_drop", _label, title))
    if rows := pooled(rows_of(tables, "curve", texts=("arm",))):
        lines = [plane(arm.rows, arm.name, arm.style) for arm in arms_of(rows)]
        title = "every cut: drop of harm by its cost"
        panels.append(plane_panel(lines, settings.get("utility_drop"), title))
    caption = (
        "Bars: drop of harm that each arm reaches within the utility budget, with 95 % intervals. "
        "Curves: every cut of every arm by what it costs (utility) and does (harm); up and to the "
        "left is specific."
    )
    if any(": " in str(row["arm"]) for row in rows_of(tables, "bars")):
        caption += (
            " “benign: …” are weights behind a benign behaviour, “same prompts: …” those behind "
            "other answers to the same prompts."
        )
    return [Drawing("specificity-controls", caption, tuple(panels))]


def _label(row: Row) -> str:
    return name_of(str(row["arm"]))
