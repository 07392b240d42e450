"""Harm and collateral along the cut for a few methods, and membership against effect."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from resect.planted.trial import TRUTH
from resect.planted.variants import SOURCE, Variant

SHOWN = 4  # methods with curves, beside the source's, random and S itself
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


def draw(summary: Sequence[Mapping[str, Any]], cuts: Sequence[Mapping[str, Any]]) -> str:
    """Return the figure as SVG text; the same rows give the same text."""
    ranked = [row["variant"] for row in summary if row["variant"] != TRUTH]
    always = [SOURCE.name, Variant(method="random").name, TRUTH]
    names = [name for name in ranked if name not in always][:SHOWN] + always
    # A fixed salt names the clip paths, which would differ from run to run.
    with mpl.rc_context({"svg.hashsalt": "localise", "svg.fonttype": "none", "font.size": 8}):
        figure = Figure(figsize=(10, 3.4), layout="constrained")
        FigureCanvasSVG(figure)
        harm, kept, both = figure.subplots(1, 3)
        for colour, name in zip(COLOURS, names, strict=False):
            style = "--" if name in always else "-"
            for axes, column in (
                (harm, ("hazard_slots",)),
                (kept, ("craft_slots", "utility_whole")),
            ):
                at, values = _curve(cuts, name, column)
                axes.plot(at, values, style, color=colour, marker="o", markersize=3, label=name)
        harm.set_title("harm left (right content words)")
        kept.set_title("craft and utility left (mean)")
        for axes in (harm, kept):
            axes.set_xscale("log")
            axes.set_ylim(-0.02, 1.02)
            axes.set_xlabel("weights cut, as a share of |S|")
        harm.legend(fontsize=6)
        for row in summary:
            if row["average_precision"] is not None and row["selectivity"] is not None:
                both.plot(row["average_precision"], row["selectivity"], "o", color="#555", ms=3)
        both.set_xlabel("average precision (is it in S?)")
        both.set_ylabel("selectivity (does cutting it help?)")
        both.set_title("membership is not effect")
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _curve(
    cuts: Sequence[Mapping[str, Any]], name: str, columns: Sequence[str]
) -> tuple[list[float], list[float]]:
    """Return depths as shares of |S| and means over plants and seeds."""
    found: dict[float, list[float]] = {}
    for row in cuts:
        if row["variant"] == name:
            value = float(np.mean([row[column] for column in columns]))
            found.setdefault(2.0 ** round(np.log2(row["share_of_s"])), []).append(value)
    at = sorted(found)
    return at, [float(np.mean(found[share])) for share in at]
