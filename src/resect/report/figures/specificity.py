"""The target cut against every control at an equal cost of utility."""

from __future__ import annotations

from typing import Any

from resect.report.figures._style import (
    COLOURS,
    INK,
    NAMES,
    Drawing,
    Row,
    new_figure,
    number,
    percent_axis,
    pooled,
)


def draw(tables: dict[str, list[Row]], settings: dict[str, Any]) -> list[Drawing]:
    """Return bars at the budget beside the plane of harm and utility."""
    figure, axes = new_figure(9.2, 3.8, columns=2)
    _bars(axes[0], tables["bars"])
    _plane(axes[1], list(pooled(tables["curve"])), settings.get("utility_drop"))
    caption = (
        "Left: largest drop of harm that each arm reaches within the utility budget, with 95 % "
        "intervals. Right: every cut of every arm by what it costs (utility) and does (harm)."
    )
    return [Drawing("specificity-controls", caption, figure)]


def _bars(axis: Any, rows: list[Row]) -> None:
    labels = [NAMES.get(row["arm"], row["arm"]) for row in rows]
    values = [number(row["harm_drop"]) for row in rows]
    errors = [
        [max(0.0, number(r["harm_drop"]) - number(r["harm_drop_low"])) for r in rows],
        [max(0.0, number(r["harm_drop_high"]) - number(r["harm_drop"])) for r in rows],
    ]
    colours = [COLOURS.get(row["arm"], INK) for row in rows]
    axis.barh(labels, values, color=colours, height=0.65)
    axis.errorbar(values, range(len(rows)), xerr=errors, fmt="none", ecolor=INK, capsize=3)
    axis.invert_yaxis()
    axis.set_xlim(min(0.0, *values, 0.0) - 0.02, 1.05)
    percent_axis(axis, "x")
    axis.set_title("drop of harm within the budget", loc="left", fontsize=11, color=INK)


def _plane(axis: Any, rows: list[Row], budget: float | None) -> None:
    for arm in dict.fromkeys(row["arm"] for row in rows if row["arm"] != "intact"):
        own = [row for row in rows if row["arm"] == arm]
        x = [number(row["utility_drop"]) for row in own]
        y = [number(row["harm_drop"]) for row in own]
        label = NAMES.get(arm, arm)
        axis.plot(
            x, y, marker="o", markersize=4, linewidth=1, color=COLOURS.get(arm, INK), label=label
        )
    if budget is not None:
        axis.axvline(budget, color=INK, linewidth=0.8, linestyle=":")
    axis.set_xlabel("relative drop of utility")
    axis.set_title("relative drop of harm", loc="left", fontsize=11, color=INK)
    percent_axis(axis)
    percent_axis(axis, "x")
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), labelcolor=INK)
