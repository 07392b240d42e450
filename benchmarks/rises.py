"""How often bounds of skewed rises miss the truth; prints tables of docs/design/intervals.md.

Rises are log-normal with a deviation of .5 of the logarithm, as in the worlds of `selectivity`, or
gamma of shape ½. Statistics are their mean, and what a rule asks for at its boundary:

    mean       the mean rise
    side       rise(harm) - k rise(side), the side set as wide, or with 3 times the deviation
    arms       the same rows under two arms that do the same, logarithms correlated by .7
    margins    margins of two such arms with five side sets

Rows are in one stratum, or in five, or in 25 (as five models with five categories each). Every cell
has `--draws` data sets, seeded by its name; 40 of them share their weights. Tails are one-sided:
how often the lower bound lies above the truth and the upper one below it, 2.5 % each is nominal.

    python benchmarks/rises.py [--draws 2000] [--only mean,side]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats as scipy_stats

from resect.stats import RESAMPLES, Array, Resampler, rng

Z = float(scipy_stats.norm.isf(0.025))
RANK = (RESAMPLES + 1) // 40
BLOCK = 40
FACTOR, SHARE, SIDES, SHARED = 5.0, 0.03, 5, 0.7


class Layout(NamedTuple):
    """Strata of equal size."""

    strata: int
    rows: int

    @property
    def freedom(self) -> int:
        """Number of rows, less one for each stratum."""
        return self.strata * (self.rows - 1)


class Drawn(NamedTuple):
    """A statistic of each data set; all arrays but the first are [R, data sets].

    Attributes:
        value: [data sets].
        plain: Draws with the variance of a mean, and Student's quantiles.
        moved: The same, each mean's moved by a quarter of its skewness.
        draws: Draws with the variance of a mean.
        below: The same with one more row; what differences add is joined.
        above: Likewise.
        low: The same with ends taken as they come.
        high: Likewise.
    """

    value: Array
    plain: Array
    moved: Array
    draws: Array
    below: Array
    above: Array
    low: Array
    high: Array


class Tails(NamedTuple):
    """Lower and upper bounds, [data sets] each."""

    low: Array
    high: Array


def weights(label: str, layout: Layout) -> Array:
    """Return the weights [R, rows] of a mean over strata that a `Resampler` gives."""
    resampler = Resampler(label)
    drawn = [resampler._drawn(f"0/{n}", layout.rows, layout.strata) for n in range(layout.strata)]
    return np.concatenate(
        [block / block.sum(axis=1, keepdims=True) / layout.strata for block in drawn], axis=1
    )


def mean_of(label: str, rows: Array, layout: Layout) -> Drawn:
    """Return the mean of rows [rows, data sets]."""
    value = rows.mean(axis=0)
    raw = weights(label, layout) @ rows - value
    apart = rows.reshape(layout.strata, layout.rows, -1)
    apart = (apart - apart.mean(axis=1, keepdims=True)).reshape(len(rows), -1)
    added = -np.expm1(np.log1p(-Resampler(label)._even) / len(rows))[:, None]
    scaled = raw * np.sqrt((layout.freedom + 2) / layout.freedom)
    plain = scaled * scipy_stats.t.isf(0.025, layout.freedom) / Z
    below, above = (
        value + (1 - added) * scaled + added * end for end in (apart.min(axis=0), apart.max(axis=0))
    )
    moved = value + plain + plain.std(axis=0) * skewness(plain) / 4
    return Drawn(value, value + plain, moved, value + scaled, below, above, below, above)


def skewness(draws: Array) -> Array:
    """Return the skewness of each column."""
    centred = draws - draws.mean(axis=0)
    skewed: Array = (centred**3).mean(axis=0) / np.maximum(centred.std(axis=0), 1e-300) ** 3
    return skewed


def less(left: Drawn, right: Drawn, factor: float = 1.0) -> Drawn:
    """Return left - factor × right."""
    right = Drawn(*(factor * part for part in right))
    near, far = left.draws - left.draws.mean(axis=0), right.draws - right.draws.mean(axis=0)
    alike = (near * far).mean(axis=0) / (near.std(axis=0) * far.std(axis=0))

    def joined(one: Array, other: Array) -> Array:
        return np.sqrt(np.maximum(one**2 + other**2 - 2 * alike * one * other, 0))

    draws = left.draws - right.draws
    return Drawn(
        left.value - right.value,
        left.plain - right.plain,
        left.moved - right.moved,
        draws,
        draws - joined(left.draws - left.below, right.above - right.draws),
        draws + joined(left.above - left.draws, right.draws - right.below),
        left.low - right.high,
        left.high - right.low,
    )


def least(parts: Sequence[Drawn]) -> Drawn:
    """Return the least of several, draw by draw."""
    return Drawn(*(np.min(arrays, axis=0) for arrays in zip(*parts, strict=True)))


def ends(below: Array, above: Array) -> Tails:
    """Return the bounds of 95 %, draws themselves."""
    low = np.partition(below, RANK - 1, axis=0)[RANK - 1]
    high = np.partition(above, RESAMPLES - RANK, axis=0)[RESAMPLES - RANK]
    return Tails(low, high)


def student(drawn: Drawn) -> Tails:
    """Return Student's bounds."""
    reach = Z * drawn.plain.std(axis=0)
    return Tails(drawn.value - reach, drawn.value + reach)


