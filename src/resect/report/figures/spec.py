"""What a figure is, before anything draws it: panels of marks on two scales.

A figure function turns rows into these values and draws nothing. Two renderers read them:
`screen.py` for the page (SVG with tooltips and the page's colours) and `paper.py` for files
(matplotlib to SVG and PDF). So both show the same marks, ticks and names;
`docs/design/figures.md` says why.

A series is told apart in three ways, each enough alone: colour, dash and marker.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from resect.records import Row
from resect.report.words import readable

Tables = Mapping[str, Sequence[Row]]
Settings = Mapping[str, object]


@dataclass(frozen=True)
class Style:
    """How a series looks: number of the colour, of the dash pattern, and the marker's name."""

    colour: int
    dash: int
    marker: str


class Colour(NamedTuple):
    """A colour as `#RRGGBB`, on light paper and on dark paper."""

    light: str
    dark: str


# After Okabe and Ito, moved until each has a contrast of 3 to its paper. Slot 0 is the ink.
COLOURS: tuple[Colour, ...] = (
    Colour("#1C1C1C", "#ECECEC"),
    Colour("#C64F00", "#FF8A3D"),
    Colour("#6E6E6E", "#A8A8A8"),
    Colour("#0072B2", "#4FA8E0"),
    Colour("#2588B8", "#8CD0F5"),
    Colour("#007F5C", "#2FC79A"),
    Colour("#B0578A", "#E39BC4"),
    Colour("#A06C00", "#F0B840"),
)
# Lengths of line and gap in pixels; the first is a solid line.
DASHES: tuple[tuple[int, ...], ...] = (
    (),
    (5, 3),
    (1, 3),
    (8, 3, 1, 3),
    (9, 4),
    (3, 3),
    (12, 3, 3, 3),
)
MARKERS = ("circle", "square", "diamond", "up", "down", "plus", "cross", "star")

ORDER: tuple[Style, ...] = (
    Style(1, 0, "circle"),
    Style(3, 3, "square"),
    Style(5, 4, "diamond"),
    Style(6, 5, "down"),
    Style(7, 6, "star"),
    Style(4, 2, "plus"),
    Style(2, 1, "up"),
    Style(0, 1, "cross"),
)
STYLES: dict[str, Style] = {
    "target": Style(1, 0, "circle"),
    "random": Style(2, 1, "up"),
    "magnitude": Style(3, 3, "square"),
    "opposite": Style(4, 2, "plus"),
    "next_slice": Style(5, 4, "diamond"),
    "benign": Style(6, 5, "down"),
    "matched": Style(7, 6, "star"),
    "damage": Style(0, 1, "cross"),
    "intact": Style(0, 2, "cross"),
    "aligned": Style(1, 0, "circle"),
    "base": Style(3, 3, "square"),
    "benign_tuned": Style(5, 4, "diamond"),
    "target cut": Style(1, 0, "circle"),
    "random cut": Style(2, 1, "up"),
}
NAMES = {
    "target": "target cut",
    "random": "random, same size",
    "magnitude": "magnitude-matched",
    "opposite": "opposite sign",
    "next_slice": "next slice",
    "benign": "benign behaviour",
    "matched": "content-matched",
    "damage": "random, as costly",
    "benign_tuned": "benign-tuned",
    "dpo": "preference-tuned (DPO)",
    "none": "nothing",
}
# Long names that a study gives to families of arms, and what is short enough for a figure.
FAMILIES = {
    "weights behind a benign behaviour: ": "benign: ",
    "weights behind other answers to the same prompts: ": "same prompts: ",
}


