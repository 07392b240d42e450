"""Drawings for the page: small SVG in the page's own colours, with a tooltip on every mark.

Colours are classes (`c0` to `c7`) whose values the style sheet sets for light and for dark. Nothing
here comes from a font's measures: letters are taken to be `LETTER` pixels wide, so texts get room
enough with any font.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from html import escape
from typing import Literal, NamedTuple

from resect.errors import visible
from resect.records import Claim, Interval
from resect.report.figures.spec import (
    DASHES,
    Bar,
    Drawing,
    Panel,
    Point,
    Scale,
    Series,
    Style,
    Tile,
    Violin,
)
from resect.report.words import interval, is_fraction, label

WIDTH = 380
LETTER = 6.3
TITLE_LINE = 15
SIZE = 3.4
# What a marker is drawn from: a `use` of these is half as long as the shape itself.
SHAPES = {
    "circle": f"M-{SIZE} 0a{SIZE} {SIZE} 0 1 0 {2 * SIZE} 0a{SIZE} {SIZE} 0 1 0-{2 * SIZE} 0z",
    "square": "M-3-3h6v6h-6z",
    "diamond": "M0-4.2l4.2 4.2-4.2 4.2-4.2-4.2z",
    "up": "M0-4l4 7h-8z",
    "down": "M0 4l4-7h-8z",
    "plus": "M-4-1.1h2.9v-2.9h2.2v2.9h2.9v2.2h-2.9v2.9h-2.2v-2.9h-2.9z",
    "cross": "M-2.8-4l2.8 2.8 2.8-2.8 1.2 1.2-2.8 2.8 2.8 2.8-1.2 1.2-2.8-2.8-2.8 2.8-1.2-1.2"
    " 2.8-2.8-2.8-2.8z",
    "star": "M0-5.4l1.5 3.5 3.8 .3-2.9 2.5 .9 3.7-3.3-2-3.3 2 .9-3.7-2.9-2.5 3.8-.3z",
}


class Frame:
    """Where a panel's values lie in its picture, in pixels from its upper left corner."""

    def __init__(self, panel: Panel):
        """Leave room for the texts around the plot."""
        lines = [line for tick in panel.y.ticks for line in tick.text.split("\n")]
        longest = max(map(len, lines), default=0)
        self.left = min(170.0, 12 + LETTER * longest)
        self.right = WIDTH - (48.0 if any(b.text and not b.inside for b in panel.bars) else 14.0)
        self.top = (38.0 if panel.y.label else 26.0) + TITLE_LINE * panel.title.count("\n")
        letters = max((len(tick.text) for tick in panel.x.ticks), default=0)
        below = 12 + 0.62 * LETTER * letters if panel.x.slanted else 18
        room = panel.height - below - (16 if panel.x.label else 2)
        # Names of any length leave something of the plot.
        self.bottom = max(room, self.top + 24)
        self.scales = {"x": panel.x, "y": panel.y}

    def x(self, value: float) -> float:
        """Return the pixel of a value on the x axis; beyond the scale is its edge."""
        return self.left + _share(self.scales["x"], value) * (self.right - self.left)

    def y(self, value: float) -> float:
        """Return the pixel of a value on the y axis; beyond the scale is its edge."""
        return self.bottom - _share(self.scales["y"], value) * (self.bottom - self.top)


def _share(scale: Scale, value: float) -> float:
    low, high = scale.low, scale.high
    if scale.log:
        least = low if scale.floor is None else scale.floor
        low, high, value = (math.log10(edge) for edge in (low, high, max(value, least)))
    return min(1.0, max(0.0, (value - low) / (high - low)))


def brief(value: float) -> str:
    """Return a length with one decimal at most, as short as SVG allows."""
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def _text(x: float, y: float, text: str, anchor: str = "", extra: str = "") -> str:
    style = f' class="{anchor}"' if anchor else ""
    return f'<text x="{brief(x)}" y="{brief(y)}"{style}{extra}>{escape(label(text))}</text>'


def _title(text: str) -> str:
    return f"<title>{escape(visible(text))}</title>" if text else ""


