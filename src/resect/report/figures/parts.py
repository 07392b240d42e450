"""Rows to scales, series, bars and cells: what the figure functions share."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Callable, Iterable, Sequence

from resect.report.figures.spec import (
    Bar,
    Panel,
    Point,
    Row,
    Scale,
    Series,
    Style,
    Tables,
    Threshold,
    Tile,
    Violin,
    looks,
    name_of,
)
from resect.report.words import percent, plain_number, spread

LEAST_DROP = -0.5
MOST_LETTERS = 24
MOST_TITLE = 46
# A violin of fewer values would be a picture of its own smoothing.
LEAST_VALUES = 5


def number(value: object) -> float:
    """Return a value for drawing; what is unknown becomes NaN and is not drawn."""
    return float(value) if isinstance(value, int | float) else math.nan


def rows_of(tables: Tables, name: str) -> list[Row]:
    """Return a table's rows; none where the table is missing."""
    return tables.get(name) or []


def pooled(rows: Sequence[Row]) -> list[Row]:
    """Return the rows over all seeds; where there are none, all rows."""
    return [row for row in rows if row.get("seed") is None] or list(rows)


def unique(values: Iterable[object]) -> list[str]:
    """Return each value once, as text, in order of appearance."""
    return list(dict.fromkeys(str(value) for value in values))


# --- scales


def _step(width: float) -> float:
    """Return a round step that cuts a width into three to six parts."""
    rough = width / 4
    power = 10.0 ** math.floor(math.log10(rough))
    return min(
        (power * m for m in (1, 2, 2.5, 5, 10)),
        key=lambda step: (round(abs(step - rough), 12), -step),
    )


def linear(
    label: str,
    values: Iterable[float],
    write: Callable[[float], str] = percent,
    *,
    within: tuple[float, float] = (-math.inf, math.inf),
    reach: tuple[float, ...] = (0.0,),
) -> Scale:
    """Return a linear scale over values.

    Args:
        label: What is on it.
        values: Values that must fit; NaN and infinity are left out.
        write: How a tick is written.
        within: The scale does not go beyond; marks outside are drawn at its edge.
        reach: Values that are on the scale in any case.
    """
    found = [value for value in (*values, *reach) if math.isfinite(value)]
    low, high = max(min(found), within[0]), min(max(found), within[1])
    if high <= low:
        high = low + (abs(low) or 1.0)
    step = _step(high - low)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(
        (round(at * step, 12), write(round(at * step, 12)))
        for at in range(first, last + 1)
        if low - step / 2 <= at * step <= high + step / 2
    )
    room = 0.04 * (high - low)
    return Scale(label, min(low, ticks[0][0]) - room, max(high, ticks[-1][0]) + room, ticks)


def drops(label: str, values: Iterable[float], *reach: float) -> Scale:
    """Return a scale for relative drops; it ends at -50 %, for a tiny base makes huge negatives."""
    return linear(label, values, within=(LEAST_DROP, 1.0), reach=(0.0, *reach))


def rates(label: str) -> Scale:
    """Return a scale from 0 to 100 %."""
    return linear(label, (), reach=(0.0, 1.0))


def log(label: str, values: Iterable[float], write: Callable[[float], str] = percent) -> Scale:
    """Return a logarithmic scale; zeros, where there are any, have a place of their own at left."""
    found = [value for value in values if math.isfinite(value)]
    above = [value for value in found if value > 0]
    if not above or min(above) == max(above):
        return linear(label, found, write)
    low, high = min(above), max(above)
    span = math.log10(high / low)
    steps = (1,) if span > 3 else (1, 3) if span > 1.7 else (1, 2, 5)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    places = [step * 10.0**decade for decade in decades for step in steps]
    ticks = [(place, write(place)) for place in places if low * 0.99 <= place <= high * 1.01]
    edge = 1.12 ** max(span, 0.5)
    floor = None
    if min(found) <= 0:
        floor = low = low / 10 ** (max(span, 0.5) / 5)
        ticks.insert(0, (floor, "0"))
    return Scale(label, low / edge, high * edge, tuple(ticks), log=True, floor=floor)


def names(labels: Sequence[str], label: str = "") -> Scale:
    """Return a y scale of names, the first on top, at 0, 1, 2, ...; long ones in two lines."""
    shown = enumerate(folded(one) for one in labels)
    return Scale(label, len(labels) - 0.5, -0.5, tuple(shown))


