"""Base, aligned and control model under the same cuts."""

from __future__ import annotations

from typing import Any

from resect.report.figures._style import (
    COLOURS,
    INK,
    NAMES,
    Drawing,
    Row,
    line,
    log_axis,
    new_figure,
    number,
    percent_axis,
    pooled,
)


def draw(tables: dict[str, list[Row]], settings: dict[str, Any]) -> list[Drawing]:
    """Return the curves along the fraction beside the plane of harm and utility."""
    figure, axes = new_figure(9.2, 3.7, columns=2)
    rows = [row for row in pooled(tables["curve"]) if row["arm"] != "intact"]
    for model in dict.fromkeys(row["model"] for row in rows):
        colour = COLOURS.get(model, INK)
        name = NAMES.get(model, model)
        for arm, dashes in (("target", "-"), ("random", "--")):
            own = [row for row in rows if (row["model"], row["arm"]) == (model, arm)]
            label = name if arm == "target" else f"{name}, random"
            style = {"color": colour, "linestyle": dashes, "linewidth": 1.5, "label": label}
            line(axes[0], own, ("removed_fraction", "harm_drop"), **style)
        own = [row for row in rows if (row["model"], row["arm"]) == (model, "target")]
        x = [number(row["utility_drop"]) for row in own]
        y = [number(row["harm_drop"]) for row in own]
        axes[1].plot(x, y, marker="o", markersize=4, linewidth=1.2, color=colour, label=name)
    log_axis(axes[0])
    axes[0].set_xlabel("fraction of prunable weights cut")
    axes[0].set_title("relative drop of harm", loc="left", fontsize=11, color=INK)
    axes[0].legend(fontsize=8, loc="upper left", labelcolor=INK)
    axes[0].set_ylim(-0.1, 1.45)
    axes[0].set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes[1].set_xlabel("relative drop of utility")
    axes[1].set_title("drop of harm by its cost", loc="left", fontsize=11, color=INK)
    budget = settings.get("utility_drop")
    if budget is not None:
        axes[1].axvline(budget, color=INK, linewidth=0.8, linestyle=":")
    for axis in axes:
        percent_axis(axis)
        percent_axis(axis, "x")
    caption = (
        "Left: drop of harm along the fraction cut for each model, solid for the target cut, "
        "dashed for random cuts of the same size. Right: the same target cuts by their cost."
    )
    return [Drawing("compression-curves", caption, figure)]
