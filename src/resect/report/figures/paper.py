"""Drawings for papers: SVG and PDF files by matplotlib, with fonts that LaTeX likes.

PDF embeds TrueType outlines (font type 42), which journals accept and LaTeX includes; SVG keeps
text as text. Both are the same byte for byte each time.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from resect import files
from resect.report.figures.screen import WIDTH, Frame
from resect.report.figures.spec import (
    COLOURS,
    DASHES,
    Bar,
    Drawing,
    KeyEntry,
    Panel,
    Scale,
    Series,
    Style,
    Tile,
    Violin,
)
from resect.report.words import label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

INK = COLOURS[0].light
SETTINGS = {
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "resect",
    "font.family": "sans-serif",
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.titleweight": "bold",
    "axes.labelpad": 2,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "figure.facecolor": "white",
}
# By kind of file; without a date, files are the same each time.
METADATA = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
MARKERS = {
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "up": "^",
    "down": "v",
    "plus": "P",
    "cross": "X",
    "star": "*",
}
COLUMN_INCHES = 3.3
SCALE = COLUMN_INCHES / WIDTH
KEY_LINE = 20
# Pixels around a panel: this font is wider than the page's.
ROOM = 14


# Bytes by kind of file of what this process has drawn, the oldest drawing first.
DRAWN: dict[Drawing, dict[str, bytes]] = {}
MOST_DRAWN = 128


def write_figures(drawings: list[Drawing], folder: Path) -> None:
    """Write `NAME.svg` and `NAME.pdf` of every drawing; the same one is drawn once a process."""
    # Half a second to import, and needed for the files alone.
    import matplotlib as mpl

    for drawing in drawings:
        if drawing in DRAWN:
            for kind, content in DRAWN[drawing].items():
                files.write_pieces(folder / f"{drawing.name}.{kind}", [content])
            continue
        contents: dict[str, bytes] = {}
        # A context for each figure: settings hold from its making to its writing.
        with mpl.rc_context(SETTINGS):
            figure = figure_of(drawing)
            for kind, metadata in METADATA.items():
                with files.atomic(folder / f"{drawing.name}.{kind}") as draft:
                    figure.savefig(draft, format=kind, metadata=metadata)
                    contents[kind] = draft.read_bytes()
        DRAWN[drawing] = contents
        if len(DRAWN) > MOST_DRAWN:
            del DRAWN[next(iter(DRAWN))]


def figure_of(drawing: Drawing) -> Figure:
    """Return a drawing as a matplotlib figure: its panels in rows of two, its key below.

    The page's `Frame` says where the plots lie: an automatic layout takes seconds for a large
    figure.
    """
    from matplotlib.figure import Figure

    columns = min(2, len(drawing.panels))
    starts = range(0, len(drawing.panels), columns)
    lines = [drawing.panels[start : start + columns] for start in starts]
    heights = [max(panel.height for panel in line) + ROOM for line in lines]
    key_columns = 2 * columns
    key = drawing.key if len(drawing.key) > 1 else ()
    below = KEY_LINE * math.ceil(len(key) / key_columns) + 6 * bool(key)
    width, height = (WIDTH + ROOM) * columns, sum(heights) + below
    figure = Figure(figsize=(width * SCALE, height * SCALE))
    top = 0
    for line, tall in zip(lines, heights, strict=True):
        for column, panel in enumerate(line):
            frame = Frame(panel)
            left = column * (WIDTH + ROOM) + ROOM + frame.left
            corner = (left / width, 1 - (top + frame.bottom) / height)
            size = ((frame.right - frame.left) / width, (frame.bottom - frame.top) / height)
            _draw(figure.add_axes((*corner, *size)), panel)
        top += tall
    if key:
        handles = [_handle(entry) for entry in key]
        names = [_plain(entry.name) for entry in key]
        figure.legend(handles, names, loc="lower center", ncols=min(key_columns, len(names)))
    return figure


def _plain(text: str) -> str:
    # A dollar would start a formula. Folded names have two lines.
    return "\n".join(label(line) for line in text.split("\n")[:2]).replace("$", r"\$")


def _colour(style: Style) -> str:
    return COLOURS[style.colour].light


def _dashes(style: Style) -> str | tuple[int, tuple[int, ...]]:
    """Return what matplotlib takes for a line: a word, or an offset with lengths in points."""
    pattern = DASHES[style.dash]
    return (0, pattern) if pattern else "-"


def _handle(entry: KeyEntry) -> Patch | Line2D:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    colour = _colour(entry.style)
    if entry.kind == "bar":
        return Patch(facecolor=colour)
    if entry.kind == "thin":
        return Line2D([], [], color=colour, linewidth=0.6)
    return Line2D(
        [],
        [],
        color=colour,
        linestyle=_dashes(entry.style) if entry.kind == "line" else "none",
        marker=MARKERS[entry.style.marker],
        markerfacecolor="white" if entry.kind == "ring" else colour,
    )


def _clamp(scale: Scale, value: float) -> float:
    low, high = min(scale.low, scale.high), max(scale.low, scale.high)
    if scale.floor is not None:
        low = scale.floor
    return min(high, max(low, value))


def _draw(axis: Axes, panel: Panel) -> None:
    x, y = panel.x, panel.y
    for scale, name in ((x, "x"), (y, "y")):
        if scale.log:
            axis.set(**{f"{name}scale": "log"})
        axis.set(**{f"{name}lim": (scale.low, scale.high)})
        ticks = axis.set_xticks if name == "x" else axis.set_yticks
        ticks([tick.value for tick in scale.ticks], [_plain(tick.text) for tick in scale.ticks])
        ticks([], minor=True)
    axis.set_xlabel(_plain(x.label))
    # As on the page: what is on the y axis stands over it and not along it.
    over = "\n".join(_plain(text) for text in (panel.title, y.label) if text)
    axis.set_title(over, loc="left")
    if x.slanted:
        axis.tick_params(axis="x", rotation=38)
        for tick in axis.get_xticklabels():
            tick.set(ha="right", rotation_mode="anchor")
    for cell in panel.cells:
        _cell(axis, cell)
    for bar in panel.bars:
        start, stop = _clamp(x, bar.start), _clamp(x, bar.stop)
        axis.barh(bar.y, stop - start, bar.thickness, start, color=_colour(bar.style))
        if bar.low is not None and bar.high is not None:
            axis.hlines(bar.y, _clamp(x, bar.low), _clamp(x, bar.high), INK, linewidth=1)
        _bar_text(axis, bar, x)
    for rule in panel.rules:
        line = axis.axhline if rule.along == "y" else axis.axvline
        line(rule.value, color=INK, linewidth=0.6, linestyle=":")
        corner = (0.01, rule.value) if rule.along == "y" else (rule.value, 0.02)
        units = ("axes fraction", "data") if rule.along == "y" else ("data", "axes fraction")
        axis.annotate(
            f" {_plain(rule.text)}", corner, xycoords=units, va="bottom", ha="left", fontsize=7
        )
    for violin in panel.violins:
        _violin(axis, violin)
    for series in panel.series:
        _series(axis, series, panel)
    if panel.cells:
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)


def _bar_text(axis: Axes, bar: Bar, scale: Scale) -> None:
    if bar.inside:
        if abs(bar.stop - bar.start) > 0.06 * abs(scale.high - scale.low):
            middle = (bar.start + bar.stop) / 2
            axis.text(middle, bar.y, bar.text, ha="center", va="center", color="white", fontsize=6)
    elif bar.text:
        last = _clamp(scale, max(bar.stop, bar.high if bar.high is not None else bar.stop))
        axis.text(last, bar.y, f" {bar.text}", va="center", fontsize=7)


def _violin(axis: Axes, violin: Violin) -> None:
    colour = _colour(violin.style)
    xs = [edge.value for edge in violin.outline]
    upper, lower = ([violin.y + side * edge.half for edge in violin.outline] for side in (-1, 1))
    axis.fill_between(xs, lower, upper, facecolor=colour, alpha=0.16, linewidth=0)
    for edge in (lower, upper):
        axis.plot(xs, edge, color=colour, linewidth=0.6)
    axis.vlines(violin.median, violin.y - 0.4, violin.y + 0.4, colour, linewidth=1)


def _cell(axis: Axes, cell: Tile) -> None:
    from matplotlib.patches import Rectangle

    colour = COLOURS[3 if (cell.shade or 0) < 0 else 1].light
    shade = 0.0 if cell.shade is None else 0.04 + 0.56 * abs(cell.shade)
    corner = (cell.column - 0.49, cell.row - 0.49)
    axis.add_patch(Rectangle(corner, 0.98, 0.98, color=colour, alpha=shade, linewidth=0))
    axis.text(cell.column, cell.row, _plain(cell.text), ha="center", va="center", fontsize=7)


def _series(axis: Axes, series: Series, panel: Panel) -> None:
    colour = _colour(series.style)
    xs = [_clamp(panel.x, point.x) for point in series.points]
    ys = [_clamp(panel.y, point.y) for point in series.points]
    bounded = [p for p in series.points if p.low is not None and p.high is not None]
    scale = panel.x if series.along == "x" else panel.y
    low = [_clamp(scale, p.low or 0.0) for p in bounded]
    high = [_clamp(scale, p.high or 0.0) for p in bounded]
    # Where the bounds stand on the axis that they do not run along.
    stands = [
        _clamp(panel.x, p.x) if series.along == "y" else _clamp(panel.y, p.y) for p in bounded
    ]
    if series.spread == "band" and len(bounded) > 1:
        axis.fill_between(stands, low, high, color=colour, alpha=0.16, linewidth=0)
    elif series.spread in ("band", "whisker"):
        draw = axis.hlines if series.along == "x" else axis.vlines
        draw(stands, low, high, colour, linewidth=1)
    if series.faint:
        axis.plot(xs, ys, color=colour, linewidth=0.6)
        return
    axis.plot(
        xs,
        ys,
        color=colour,
        linestyle=_dashes(series.style) if series.joined else "none",
        marker=MARKERS[series.style.marker],
        markerfacecolor="white" if series.hollow else colour,
    )