def hall(drawn: Drawn) -> Tails:
    """Return bounds by Hall's cubic transformation of Student's (Hall 1992)."""
    third = skewness(drawn.plain) / 2  # draws are twice as skewed as the mean

    def inverse(quantile: float) -> Array:
        return 3 / third * (np.cbrt(1 + third * (quantile - third / 6)) - 1)

    spread = drawn.plain.std(axis=0)
    return Tails(drawn.value - spread * inverse(Z), drawn.value - spread * inverse(-Z))


def bca(drawn: Drawn) -> Tails:
    """Return BCa's bounds, with the acceleration from the skewness of the draws."""
    ordered = np.sort(drawn.plain, axis=0)
    fast = skewness(drawn.plain) / 12
    share = (drawn.plain < drawn.value).mean(axis=0).clip(1 / RESAMPLES, 1 - 1 / RESAMPLES)
    centre = scipy_stats.norm.ppf(share)
    bounds = []
    for quantile in (-Z, Z):
        level = scipy_stats.norm.cdf(
            centre + (centre + quantile) / (1 - fast * (centre + quantile))
        )
        place = np.clip((level * (RESAMPLES + 1)).astype(int) - 1, 0, RESAMPLES - 1)
        bounds.append(np.take_along_axis(ordered, place[None], 0)[0])
    return Tails(*bounds)


METHODS: dict[str, Callable[[Drawn], Tails]] = {
    "before": lambda drawn: ends(drawn.moved, drawn.moved),
    "percentile": lambda drawn: ends(drawn.plain, drawn.plain),
    "Student": student,
    "BCa": bca,
    "Hall": hall,
    "one more row, end by end": lambda drawn: ends(drawn.low, drawn.high),
    "resect": lambda drawn: ends(drawn.below, drawn.above),
}


def studentised(label: str, rows: Array, layout: Layout) -> Tails:
    """Return the bounds of the bootstrap-t of a mean, by redrawn rows (Efron 1979)."""
    draw, size = rng(f"{label}/t"), (layout.strata, layout.rows, -1)
    counts = draw.multinomial(
        layout.rows, [1 / layout.rows] * layout.rows, (RESAMPLES, layout.strata)
    )
    means, squares = (
        np.einsum("rhn,hnc->hrc", counts, power.reshape(size)) / layout.rows
        for power in (rows, rows**2)
    )
    scale = layout.strata * np.sqrt(layout.rows - 1)
    error = np.sqrt(np.maximum(squares - means**2, 1e-12).sum(axis=0)) / scale
    quotients = (means.mean(axis=0) - rows.mean(axis=0)) / error
    spread = np.sqrt(rows.reshape(size).var(axis=1).sum(axis=0)) / scale
    low, high = ends(quotients, quotients)
    return Tails(rows.mean(axis=0) - high * spread, rows.mean(axis=0) - low * spread)


def rises(draw: np.random.Generator, shape: tuple[int, int], shaped: str) -> Array:
    """Return rises of mean 1."""
    if shaped == "gamma":
        return draw.gamma(0.5, 2.0, shape)
    return np.exp(0.5 * draw.standard_normal(shape) - 0.125)


def arms(draw: np.random.Generator, shape: tuple[int, int]) -> list[Array]:
    """Return rises of the same rows under two arms."""
    common = np.sqrt(SHARED) * draw.standard_normal(shape)
    apart = (np.sqrt(1 - SHARED) * draw.standard_normal(shape) for _ in range(2))
    return [np.exp(0.5 * (common + own) - 0.125) for own in apart]


