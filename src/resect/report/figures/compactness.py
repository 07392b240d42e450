"""Harm and utility along the fraction of weights cut, and what the cut model says instead."""

from __future__ import annotations

from typing import Any

from resect.records import OUTCOMES
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

OUTCOME_COLOURS = dict(
    zip(OUTCOMES, ("#D55E00", "#0072B2", "#56B4E9", "#E69F00", "#009E73", "#7F7F7F"), strict=True)
)


def draw(tables: dict[str, list[Row]], settings: dict[str, Any]) -> list[Drawing]:
    """Return the curve and the outcomes."""
    return [_curve(tables["curve"], settings), _outcomes(tables["outcomes"])]


def _curve(rows: list[Row], settings: dict[str, Any]) -> Drawing:
    figure, axes = new_figure(8.4, 3.5, columns=2)
    found = [row for row in pooled(rows) if row["arm"] != "intact"]
    titles = (("harm_drop", "relative drop of harm"), ("utility_drop", "relative drop of utility"))
    for axis, (column, title) in zip(axes, titles, strict=True):
        for arm in dict.fromkeys(row["arm"] for row in found):
            own = [row for row in found if row["arm"] == arm]
            colour = COLOURS.get(arm, INK)
            style = {"color": colour, "label": NAMES.get(arm, arm), "linewidth": 1.6}
            line(axis, own, ("removed_fraction", column), **style)
        bound = settings.get(column)
        if bound is not None:
            axis.axhline(bound, color=INK, linewidth=0.8, linestyle=":")
            axis.annotate(
                f"rule: {100 * bound:g} %", (0.02, bound), xycoords=("axes fraction", "data"),
                va="bottom", fontsize=9, color=INK,
            )  # fmt: skip
        log_axis(axis)
        axis.set_xlabel("fraction of prunable weights cut")
        axis.set_title(title, loc="left", fontsize=11, color=INK)
        percent_axis(axis)
        percent_axis(axis, "x")
    axes[0].set_ylim(-0.1, 1.08)
    axes[1].legend(fontsize=9, loc="upper left", labelcolor=INK)
    caption = (
        "Relative drop of harmful answers (left) and of utility (right) along the fraction of "
        "weights cut, with 95 % bands; dotted lines are the thresholds of the rule."
    )
    return Drawing("compactness-curve", caption, figure)


def _outcomes(rows: list[Row]) -> Drawing:
    figure, axes = new_figure(8.4, 3.0)
    axis = axes[0]
    cuts = sorted({row["q"] for row in rows if row["arm"] == "target"})
    bars = [("intact", 0.0), *(("target", q) for q in cuts)]
    labels = ["intact", *(f"q = {100 * q:g} %" for q in cuts)]
    left = [0.0] * len(bars)
    for outcome in OUTCOMES:
        shares = [
            sum(
                number(r["share"])
                for r in rows
                if (r["arm"], r["q"], r["outcome"]) == (*bar, outcome)
            )
            for bar in bars
        ]
        name = outcome.replace("_", " ")
        axis.barh(labels, shares, left=left, color=OUTCOME_COLOURS[outcome], label=name, height=0.7)
        left = [a + b for a, b in zip(left, shares, strict=True)]
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    percent_axis(axis, "x")
    axis.set_xlabel("share of replies under the attack")
    axis.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.01, 0.5), labelcolor=INK)
    caption = (
        "What the model says under the attack, intact and after the target cut: broken text is "
        "told apart from refusals and from wrong or benign answers."
    )
    return Drawing("compactness-outcomes", caption, figure)
