"""Rows to scales, series, bars and cells: what the figure functions share."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from resect.records import Row
from resect.report.figures.spec import (
    Bar,
    Edge,
    Panel,
    Point,
    Scale,
    Series,
    Style,
    Tables,
    Threshold,
    Tick,
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
# Larger numbers are no measurements, and steps and spans of them overflow.
MOST_NUMBER = 1e100


class TableError(Exception):
    """A table of a study lacks a column that a figure reads, or the column holds something else.

    Attributes:
        field: Where: table, row from 0, and column.
        problem: What is wrong there.
    """

    def __init__(self, table: str, row: int, column: str, problem: str) -> None:
        """Say where and what."""
        self.field = f"tables.{table}[{row}].{column}"
        self.problem = problem
        super().__init__(f"{self.field}: {problem}")


def number(value: object) -> float:
    """Return a value for drawing; what is unknown becomes NaN and is not drawn."""
    if isinstance(value, int | float) and abs(value) < MOST_NUMBER:
        return float(value)
    return math.nan


def bound(row: Row, column: str) -> float | None:
    """Return a bound of an interval; None where it is not known."""
    value = number(row.get(column))
    return None if math.isnan(value) else value


def rows_of(
    tables: Tables, name: str, *, texts: Sequence[str] = (), numbers: Sequence[str] = ()
) -> list[Row]:
    """Return a table's rows; none where the table is missing.

    Args:
        tables: The tables of a study.
        name: Which of them.
        texts: Columns that every row must have.
        numbers: Columns that hold numbers; they may be missing, or unknown in some rows.

    Raises:
        TableError: A row lacks a text, or has something else in place of a number.
    """
    rows = list(tables.get(name, ()))
    for index, row in enumerate(rows):
        for column in texts:
            if column not in row:
                raise TableError(name, index, column, "Field required")
        for column in numbers:
            if isinstance(row.get(column), str | bool):
                raise TableError(name, index, column, "Input should be a valid number")
    return rows


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
    least: float = -math.inf,
    most: float = math.inf,
    reach: tuple[float, ...] = (0.0,),
) -> Scale:
    """Return a linear scale over values.

    Args:
        label: What is on it.
        values: Values that must fit; NaN and infinity are left out.
        write: How a tick is written.
        least: The scale does not go below; marks outside are drawn at its edge.
        most: The scale does not go above.
        reach: Values that are on the scale in any case.
    """
    finite = [value for value in (*values, *reach) if math.isfinite(value)]
    low, high = max(min(finite), least), min(max(finite), most)
    if high <= low:
        high = low + (abs(low) or 1.0)
    step = _step(high - low)
    start, stop = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(
        Tick(round(count * step, 12), write(round(count * step, 12)))
        for count in range(start, stop + 1)
        if low - step / 2 <= count * step <= high + step / 2
    )
    room = 0.04 * (high - low)
    return Scale(label, min(low, ticks[0].value) - room, max(high, ticks[-1].value) + room, ticks)


def drops(label: str, values: Iterable[float], *reach: float) -> Scale:
    """Return a scale for relative drops; it ends at -50 %, for a tiny base makes huge negatives."""
    return linear(label, values, least=LEAST_DROP, most=1.0, reach=(0.0, *reach))


def rates(label: str) -> Scale:
    """Return a scale from 0 to 100 %."""
    return linear(label, (), reach=(0.0, 1.0))


def log(label: str, values: Iterable[float], write: Callable[[float], str] = percent) -> Scale:
    """Return a logarithmic scale; zeros, where there are any, stand apart at its left end."""
    finite = [value for value in values if math.isfinite(value)]
    above = [value for value in finite if value > 0]
    if not above or min(above) == max(above):
        return linear(label, finite, write)
    low, high = min(above), max(above)
    span = math.log10(high / low)
    steps = (1,) if span > 3 else (1, 3) if span > 1.7 else (1, 2, 5)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = [step * 10.0**decade for decade in decades for step in steps]
    ticks = [Tick(mark, write(mark)) for mark in marks if low * 0.99 <= mark <= high * 1.01]
    edge = 1.12 ** max(span, 0.5)
    floor = None
    if min(finite) <= 0:
        floor = low = low / 10 ** (max(span, 0.5) / 5)
        ticks.insert(0, Tick(floor, "0"))
    return Scale(label, low / edge, high * edge, tuple(ticks), log=True, floor=floor)


def names(labels: Sequence[str], label: str = "") -> Scale:
    """Return a y scale of names, the first on top, at 0, 1, 2, ...; long ones in two lines."""
    ticks = tuple(Tick(index, folded(name)) for index, name in enumerate(labels))
    return Scale(label, len(labels) - 0.5, -0.5, ticks)


def folded(text: str, most: int = MOST_LETTERS) -> str:
    """Return a name in one line or in two; what does not fit is cut off, with an ellipsis."""
    if len(text) <= most:
        return text
    return "\n".join(textwrap.wrap(text, most, max_lines=2, placeholder="…"))


# --- series and bars


class Estimate(NamedTuple):
    """A value, NaN where it is unknown, with its bounds, None where they are."""

    value: float
    low: float | None
    high: float | None


def estimate(row: Row, column: str) -> Estimate:
    """Return a column's value with its bounds."""
    return Estimate(
        number(row.get(column)), bound(row, f"{column}_low"), bound(row, f"{column}_high")
    )