def shapes_svg() -> str:
    """Return the shapes of all markers, once a page, for `marker` to use."""
    shapes = "".join(f'<path id="{_id(name)}" d="{shape}"/>' for name, shape in SHAPES.items())
    return f'<svg width="0" height="0" class="defs" aria-hidden="true"><defs>{shapes}</defs></svg>'


def _id(marker_name: str) -> str:
    return f"m{list(SHAPES).index(marker_name)}"


def marker(style: Style, x: float, y: float, *, title: str = "", hollow: bool = False) -> str:
    """Return one marker."""
    outlined = ' class="h"' if hollow else ""
    head = f'<use href="#{_id(style.marker)}" x="{brief(x)}" y="{brief(y)}"{outlined}'
    return f"{head}>{_title(title)}</use>" if title else f"{head}/>"


class Pixel(NamedTuple):
    """A point of a picture."""

    x: float
    y: float


def _path(points: Iterable[Pixel]) -> str:
    """Return a line as its start and steps, which are shorter to write than points.

    Steps are between rounded points, so that their errors do not add up.
    """
    text, last = "", Pixel(0.0, 0.0)
    for index, point in enumerate(points):
        x, y = round(point.x, 1), round(point.y, 1)
        across, down = brief(x - last.x), brief(y - last.y)
        gap = "" if down.startswith("-") else " "
        text += f"{'l' if index else 'M'}{across}{gap}{down}"
        last = Pixel(x, y)
    return text


def bare(markup: str) -> str:
    """Return markup without the quotes around values that HTML reads without them."""
    return re.sub(r'="([\w.#-]+)"(?=[ >])', r"=\1", markup)


def _dash(style: Style) -> str:
    pattern = DASHES[style.dash]
    return f' stroke-dasharray="{" ".join(map(str, pattern))}"' if pattern else ""


def _series(series: Series, frame: Frame) -> str:
    pixels = [Pixel(frame.x(point.x), frame.y(point.y)) for point in series.points]
    # The name stands once: the page's script puts it before the tooltips.
    named = f' data-n="{escape(visible(series.name), quote=True)}"' if series.name else ""
    if series.faint:
        return f'<path class="f c{series.style.colour}" d="{_path(pixels)}"/>'
    parts = [f'<g class="c{series.style.colour}"{named}>']
    bounded = [p for p in series.points if p.low is not None and p.high is not None]
    if series.spread == "band" and len(bounded) > 1:
        upper = [Pixel(frame.x(p.x), frame.y(p.high or 0.0)) for p in bounded]
        lower = [Pixel(frame.x(p.x), frame.y(p.low or 0.0)) for p in reversed(bounded)]
        parts.append(f'<path class="b" d="{_path(upper + lower)}Z"/>')
    elif series.spread in ("band", "whisker"):
        parts += [
            f'<path class="w" d="{_whisker(point, series.along, frame)}"/>' for point in bounded
        ]
    if series.joined and len(pixels) > 1:
        parts.append(f'<path class="l" d="{_path(pixels)}"{_dash(series.style)}/>')
    titled = [point.title.removeprefix(f"{series.name}, ") for point in series.points]
    parts += [
        marker(series.style, pixel.x, pixel.y, title=title, hollow=series.hollow)
        for pixel, title in zip(pixels, titled, strict=True)
    ]
    return "".join(parts) + "</g>"


def _whisker(point: Point, along: Literal["x", "y"], frame: Frame) -> str:
    low, high = point.low or 0.0, point.high or 0.0
    if along == "x":
        return f"M{brief(frame.x(low))} {brief(frame.y(point.y))}H{brief(frame.x(high))}"
    return f"M{brief(frame.x(point.x))} {brief(frame.y(low))}V{brief(frame.y(high))}"


def _violin(violin: Violin, frame: Frame) -> str:
    y = violin.y
    upper = [Pixel(frame.x(x), frame.y(y - half)) for x, half in violin.outline]
    lower = [Pixel(frame.x(x), frame.y(y + half)) for x, half in reversed(violin.outline)]
    x, top, bottom = (frame.x(violin.median), frame.y(y - 0.4), frame.y(y + 0.4))
    middle = f'<path class="w" d="M{brief(x)} {brief(top)}V{brief(bottom)}"/>'
    shape = f'<path class="o" d="{_path(upper + lower)}Z">{_title(violin.title)}</path>'
    return f'<g class="c{violin.style.colour}">{shape}{middle}</g>'