def folded(text: str, most: int = MOST_LETTERS) -> str:
    """Return a name in one line or in two; what does not fit is cut off, with an ellipsis."""
    if len(text) <= most:
        return text
    return "\n".join(textwrap.wrap(text, most, max_lines=2, placeholder="…"))


# --- series and bars


def place(row: Row, column: str) -> tuple[float, float | None, float | None]:
    """Return a column's value with its bounds, None where they are not known."""
    low, high = (row.get(f"{column}_{side}") for side in ("low", "high"))
    return number(row.get(column)), low, high


def curve(
    rows: Sequence[Row],
    columns: tuple[str, str],
    look: tuple[str, Style],
    *,
    write: Callable[[float], str] = percent,
) -> Series:
    """Return a line with its band.

    Args:
        rows: Points; sorted by the x column; those with an unknown value are left out.
        columns: Columns of x and of y; `y_low` and `y_high` make the band.
        look: Name in the key, and style.
        write: How an x value is written in tooltips.
    """
    x, y = columns
    points = []
    for row in sorted(rows, key=lambda row: number(row.get(x))):
        value, low, high = place(row, y)
        if math.isfinite(number(row.get(x))) and math.isfinite(value):
            title = f"{look[0]}, {write(number(row[x]))}: {spread(value, low, high)}"
            points.append(Point(number(row[x]), value, low, high, title))
    return Series(look[0], look[1], tuple(points))


def plane(rows: Sequence[Row], look: tuple[str, Style], *, joined: bool = True) -> Series:
    """Return cuts in the plane of utility (x) and harm (y), with what they are in tooltips."""
    points = []
    for row in sorted(rows, key=lambda row: number(row.get("q"))):
        x, y = number(row.get("utility_drop")), number(row.get("harm_drop"))
        if math.isfinite(x) and math.isfinite(y):
            q = f", q = {percent(row['q'])}" if row.get("q") is not None else ""
            title = f"{look[0]}{q}: harm -{percent(y)}, utility -{percent(x)}".replace("--", "+")
            points.append(Point(x, y, title=title))
    return Series(look[0], look[1], tuple(points), joined=joined, spread="none")


def plane_panel(lines: Sequence[Series], budget: object, title: str) -> Panel:
    """Return the panel of `plane` series, with the utility budget where there is one."""
    xs = [point.x for one in lines for point in one.points]
    ys = [point.y for one in lines for point in one.points]
    bound = number(budget)
    rules = () if math.isnan(bound) else (Threshold(bound, "x", f"budget {percent(bound)}"),)
    return Panel(
        title,
        drops("relative drop of utility", xs, *(rule.value for rule in rules)),
        drops("", ys, 1.0),
        series=tuple(lines),
        rules=rules,
    )


def bars(rows: Sequence[Row], column: str, label: Callable[[Row], str], title: str) -> Panel:
    """Return a panel of horizontal bars with whiskers, one a row."""
    found = [row for row in rows if math.isfinite(number(row.get(column)))]
    labels = [label(row) for row in found]
    styles = looks(_who(row) for row in found)
    drawn = []
    for at, row in enumerate(found):
        value, low, high = place(row, column)
        text = f"{labels[at]}: {spread(value, low, high)}"
        look = styles[_who(row)]
        drawn.append(Bar(at, 0.0, value, look, "", text, low, high, text=percent(value)))
    edges = [edge for bar in drawn for edge in (bar.stop, number(bar.low), number(bar.high))]
    scale = drops("", edges, 1.0)
    return Panel(title, scale, names(labels), bars=tuple(drawn), height=54 + 26 * len(drawn))


def _who(row: Row) -> str:
    return str(row.get("role") or row.get("model") or row.get("arm") or "")


def dots(
    groups: Sequence[tuple[str, Style, Sequence[Row]]],
    labels: Sequence[str],
    at: Callable[[Row], str],
    column: str,
) -> tuple[Series, ...]:
    """Return points with whiskers along x: a row for each label, groups side by side in it."""
    series = []
    for number_of, (name, style, rows) in enumerate(groups):
        shift = 0.0 if len(groups) == 1 else 0.5 * (number_of / (len(groups) - 1) - 0.5)
        points = []
        for row in rows:
            value, low, high = place(row, column)
            if math.isfinite(value):
                title = f"{at(row)}, {name}: {spread(value, low, high)}"
                points.append(Point(value, labels.index(at(row)) + shift, low, high, title))
        series.append(Series(name, style, tuple(points), False, "whisker", "x"))
    return tuple(series)