def curve(
    rows: Sequence[Row],
    x: str,
    y: str,
    name: str,
    style: Style,
    *,
    write: Callable[[float], str] = percent,
) -> Series:
    """Return a line with its band.

    Args:
        rows: Points; sorted by the x column; those with an unknown value are left out.
        x: Column of x.
        y: Column of y; `y_low` and `y_high` make the band.
        name: In the key.
        style: How it looks.
        write: How an x value is written in tooltips.
    """
    points = []
    for row in sorted(rows, key=lambda row: number(row.get(x))):
        across, up = number(row.get(x)), estimate(row, y)
        if math.isfinite(across) and math.isfinite(up.value):
            title = f"{name}, {write(across)}: {spread(*up)}"
            points.append(Point(across, *up, title))
    return Series(name, style, tuple(points))


def plane(rows: Sequence[Row], name: str, style: Style, *, joined: bool = True) -> Series:
    """Return cuts in the plane of utility (x) and harm (y), with what they are in tooltips."""
    points = []
    for row in sorted(rows, key=lambda row: number(row.get("q"))):
        x, y = number(row.get("utility_drop")), number(row.get("harm_drop"))
        if math.isfinite(x) and math.isfinite(y):
            q = f", q = {percent(number(row['q']))}" if row.get("q") is not None else ""
            title = f"{name}{q}: harm -{percent(y)}, utility -{percent(x)}".replace("--", "+")
            points.append(Point(x, y, title=title))
    return Series(name, style, tuple(points), joined=joined, spread="none")


def plane_panel(lines: Sequence[Series], budget: object, title: str) -> Panel:
    """Return the panel of `plane` series, with the utility budget where there is one."""
    xs = [point.x for line in lines for point in line.points]
    ys = [point.y for line in lines for point in line.points]
    most = number(budget)
    rules = () if math.isnan(most) else (Threshold(most, "x", f"budget {percent(most)}"),)
    return Panel(
        title,
        drops("relative drop of utility", xs, *(rule.value for rule in rules)),
        drops("", ys, 1.0),
        series=tuple(lines),
        rules=rules,
    )


def bars(rows: Sequence[Row], column: str, label: Callable[[Row], str], title: str) -> Panel:
    """Return a panel of horizontal bars with whiskers, one a row."""
    drawable = [row for row in rows if math.isfinite(number(row.get(column)))]
    labels = [label(row) for row in drawable]
    styles = looks(_variant(row) for row in drawable)
    drawn = []
    for index, row in enumerate(drawable):
        value, low, high = estimate(row, column)
        text = f"{labels[index]}: {spread(value, low, high)}"
        style = styles[_variant(row)]
        drawn.append(Bar(index, 0.0, value, style, "", text, low, high, text=percent(value)))
    edges = [edge for bar in drawn for edge in (bar.stop, number(bar.low), number(bar.high))]
    scale = drops("", edges, 1.0)
    return Panel(title, scale, names(labels), bars=tuple(drawn), height=54 + 26 * len(drawn))


def _variant(row: Row) -> str:
    """Return the name by which a row's colour is chosen."""
    return str(row.get("role") or row.get("model") or row.get("arm") or "")


@dataclass(frozen=True)
class Arm:
    """The rows of one arm, with its name for readers and its style."""

    name: str
    style: Style
    rows: Sequence[Row]