def _bar(bar: Bar, frame: Frame) -> str:
    x, end = frame.x(min(bar.start, bar.stop)), frame.x(max(bar.start, bar.stop))
    y = frame.y(bar.y - bar.thickness / 2)
    height = abs(frame.y(bar.y + bar.thickness / 2) - y)
    shape = f"M{brief(x)} {brief(y)}h{brief(end - x)}v{brief(height)}h{brief(x - end)}z"
    text = f'<path class="r c{bar.style.colour}" d="{shape}">{_title(bar.title)}</path>'
    if bar.low is not None and bar.high is not None:
        line = f"M{brief(frame.x(bar.low))} {brief(y + height / 2)}H{brief(frame.x(bar.high))}"
        text += f'<path class="w c0" d="{line}"/>'
    if bar.text and not bar.inside:
        after = max(end, frame.x(bar.high) if bar.high is not None else end)
        text += _text(after + 5, y + height / 2 + 4, bar.text)
    elif bar.text and end - x > LETTER * len(bar.text) + 6:
        text += _text((x + end) / 2, y + height / 2 + 4, bar.text, "i")
    return text


def _cell(cell: Tile, frame: Frame) -> str:
    x, y = frame.x(cell.column - 0.5), frame.y(cell.row - 0.5)
    wide, high = frame.x(cell.column + 0.5) - x - 1, frame.y(cell.row + 0.5) - y - 1
    colour = 3 if (cell.shade or 0) < 0 else 1
    shade = 0.0 if cell.shade is None else 0.04 + 0.56 * abs(cell.shade)
    shape = f"M{brief(x)} {brief(y)}h{brief(wide)}v{brief(high)}h{brief(-wide)}z"
    drawn = f'<path class="c{colour}" fill-opacity="{shade:.2f}" d="{shape}"/>'
    words = _text(x + wide / 2, y + high / 2 + 4, cell.text)
    return f"<g>{_title(cell.title)}{drawn}{words}</g>"


def _axes(panel: Panel, frame: Frame) -> str:
    named = bool(panel.cells)
    parts = []
    if not named:
        ends = f"M{brief(frame.left)} {brief(frame.top)}V{brief(frame.bottom)}H{brief(frame.right)}"
        across = [] if panel.bars else [frame.y(tick.value) for tick in panel.y.ticks]
        down = [frame.x(tick.value) for tick in panel.x.ticks]
        grid = "".join(f"M{brief(frame.left)} {brief(y)}H{brief(frame.right)}" for y in across)
        grid += "".join(f"M{brief(x)} {brief(frame.top)}V{brief(frame.bottom)}" for x in down)
        parts.append(f'<path class="g" d="{grid}"/><path class="a" d="{ends}"/>')
    parts.append('<g class="t">')
    for value, text in panel.y.ticks:
        lines = text.split("\n")
        for index, line in enumerate(lines):
            y = frame.y(value) + 4 + 11 * (index - (len(lines) - 1) / 2)
            parts.append(_text(frame.left - 6, y, line, "e"))
    for value, text in panel.x.ticks:
        x, y = frame.x(value), frame.bottom + 14
        if panel.x.slanted:
            turn = f' transform="rotate(-38 {brief(x)} {brief(y)})"'
            parts.append(_text(x + 4, y, text, "e", turn))
        else:
            parts.append(_text(x, y, text, "m"))
    if panel.x.label:
        middle = (frame.left + frame.right) / 2
        parts.append(_text(middle, panel.height - 4, panel.x.label, "m"))
    if panel.y.label:
        parts.append(_text(2, frame.top - 8, panel.y.label))
    return "".join(parts) + "</g>"


class _Rules(NamedTuple):
    """Thresholds: their lines, which lie under the series, and their texts, which lie over them."""

    lines: str
    texts: str