class Cell(NamedTuple):
    """What is simulated."""

    statistic: str
    shaped: str
    layout: Layout


def block_of(cell: Cell, number: int) -> dict[str, Tails]:
    """Return the bounds of each method for a block of data sets, less the truth."""
    statistic, shaped, layout = cell
    name = f"rises/{statistic}/{shaped}/{layout}/{number}"
    draw, shape = rng(name), (layout.strata * layout.rows, BLOCK)
    more: dict[str, Tails] = {}
    if statistic == "mean":
        rows = rises(draw, shape, shaped) - 1
        drawn = mean_of(f"{name}/harm", rows, layout)
        more["bootstrap-t"] = studentised(name, rows, layout)
    elif statistic.startswith("side"):
        times = float(statistic.removeprefix("side × "))
        harm, side = (rises(draw, shape, shaped) - 1 for _ in range(2))
        drawn = less(
            mean_of(f"{name}/harm", harm, layout), mean_of(f"{name}/side", times * side, layout)
        )
    else:
        harms = [mean_of(f"{name}/harm", rows, layout) for rows in arms(draw, shape)]
        if statistic == "margins":
            sides = [
                [mean_of(f"{name}/{side}", rows, layout) for rows in arms(draw, shape)]
                for side in range(SIDES)
            ]
            harms = [
                least([harm, *(less(harm, side[arm], FACTOR * SHARE) for side in sides)])
                for arm, harm in enumerate(harms)
            ]
        drawn = less(*harms)
    return {name: method(drawn) for name, method in METHODS.items()} | more


class Missed(NamedTuple):
    """How often each bound misses, and the mean width."""

    low: float
    high: float
    width: float


def cell_of(cell: Cell, draws: int) -> dict[str, Missed]:
    """Return how often each method misses in one cell."""
    found: dict[str, list[Missed]] = {}
    for number in range(-(-draws // BLOCK)):
        for name, (low, high) in block_of(cell, number).items():
            missed = Missed(float((low > 0).mean()), float((high < 0).mean()), (high - low).mean())
            found.setdefault(name, []).append(missed)
    return {
        name: Missed(*(float(np.mean(part)) for part in zip(*blocks, strict=True)))
        for name, blocks in found.items()
    }


ONE = [Layout(1, rows) for rows in (13, 16, 26, 32, 64)]
SMALL, MODELS = Layout(5, 6), Layout(25, 10)
CELLS = [
    *(Cell("mean", "log-normal", layout) for layout in (*ONE, SMALL, MODELS)),
    *(Cell("side × 1", "log-normal", layout) for layout in (*ONE, MODELS)),
    *(Cell("side × 3", "log-normal", layout) for layout in (*ONE, SMALL, MODELS)),
    *(Cell("arms", "log-normal", layout) for layout in (*ONE, MODELS)),
    *(Cell("margins", "log-normal", layout) for layout in (ONE[0], ONE[2], MODELS)),
    *(Cell("mean", "gamma", layout) for layout in (ONE[0], ONE[2], ONE[4])),
    *(Cell("side × 3", "gamma", layout) for layout in (ONE[0], ONE[2], ONE[4])),
]


def lines(cells: Sequence[Cell], draws: int) -> Iterator[str]:
    """Yield a Markdown table: both tails of each method, and the width beside that of before."""
    names = [*METHODS, "bootstrap-t"]
    yield f"| statistic | rises | rows | {' | '.join(names)} |"
    yield "|---" * (len(names) + 3) + "|"
    for cell in cells:
        found = cell_of(cell, draws)
        before = found["before"].width
        columns = [
            f"{100 * missed.low:.1f}, {100 * missed.high:.1f} × {missed.width / before:.2f}"
            if (missed := found.get(name))
            else ""
            for name in names
        ]
        rows = f"{cell.layout.strata} × {cell.layout.rows}"
        yield f"| {cell.statistic} | {cell.shaped} | {rows} | {' | '.join(columns)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--only", default="", help="statistics, separated by commas")
    options = parser.parse_args()
    wanted = options.only.split(",") if options.only else []
    cells = [
        cell for cell in CELLS if not wanted or any(cell.statistic.startswith(w) for w in wanted)
    ]
    for line in lines(cells, options.draws):
        print(line, flush=True)


if __name__ == "__main__":
    main()