def arms_of(rows: Sequence[Row]) -> list[Arm]:
    """Return every arm but the intact model, in order of appearance."""
    arms = [arm for arm in unique(row.get("arm", "target") for row in rows) if arm != "intact"]
    styles = looks(arms)
    return [
        Arm(
            name_of(arm),
            styles[arm],
            [row for row in rows if str(row.get("arm", "target")) == arm],
        )
        for arm in arms
    ]


def dots(
    arms: Sequence[Arm], labels: Sequence[str], label: Callable[[Row], str], column: str
) -> tuple[Series, ...]:
    """Return points with whiskers along x: a line for each label, arms side by side in it."""
    series = []
    for index, arm in enumerate(arms):
        shift = 0.0 if len(arms) == 1 else 0.5 * (index / (len(arms) - 1) - 0.5)
        points = []
        for row in arm.rows:
            value, low, high = estimate(row, column)
            if math.isfinite(value):
                title = f"{label(row)}, {arm.name}: {spread(value, low, high)}"
                y = labels.index(label(row)) + shift
                points.append(Point(value, y, low, high, title))
        series.append(Series(arm.name, arm.style, tuple(points), False, "whisker", "x"))
    return tuple(series)


def violin(
    y: float,
    style: Style,
    values: Sequence[float],
    name: str,
    write: Callable[[float], str] = plain_number,
) -> Violin | None:
    """Return the density of values by a Gaussian kernel (Scott's rule), within their range.

    None where there are too few values, or all are the same.
    """
    finite = sorted(value for value in values if math.isfinite(value))
    if len(finite) < LEAST_VALUES or finite[-1] - finite[0] < 1e-9:
        return None
    from scipy.stats import gaussian_kde

    low, high = finite[0], finite[-1]
    grid = [low + (high - low) * step / 16 for step in range(17)]
    density = [float(value) for value in gaussian_kde(finite)(grid)]
    outline = tuple(
        Edge(x, 0.4 * height / max(density)) for x, height in zip(grid, density, strict=True)
    )
    median = statistics.median(finite)
    title = f"{name}: median {write(median)}, {write(low)} to {write(high)}, {len(finite)} values"
    return Violin(y, style, outline, median, title)


# --- matrices


def matrix(
    rows: Sequence[Row],
    down: str,
    across: str,
    column: str,
    title: str,
    *,
    row_label: str = "",
    column_label: str = "",
) -> Panel:
    """Return a heat map of a long table of fractions.

    Args:
        rows: One a cell.
        down: Column with the name of the cell's row.
        across: Column with the name of the cell's column.
        column: Column of the value; 1 has the strongest shade.
        title: Of the panel; it says that numbers are percent.
        row_label: What the rows are.
        column_label: What the columns are.
    """
    row_names = unique(row[down] for row in rows)
    column_names = unique(row[across] for row in rows)
    cells = []
    for row in rows:
        value, low, high = estimate(row, column)
        known = math.isfinite(value)
        text = spread(value, low, high) if low is not None else percent(value)
        cells.append(
            Tile(
                column_names.index(str(row[across])),
                row_names.index(str(row[down])),
                max(-1.0, min(1.0, value)) if known else None,
                f"{100 * value:.0f}".replace("-0", "0") if known else "–",
                f"{row[down]} | {row[across]}: {text if known else 'unknown'}",
            )
        )
    return matrix_panel(
        title,
        [name_of(name) for name in row_names],
        [name_of(name) for name in column_names],
        cells,
        row_label=row_label,
        column_label=column_label,
    )


def matrix_panel(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Sequence[Tile],
    *,
    row_label: str = "",
    column_label: str = "",
) -> Panel:
    """Return a panel of cells with named rows and columns."""
    margin = min(MOST_LETTERS, max((len(name) for name in rows), default=0))
    slanted = any(len(name) * len(columns) > 54 - margin for name in columns)
    ticks = tuple(Tick(index, name) for index, name in enumerate(columns))
    x = Scale(column_label, -0.5, len(columns) - 0.5, ticks, slanted=slanted)
    longest = max((len(name) for name in columns), default=0)
    height = 64 + 30 * len(rows) + (min(110, 5 * longest) if slanted else 12)
    return Panel(title, x, names(rows, row_label), cells=tuple(cells), height=height)


def varied_column(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Return the first column with more than one value, or the last."""
    for column in columns:
        if len({row.get(column) for row in rows}) > 1:
            return column
    return columns[-1]
