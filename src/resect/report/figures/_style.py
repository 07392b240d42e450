"""What all figures share: colours, axes, and SVG that is the same byte for byte each time."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with any colour vision.
COLOURS = {
    "target": "#D55E00",
    "random": "#7F7F7F",
    "magnitude": "#0072B2",
    "opposite": "#56B4E9",
    "next_slice": "#009E73",
    "benign": "#CC79A7",
    "matched": "#E69F00",
    "aligned": "#D55E00",
    "base": "#0072B2",
    "benign_tuned": "#009E73",
}
NAMES = {
    "target": "target cut",
    "random": "random, same size",
    "magnitude": "magnitude-matched",
    "opposite": "opposite sign",
    "next_slice": "next slice",
    "benign": "benign behaviour",
    "matched": "content-matched",
    "benign_tuned": "benign-tuned control",
}
# Mid-grey is readable on white and on black, so one SVG serves both.
INK = "#808080"
SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "resect",
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "legend.frameon": False,
}

Row = dict[str, Any]


@dataclass(frozen=True)
class Drawing:
    """A figure, its name and what it says in words."""

    name: str
    caption: str
    figure: Figure


def new_figure(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Any]]:
    """Return a figure in inches and its axes, side by side."""
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots(1, columns, squeeze=False)[0]
    return figure, list(axes)


def svg(drawing: Drawing) -> str:
    """Return a drawing as an SVG element without XML header, with ids of its own."""
    buffer = io.StringIO()
    with mpl.rc_context(SETTINGS):
        drawing.figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # Several figures stand in one page: without a prefix their clip paths would collide.
    text = re.sub(r'\bid="', f'id="{drawing.name}-', text)
    text = re.sub(r"url\(#", f"url(#{drawing.name}-", text)
    return re.sub(r'xlink:href="#', f'xlink:href="#{drawing.name}-', text)


def number(value: Any) -> float:
    """Return a value for drawing; what is unknown becomes a gap."""
    return math.nan if value is None else float(value)


def pooled(rows: Sequence[Row]) -> Iterator[Row]:
    """Yield the rows over all seeds."""
    return (row for row in rows if row.get("seed") is None)


def line(axis: Any, rows: list[Row], names: tuple[str, str], **style: Any) -> None:
    """Draw a curve with its band.

    Args:
        axis: Where to.
        rows: Points; sorted by the x column.
        names: Columns of x and of y; `y_low` and `y_high` make the band.
        **style: For the line.
    """
    x, y = names
    rows = sorted(rows, key=lambda row: number(row[x]))
    places = [number(row[x]) for row in rows]
    axis.plot(places, [number(row[y]) for row in rows], marker="o", markersize=4, **style)
    low = [number(row.get(f"{y}_low")) for row in rows]
    high = [number(row.get(f"{y}_high")) for row in rows]
    axis.fill_between(places, low, high, color=style.get("color"), alpha=0.18, linewidth=0)


def log_axis(axis: Any) -> None:
    """Make the x axis logarithmic, unless nothing on it is above zero."""
    if axis.dataLim.x1 > 0:
        axis.set_xscale("log")


def percent_axis(axis: Any, which: str = "y") -> None:
    """Label an axis in percent."""
    chosen = axis.yaxis if which == "y" else axis.xaxis
    chosen.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")


def heatmap(axis: Any, values: Any, ticks: tuple[Sequence[str], Sequence[str]], top: float) -> None:
    """Draw a matrix with its numbers in the cells; rows and columns are named by `ticks`."""
    rows, columns = ticks
    axis.imshow(np.ma.masked_invalid(values), cmap="cividis", vmin=0, vmax=top, aspect="auto")
    axis.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
    axis.set_yticks(range(len(rows)), rows)
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
    for at in np.ndindex(values.shape):
        value = values[at]
        shown = "–" if math.isnan(value) else f"{value:.2f}"
        colour = "#000000" if not math.isnan(value) and value > top / 2 else "#FFFFFF"
        axis.text(
            at[1], at[0], shown, ha="center", va="center", fontsize=10,
            color=INK if math.isnan(value) else colour,
        )  # fmt: skip


def matrix(rows: Sequence[Row], names: tuple[str, str, str]) -> tuple[Any, list[str], list[str]]:
    """Return (values [R, C], row names, column names) of a long table."""
    down, across, column = names
    first = list(dict.fromkeys(str(row[down]) for row in rows))
    second = list(dict.fromkeys(str(row[across]) for row in rows))
    values = np.full((len(first), len(second)), math.nan)
    for row in rows:
        values[first.index(str(row[down])), second.index(str(row[across]))] = number(row[column])
    return values, first, second