def _rules(panel: Panel, frame: Frame) -> _Rules:
    parts, words = [], []
    for rule in panel.rules:
        if rule.along == "y":
            y = frame.y(rule.value)
            parts.append(f'<path d="M{brief(frame.left)} {brief(y)}H{brief(frame.right)}"/>')
            # On the left: curves mostly begin away from their thresholds.
            words.append(_text(frame.left + 3, y - 4, rule.text))
        else:
            x = frame.x(rule.value)
            parts.append(f'<path d="M{brief(x)} {brief(frame.top)}V{brief(frame.bottom)}"/>')
            late = x > frame.right - LETTER * len(rule.text)
            words.append(_text(x + (-3 if late else 3), frame.bottom - 5, rule.text, "e" * late))
    return _Rules(
        *(f'<g class="u">{"".join(marks)}</g>' if marks else "" for marks in (parts, words))
    )


def panel_svg(panel: Panel) -> str:
    """Return a panel as an SVG element whose name is its title."""
    frame = Frame(panel)
    lines_of = panel.title.split("\n")
    title = escape(visible(" ".join(lines_of)), quote=True)
    rules = _rules(panel, frame)
    inner = [
        f'<svg viewBox="0 0 {WIDTH} {panel.height}" role="img" aria-label="{title}">',
        *(_text(2, 14 + TITLE_LINE * index, line, "p") for index, line in enumerate(lines_of)),
        _axes(panel, frame),
        *(_bar(bar, frame) for bar in panel.bars),
        f'<g class="v">{"".join(_cell(tile, frame) for tile in panel.cells)}</g>'
        if panel.cells
        else "",
        rules.lines,
        *(_violin(violin, frame) for violin in panel.violins),
        *(_series(series, frame) for series in panel.series),
        rules.texts,
        "</svg>",
    ]
    return "".join(inner)


def key_html(drawing: Drawing) -> str:
    """Return the list of names with their line, marker or patch."""
    items = []
    for name, style, kind in drawing.key:
        if kind == "bar":
            mark = '<path class="r" d="M3 2h18v10h-18z"/>'
        elif kind == "thin":
            mark = '<path class="f" d="M0 7H24"/>'
        else:
            line = f'<path class="l" d="M0 7H24"{_dash(style)}/>' if kind == "line" else ""
            mark = line + marker(style, 12, 7, hollow=kind == "ring")
        swatch = f'<svg viewBox="0 0 24 14" class="c{style.colour}" aria-hidden="true">{mark}</svg>'
        items.append(f"<li>{swatch}{escape(visible(name))}</li>")
    return f'<ul class="key">{"".join(items)}</ul>' if len(items) > 1 else ""


def strip(claim: Claim) -> str:
    """Return a small picture of a claim's effect among its controls, on a line from 0 to 100 %."""
    effect = claim.effect
    if effect.value is None or not is_fraction(effect):
        return ""
    controls = [
        control for control in claim.controls if control.value is not None and is_fraction(control)
    ]
    values = [shown.value or 0.0 for shown in (effect, *controls)]
    low = max(-1.0, min(0.0, *values))
    scale = Scale("", low, 1.0, ())

    def x(value: float) -> float:
        return 6 + 228 * _share(scale, value)

    text = escape(interval(effect), quote=True)
    parts = [
        f'<svg viewBox="0 0 240 26" class="strip" role="img" aria-label="{text} and its controls">'
        f'<path class="a" d="M6 13H234M{brief(x(0))} 8V18M234 8V18"/><g class="c2">'
    ]
    parts += [
        marker(Style(2, 0, "up"), x(control.value or 0.0), 13, title=_tooltip(control), hollow=True)
        for control in controls
    ]
    parts.append('</g><g class="c1">')
    if effect.low is not None and effect.high is not None:
        line = f"M{brief(x(effect.low))} 13H{brief(x(effect.high))}"
        parts.append(f'<path class="w" d="{line}"/>')
    parts.append(marker(Style(1, 0, "circle"), x(effect.value), 13, title=_tooltip(effect)))
    return "".join(parts) + "</g></svg>"


def _tooltip(effect: Interval) -> str:
    return f"{effect.name}: {interval(effect)}"
