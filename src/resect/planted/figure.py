"""Harm and collateral along the cut for a few methods, and membership against effect."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from resect.planted.trial import TRUTH, Row, number
from resect.planted.variants import SOURCE, Variant

SHOWN = 4  # methods with curves, beside the source's, random and S itself
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


def draw(summary: Sequence[Row], cuts: Sequence[Row]) -> str:
    """Return the figure as SVG text; the same rows give the same text."""
    ranked = [str(row["variant"]) for row in summary if row["variant"] != TRUTH]
    always = [SOURCE.name, Variant(method="random").name, TRUTH]
    names = [name for name in ranked if name not in always][:SHOWN] + always
    # A fixed salt names the clip paths, which would differ from run to run.
    with mpl.rc_context({"svg.hashsalt": "localise", "svg.fonttype": "none", "font.size": 8}):
        figure = Figure(figsize=(10, 3.4), layout="constrained")
        FigureCanvasSVG(figure)
        harm, spared, relation = figure.subplots(1, 3)
        for colour, name in zip(COLOURS, names, strict=False):
            style = "--" if name in always else "-"
            for axes, column in (
                (harm, ("hazard_slots",)),
                (spared, ("craft_slots", "utility_whole")),
            ):
                curve = _curve(cuts, name, column)
                axes.plot(
                    list(curve),
                    list(curve.values()),
                    style,
                    color=colour,
                    marker="o",
                    markersize=3,
                    label=name,
                )
        harm.set_title("harm left (right content words)")
        spared.set_title("craft and utility left (mean)")
        for axes in (harm, spared):
            axes.set_xscale("log")
            axes.set_ylim(-0.02, 1.02)
            axes.set_xlabel("weights cut, as a share of |S|")
        harm.legend(fontsize=6)
        for row in summary:
            if row["average_precision"] is not None and row["selectivity"] is not None:
                relation.plot(row["average_precision"], row["selectivity"], "o", color="#555", ms=3)
        relation.set_xlabel("average precision (is it in S?)")
        relation.set_ylabel("selectivity (does cutting it help?)")
        relation.set_title("membership is not effect")
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _curve(cuts: Sequence[Row], name: str, columns: Sequence[str]) -> dict[float, float]:
    """Return for sizes of cuts, as shares of |S|, the mean over plants and seeds."""
    by_size: dict[float, list[float]] = {}
    for row in cuts:
        share = number(row, "share_of_s")
        values = [value for column in columns if (value := number(row, column)) is not None]
        if row["variant"] == name and share:
            by_size.setdefault(2.0 ** round(np.log2(share)), []).append(float(np.mean(values)))
    return {share: float(np.mean(by_size[share])) for share in sorted(by_size)}