def violin(
    at: float,
    look: Style,
    values: Sequence[float],
    name: str,
    write: Callable[[float], str] = plain_number,
) -> Violin | None:
    """Return the density of values by a Gaussian kernel (Scott's rule), within their range.

    None where there are too few values, or all are the same.
    """
    found = sorted(value for value in values if math.isfinite(value))
    if len(found) < LEAST_VALUES or found[-1] - found[0] < 1e-9:
        return None
    from scipy.stats import gaussian_kde

    low, high = found[0], found[-1]
    places = [low + (high - low) * step / 16 for step in range(17)]
    density = [float(one) for one in gaussian_kde(found)(places)]
    outline = [(x, 0.4 * d / max(density)) for x, d in zip(places, density, strict=True)]
    median = statistics.median(found)
    said = f"{name}: median {write(median)}, {write(low)} to {write(high)}, {len(found)} values"
    return Violin(at, look, tuple(outline), median, said)


# --- matrices


def matrix(
    rows: Sequence[Row],
    columns: tuple[str, str, str],
    title: str,
    *,
    write: Callable[[float], str] = percent,
    top: float = 1.0,
    labels: tuple[str, str] = ("", ""),
) -> Panel:
    """Return a heat map of a long table.

    Args:
        rows: One a cell.
        columns: Columns of the row's name, the column's name and the value.
        title: Of the panel.
        write: How a value is written in its cell.
        top: The value of the strongest shade.
        labels: What rows and columns are.
    """
    down, across, column = columns
    first = unique(row[down] for row in rows)
    second = unique(row[across] for row in rows)
    named = [name_of(one) for one in first], [name_of(one) for one in second]
    cells = []
    for row in rows:
        value, low, high = place(row, column)
        known = math.isfinite(value)
        said = spread(value, low, high) if low is not None else write(value)
        cells.append(
            Tile(
                second.index(str(row[across])),
                first.index(str(row[down])),
                max(-1.0, min(1.0, value / top)) if known and top else None,
                _cell_text(value, write) if known else "–",
                f"{row[down]} | {row[across]}: {said if known else 'unknown'}",
            )
        )
    return matrix_panel(title, named, cells, labels=labels)


def _cell_text(value: float, write: Callable[[float], str]) -> str:
    # The panel's title says that numbers are percent.
    return f"{100 * value:.0f}".replace("-0", "0") if write is percent else write(value)


def matrix_panel(
    title: str,
    ticks: tuple[Sequence[str], Sequence[str]],
    cells: Sequence[Tile],
    *,
    labels: tuple[str, str] = ("", ""),
) -> Panel:
    """Return a panel of cells with named rows and columns."""
    rows, columns = ticks
    left = min(MOST_LETTERS, max((len(name) for name in rows), default=0))
    slanted = any(len(name) * len(columns) > 54 - left for name in columns)
    x = Scale(labels[1], -0.5, len(columns) - 0.5, tuple(enumerate(columns)), slanted=slanted)
    longest = max((len(name) for name in columns), default=0)
    height = 64 + 30 * len(rows) + (min(110, 5 * longest) if slanted else 12)
    return Panel(title, x, names(rows, labels[0]), cells=tuple(cells), height=height)


def scale_of(rows: Sequence[Row], columns: Sequence[str]) -> tuple[str, Callable[[float], str]]:
    """Return the first column with more than one value, or the last, and how to write it."""
    for column in columns:
        if len({row.get(column) for row in rows}) > 1:
            return column, plain_number
    return columns[-1], plain_number


def arms_of(rows: Sequence[Row]) -> list[tuple[str, str, Style]]:
    """Return (arm, name, style) of every arm but the intact model, in order of appearance."""
    found = [arm for arm in unique(row.get("arm", "target") for row in rows) if arm != "intact"]
    styles = looks(found)
    return [(arm, name_of(arm), styles[arm]) for arm in found]