@dataclass(frozen=True)
class Point:
    """A value on both axes, its bounds (along the direction of the series), and its tooltip."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    title: str = ""


@dataclass(frozen=True)
class Series:
    """Points of one name.

    Attributes:
        name: In the key; empty for none.
        style: How it looks.
        points: In drawing order.
        joined: Draw a line through the points.
        spread: How bounds are drawn.
        along: The axis that bounds run along.
        hollow: Draw markers as outlines.
        faint: A thin line without markers: something to compare with.
    """

    name: str
    style: Style
    points: tuple[Point, ...]
    joined: bool = True
    spread: Literal["band", "whisker", "none"] = "band"
    along: Literal["x", "y"] = "y"
    hollow: bool = False
    faint: bool = False


class Edge(NamedTuple):
    """Half the width of a violin at a value; 1 would reach the middle of the next violin."""

    value: float
    half: float


@dataclass(frozen=True)
class Violin:
    """How values spread along x, at a height on the y axis: an outline with its median."""

    y: float
    style: Style
    outline: tuple[Edge, ...]
    median: float
    title: str = ""


@dataclass(frozen=True)
class Bar:
    """A horizontal bar at a height on the y axis, from `start` to `stop`.

    `text` is written behind the bar or, with `inside`, in it where there is room.
    """

    y: float
    start: float
    stop: float
    style: Style
    name: str = ""
    title: str = ""
    low: float | None = None
    high: float | None = None
    thickness: float = 0.68
    text: str = ""
    inside: bool = False


@dataclass(frozen=True)
class Tile:
    """A cell of a matrix; `shade` from -1 (far below) over 0 (none) to 1 (far above), or None."""

    column: int
    row: int
    shade: float | None
    text: str
    title: str = ""


@dataclass(frozen=True)
class Threshold:
    """A threshold across the panel: `along` names the axis on which it has its value."""

    value: float
    along: Literal["x", "y"]
    text: str


class Tick(NamedTuple):
    """A mark on an axis with its text."""

    value: float
    text: str


@dataclass(frozen=True)
class Scale:
    """An axis: `low` lies left or at the bottom, `high` right or on top; `low` may be larger.

    Attributes:
        label: What is on it.
        low: Value at the left or the bottom; on a log scale above 0, and the place of 0.
        high: Value at the right or the top.
        ticks: Marks on it.
        log: Logarithmic.
        floor: On a log scale with zeros, the place where they stand.
        slanted: Texts need room: write them at an angle.
    """

    label: str
    low: float
    high: float
    ticks: tuple[Tick, ...]
    log: bool = False
    floor: float | None = None
    slanted: bool = False


@dataclass(frozen=True)
class Panel:
    """One plot."""

    title: str
    x: Scale
    y: Scale
    series: tuple[Series, ...] = ()
    bars: tuple[Bar, ...] = ()
    cells: tuple[Tile, ...] = ()
    violins: tuple[Violin, ...] = ()
    rules: tuple[Threshold, ...] = ()
    height: int = 250


class KeyEntry(NamedTuple):
    """A name in the key, with the style and the kind of mark that stand for it."""

    name: str
    style: Style
    kind: Literal["line", "ring", "dot", "thin", "bar"]


@dataclass(frozen=True)
class Drawing:
    """A figure: its name (for files), what it says in words, and its panels."""

    name: str
    caption: str
    panels: tuple[Panel, ...]

    @property
    def key(self) -> tuple[KeyEntry, ...]:
        """Return what the key lists: each name once, with its style and what is drawn for it."""
        entries: dict[str, KeyEntry] = {}
        for panel in self.panels:
            marks = [KeyEntry(line.name, line.style, _kind(line)) for line in panel.series]
            marks += [KeyEntry(bar.name, bar.style, "bar") for bar in panel.bars]
            for entry in marks:
                if entry.name:
                    entries.setdefault(entry.name, entry)
        return tuple(entries.values())


def _kind(series: Series) -> Literal["line", "ring", "dot", "thin"]:
    if series.faint:
        return "thin"
    return "line" if series.joined else "ring" if series.hollow else "dot"


def looks(names: Iterable[str]) -> dict[str, Style]:
    """Return a style for each name: known names have their own, others the first that is free."""
    listed = list(dict.fromkeys(names))
    styles = {name: STYLES[name] for name in listed if name in STYLES}
    free = [style for style in ORDER if style not in styles.values()]
    unknown = [name for name in listed if name not in styles]
    for index, name in enumerate(unknown):
        styles[name] = free[index] if index < len(free) else _varied(index - len(free))
    return styles


def _varied(index: int) -> Style:
    """Return one of the looks after the first eight: their colours with other marks and dashes."""
    turn, slot = divmod(index, len(ORDER))
    base = ORDER[slot]
    marker = MARKERS[(MARKERS.index(base.marker) + 3 * (turn + 1)) % len(MARKERS)]
    return Style(base.colour, (base.dash + turn + 2) % len(DASHES), marker)


def name_of(arm: str) -> str:
    """Return an arm's name for readers."""
    for long, brief in FAMILIES.items():
        if arm.startswith(long):
            return brief + name_of(arm.removeprefix(long))
    return NAMES.get(arm, readable(arm))
