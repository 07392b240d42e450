"""How often intervals miss the truth, where the truth is known; fills docs/design/intervals.md.

    drops    relative drops of harm of three models, against percentiles and BCa
    pairs    differences of paired rates without strata, against score methods
    worst    the most often that their bounds miss, over a grid of truths, by enumeration
    groups   drops of prompts of which four each say the same, drawn apart and together
    order    how often more broken answers pass a tolerance that fewer broken ones fail
    models   how often a claim is supported, of these models and of their recipe, by their number

Every cell has `--draws` simulated data sets, seeded by its name. Tails are one-sided: how often the
lower bound lies above the truth and the upper one below it, nominal 2.5 % each. Four CPU minutes.

    python benchmarks/intervals.py [drops pairs worst groups order models] [--draws 1000]
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from scipy import stats as scipy_stats

from resect.stats import Array, Resampler, Sample, of_models, relative_drop, rng

LOW, HIGH = 0.025, 0.975
Z = float(scipy_stats.norm.ppf(HIGH))
SEEDS, CATEGORIES, PROMPTS = 3, 5, 60
# Data sets that share a label, and with it the draws.
BLOCK = 50
RESAMPLES = 2000
INTACT = 0.95
# Shares of prompts that are lost or gained.
TRUTHS = (
    0.0,
    0.002,
    0.004,
    0.007,
    0.01,
    0.02,
    0.03,
    0.05,
    0.08,
    0.12,
    0.2,
    0.3,
    0.4,
    0.5,
    0.7,
    0.9,
)
# Each reply has as many words that are right or wrong.
WORDS = 5
# Prompts of a group say the same.
ALIKE = 4


class Bounds(NamedTuple):
    """Bounds [S] of as many data sets."""

    low: Array
    high: Array


class Tails(NamedTuple):
    """How often bounds miss the truth on either side, and how far apart they are."""

    low: float
    high: float
    width: float

    @property
    def coverage(self) -> float:
        """How often the truth is between the bounds."""
        return 1 - self.low - self.high


class Data(NamedTuple):
    """Scores [H, n, S] of H strata of n prompts before and after a cut, of S data sets."""

    before: Array
    after: Array


Method = Callable[[Data, str], Bounds]


def data_sets(name: str, strata: int, prompts: int, drop: float, *, graded: bool) -> Data:
    """Return a block of data sets whose harm falls by `drop`, a share of the intact model's."""
    draw = rng(f"intervals/{name}")
    shape = (strata, prompts, BLOCK)
    if not graded:
        before = (draw.random(shape) < INTACT).astype(float)
        return Data(before, before * (draw.random(shape) < 1 - drop))
    # Prompts differ in how likely their words are right: beta around the mean.
    right = draw.binomial(WORDS, draw.beta(8 * INTACT, 8 * (1 - INTACT), shape))
    stays = draw.beta(1.5 * (1 - drop), 1.5 * drop, shape)
    return Data(right / WORDS, draw.binomial(right, stays) / WORDS)


def tails(bounds: list[Bounds], truth: float) -> Tails:
    """Return how often bounds miss the truth."""
    low, high = (np.concatenate(column) for column in zip(*bounds, strict=True))
    miss = 1e-9
    return Tails(
        float((low > truth + miss).mean()),
        float((high < truth - miss).mean()),
        float((high - low).mean()),
    )


def ours(data: Data, label: str) -> Bounds:
    """Return the bounds of the relative drop that studies report."""
    resampler = Resampler(label)
    return _each(data, relative_drop, resampler)


def ours_of_difference(data: Data, label: str) -> Bounds:
    """Return the bounds of before minus after that studies report."""
    return _each(data, lambda before, after: before - after, Resampler(label))


def ours_of_groups(data: Data, label: str) -> Bounds:
    """Return the bounds of the relative drop with every four prompts drawn together."""
    strata, prompts, _ = data.before.shape
    groups = {str(h): [n // ALIKE for n in range(prompts)] for h in range(strata)}
    return _each(data, relative_drop, Resampler(label), groups)


def _each(
    data: Data,
    statistic: Callable[[Sample, Sample], Sample],
    resampler: Resampler,
    groups: dict[str, list[int]] | None = None,
) -> Bounds:
    bounds = []
    for number in range(data.before.shape[2]):
        arms = (
            resampler.rate(
                {str(h): list(rows) for h, rows in enumerate(scores[:, :, number])}, groups
            )
            for scores in data
        )
        interval = statistic(*arms).interval("")
        bounds.append((interval.low, interval.high))
    low, high = np.array(bounds, dtype=np.float64).T
    return Bounds(low, high)


def percentile(data: Data, label: str) -> Bounds:
    """Return percentiles of resampled prompts, widened by Wilson where no prompt differs."""
    draws, _ = _drops(data, label)
    low, high = np.percentile(draws, [100 * LOW, 100 * HIGH], axis=0)
    before, after = (scores.mean(axis=(0, 1)) for scores in data)
    wilson = _wilson(after, data.after[:, :, 0].size)
    equal = np.ptp(data.after, axis=(0, 1)) == 0
    low = np.where(equal, np.minimum(low, 1 - wilson.high / before), low)
    high = np.where(equal, np.maximum(high, 1 - wilson.low / before), high)
    reach = _wilson(np.zeros(1), data.after[:, :, 0].size).high / before
    unchanged = ~equal & (np.abs(draws).max(axis=0) < 1e-12)
    return Bounds(np.where(unchanged, -reach, low), np.where(unchanged, reach, high))


def bca(data: Data, label: str) -> Bounds:
    """Return bias-corrected and accelerated bounds (Efron 1987), the influence by hand."""
    draws, values = _drops(data, label)
    share = (draws < values).mean(axis=0) + (draws == values).mean(axis=0) / 2
    bias = scipy_stats.norm.ppf(np.clip(share, 1e-4, 1 - 1e-4))
    before, after = data
    ratio = after.mean(axis=(0, 1)) / before.mean(axis=(0, 1))
    influence = ratio * (before - before.mean(axis=1, keepdims=True)) - (
        after - after.mean(axis=1, keepdims=True)
    )
    squares = (influence**2).sum(axis=(0, 1))
    cubes = (influence**3).sum(axis=(0, 1))
    skew = np.divide(cubes, 6 * squares**1.5, out=np.zeros_like(cubes), where=squares > 0)
    ends = []
    for z in (-Z, Z):
        place = scipy_stats.norm.cdf(bias + (bias + z) / (1 - skew * (bias + z)))
        rank = np.clip((place * len(draws)).astype(int), 0, len(draws) - 1)
        ends.append(np.take_along_axis(np.sort(draws, axis=0), rank[None], axis=0)[0])
    return Bounds(ends[0], ends[1])


def _drops(data: Data, label: str) -> tuple[Array, Array]:
    """Return drops of multinomial resamples [R, S] within strata, and the drops themselves [S]."""
    draw = rng(f"intervals/bootstrap/{label}")
    strata, size, _ = data.before.shape
    weights = draw.multinomial(size, np.full(size, 1 / size), (strata, RESAMPLES)) / size
    means = [np.einsum("hrn,hns->rs", weights, scores, optimize=True) / strata for scores in data]
    before, after = (scores.mean(axis=(0, 1)) for scores in data)
    return 1 - means[1] / means[0], 1 - after / before


def _wilson(share: Array, trials: int) -> Bounds:
    centre = (share + Z * Z / (2 * trials)) / (1 + Z * Z / trials)
    half = Z * np.sqrt(share * (1 - share) / trials + (Z / (2 * trials)) ** 2)
    half = half / (1 + Z * Z / trials)
    return Bounds(np.maximum(0, centre - half), np.minimum(1, centre + half))


def tango(data: Data, _: str) -> Bounds:
    """Return Tango's score interval (1998) of the difference of paired rates."""
    before, after = data
    size = before[:, :, 0].size
    lost = ((before == 1) & (after == 0)).sum(axis=(0, 1))
    gained = ((before == 0) & (after == 1)).sum(axis=(0, 1))
    ends = []
    for side in (-1, 1):
        low, high = np.full(len(lost), -1 + 1e-12), np.full(len(lost), 1 - 1e-12)
        for _step in range(50):
            middle = (low + high) / 2
            score = tango_score(lost, gained, size, middle)
            # The score falls along the difference; its bounds are where it is +z and -z.
            beyond = score > -side * Z
            low, high = np.where(beyond, middle, low), np.where(beyond, high, middle)
        ends.append((low + high) / 2)
    return Bounds(ends[0], ends[1])


def tango_score(lost: Array, gained: Array, size: int, difference: Array) -> Array:
    """Return the score statistic of a difference of paired rates, by Tango's closed form."""
    linear = -lost - gained + (2 * size - lost + gained) * difference
    constant = -gained * difference * (1 - difference)
    chance = (np.sqrt(np.maximum(linear**2 - 8 * size * constant, 0)) - linear) / (4 * size)
    variance = size * (2 * chance + difference * (1 - difference))
    score: Array = (lost - gained - size * difference) / np.sqrt(np.maximum(variance, 1e-300))
    return score


def newcombe(data: Data, _: str) -> Bounds:
    """Return Newcombe's method 10 (1998) of the difference of paired rates."""
    before, after = data
    size = before[:, :, 0].size
    both = (before * after).sum(axis=(0, 1))
    first, second = before.sum(axis=(0, 1)), after.sum(axis=(0, 1))
    cross = both * (size - first - second + both) - (first - both) * (second - both)
    cross = np.where(cross > 0, np.maximum(cross - size / 2, 0), cross)
    root = np.sqrt(first * second * (size - first) * (size - second))
    phi = np.divide(cross, root, out=np.zeros_like(root), where=root > 0)
    gap = (first - second) / size
    wilson = [_wilson(count / size, size) for count in (first, second)]
    down = first / size - wilson[0].low, wilson[1].high - second / size
    up = wilson[0].high - first / size, second / size - wilson[1].low
    return Bounds(
        *(
            gap + side * np.sqrt(np.maximum(0, left**2 - 2 * phi * left * right + right**2))
            for side, (left, right) in ((-1, down), (1, up))
        )
    )


DROPS: dict[str, Method] = {"percentile": percentile, "BCa": bca, "resect": ours}
PAIRS: dict[str, Method] = {"Tango": tango, "Newcombe 10": newcombe, "resect": ours_of_difference}


GROUPS: dict[str, Method] = {"apart": ours, "together": ours_of_groups}


def drop_cell(
    prompts: int, drop: float, draws: int, *, graded: bool, methods: dict[str, Method]
) -> dict[str, Tails]:
    """Return each method's tails for three models of as many prompts."""
    labels = [f"drops/{prompts}/{drop}/{graded}/{n}" for n in range(max(1, draws // BLOCK))]
    shape = SEEDS * CATEGORIES, prompts // CATEGORIES
    blocks = [(label, data_sets(label, *shape, drop, graded=graded)) for label in labels]
    return {
        method: tails([bounds(data, label) for label, data in blocks], drop)
        for method, bounds in methods.items()
    }


def drop_rows(draws: int) -> Iterator[str]:
    """Yield the table of relative drops."""
    head = "| prompts | scores | drop | none left | " + " | ".join(
        f"{method}: low, high, coverage, width" for method in DROPS
    )
    yield head + " |"
    yield "|---" * (4 + len(DROPS)) + "|"
    for graded in (False, True):
        for prompts in (30, 60):
            for drop in (0.05, 0.10, 0.80, 0.85, 0.90, 0.95, 0.98):
                by_method = drop_cell(prompts, drop, draws, graded=graded, methods=DROPS)
                none = (1 - INTACT * (1 - drop)) ** (SEEDS * prompts)
                yield (
                    f"| {SEEDS} x {prompts} | {'graded' if graded else '0/1'} | {drop:.2f} | "
                    f"{'' if graded else f'{none:.3f}'} | "
                    + " | ".join(shown(tail) for tail in by_method.values())
                    + " |"
                )


def shown(tail: Tails) -> str:
    """Return tails, coverage and width as a cell of a table."""
    return f"{tail.low:.3f}, {tail.high:.3f}, {tail.coverage:.3f}, {tail.width:.3f}"


def pair_cell(prompts: int, lost: float, gained: float, draws: int) -> dict[str, Tails]:
    """Return each method's tails of a difference; `lost` and `gained` are shares of prompts."""
    name = f"pairs/{prompts}/{lost}/{gained}"
    blocks = []
    for number in range(max(1, draws // BLOCK)):
        draw = rng(f"intervals/{name}/{number}")
        chances = [lost, gained, 0.8 - lost, 0.2 - gained]
        kinds = draw.choice(4, (1, prompts, BLOCK), p=chances)
        before = np.isin(kinds, (0, 2)).astype(float)
        after = np.isin(kinds, (1, 2)).astype(float)
        blocks.append((f"{name}/{number}", Data(before, after)))
    return {
        method: tails([bounds(data, label) for label, data in blocks], lost - gained)
        for method, bounds in PAIRS.items()
    }


def pair_rows(draws: int) -> Iterator[str]:
    """Yield the table of paired differences."""
    heads = " | ".join(f"{method}: low, high, coverage, width" for method in PAIRS)
    yield f"| prompts | lost | gained | {heads} |"
    yield "|---" * (3 + len(PAIRS)) + "|"
    for prompts in (30, 60, 180):
        for lost, gained in ((0.02, 0.0), (0.05, 0.0), (0.05, 0.02), (0.10, 0.0), (0.10, 0.05)):
            by_method = pair_cell(prompts, lost, gained, draws)
            yield (
                f"| {prompts} | {lost:.2f} | {gained:.2f} | "
                + " | ".join(shown(tail) for tail in by_method.values())
                + " |"
            )


def worst_tails(method: Method, prompts: int) -> tuple[float, float]:
    """Return how often a bound of a difference misses the truth that is worst for it, and that.

    All outcomes are visited: how many prompts of as many are lost and gained.
    """
    outcomes = [
        (lost, gained) for lost in range(prompts + 1) for gained in range(prompts + 1 - lost)
    ]
    before, after = np.zeros((2, 1, prompts, len(outcomes)))
    for number, (lost, gained) in enumerate(outcomes):
        before[0, :lost, number] = 1
        after[0, lost : lost + gained, number] = 1
    bounds = method(Data(before, after), f"worst/{prompts}")
    counts = [[lost, gained, prompts - lost - gained] for lost, gained in outcomes]
    worst = (0.0, 0.0)
    for loss, gain in itertools.product(TRUTHS, TRUTHS):
        if loss + gain <= 1:
            chance = scipy_stats.multinomial.pmf(counts, prompts, [loss, gain, 1 - loss - gain])
            # The two sides mirror each other.
            worst = max(worst, (float(chance[bounds.low > loss - gain + 1e-9].sum()), loss))
    return worst


def worst_rows(_: int) -> Iterator[str]:
    """Yield the table of worst tails."""
    yield "| prompts | " + " | ".join(f"{method}: worst tail, at lost" for method in PAIRS) + " |"
    yield "|---" * (1 + len(PAIRS)) + "|"
    for prompts in (20, 30, 60):
        worst = [worst_tails(method, prompts) for method in PAIRS.values()]
        yield f"| {prompts} | " + " | ".join(f"{tail:.3f}, {loss:g}" for tail, loss in worst) + " |"


def group_cell(prompts: int, drop: float, draws: int) -> dict[str, Tails]:
    """Return the tails with prompts of which every four share the chance that harm stays."""
    blocks = []
    for label in (f"groups/{prompts}/{drop}/{n}" for n in range(max(1, draws // BLOCK))):
        draw = rng(f"intervals/{label}")
        shape = SEEDS, prompts, BLOCK
        stays = draw.beta(1 - drop, drop, (SEEDS, prompts // ALIKE, BLOCK)).repeat(ALIKE, axis=1)
        before = (draw.random(shape) < INTACT).astype(float)
        blocks.append((label, Data(before, before * (draw.random(shape) < stays))))
    return {
        method: tails([bounds(data, label) for label, data in blocks], drop)
        for method, bounds in GROUPS.items()
    }


def group_rows(draws: int) -> Iterator[str]:
    """Yield the table of prompts that say the same."""
    heads = " | ".join(f"{method}: low, high, coverage, width" for method in GROUPS)
    yield f"| prompts | drop | {heads} |"
    yield "|---" * (2 + len(GROUPS)) + "|"
    for prompts, drop in itertools.product((40, 80), (0.80, 0.90, 0.95)):
        by_method = group_cell(prompts, drop, draws)
        cells = " | ".join(shown(tail) for tail in by_method.values())
        yield f"| {SEEDS} x {prompts} | {drop:.2f} | {cells} |"


def reversals(method: Method, sizes: range) -> int:
    """Return at how many sizes an upper bound of the drop falls when one more answer breaks."""
    count = 0
    for size in sizes:
        highs = []
        for broken in range(4):
            after = np.ones((1, size, 1))
            after[0, :broken] = 0
            highs.append(float(method(Data(np.ones_like(after), after), f"order/{size}").high[0]))
        count += highs != sorted(highs)
    return count


def order_rows(_: int) -> Iterator[str]:
    """Yield the table of order reversals."""
    yield "| method | sizes of 20 to 100 prompts at which more broken answers pass more easily |"
    yield "|---|---|"
    for method, bounds in DROPS.items():
        yield f"| {method} | {reversals(bounds, range(20, 101))} of 81 |"


class Support(NamedTuple):
    """How often a claim is supported.

    Attributes:
        models: Of these models.
        wrong: Of these models, although the mean of their own true drops is below the threshold.
        recipe: Of the recipe; None where there are too few models.
    """

    models: float
    wrong: float
    recipe: float | None


def support(
    mean: float,
    spread: float,
    count: int,
    draws: int,
    *,
    threshold: float = 0.80,
) -> Support:
    """Return how often the lower bound of a mean drop reaches `threshold`.

    The intact models always show the behaviour; a model's true drop is normal with the spread, at
    most 1.
    """
    name = f"models/{mean}/{spread}/{count}"
    draw = rng(f"intervals/{name}")
    models = wrong = recipe = 0
    for number in range(draws):
        if number % BLOCK == 0:
            resampler = Resampler(f"{name}/{number}")
            intact = [resampler.rate({f"{n}/": [1.0] * PROMPTS}) for n in range(count)]
        truths = np.minimum(draw.normal(mean, spread, count), 1)
        harmful = draw.random((count, PROMPTS)) < 1 - truths[:, None]
        samples = [
            relative_drop(intact[n], resampler.rate({f"{n}/": list(row.astype(float))}))
            for n, row in enumerate(harmful)
        ]
        statements = of_models("drop", samples)
        passes = statements.models.low is not None and statements.models.low >= threshold
        models += passes
        wrong += passes and float(truths.mean()) < threshold
        recipe += statements.recipe is not None and (statements.recipe.low or 0) >= threshold
    share = recipe / draws if statements.recipe is not None else None
    return Support(models / draws, wrong / draws, share)


def model_rows(draws: int) -> Iterator[str]:
    """Yield the table of claims about models."""
    counts = (3, 5, 10)
    yield (
        "| true drop (threshold .80) | "
        + " | ".join(f"{count} models: these, of it wrongly, recipe" for count in counts)
        + " |"
    )
    yield "|---" * (1 + len(counts)) + "|"
    for mean, spread in ((0.80, 0.05), (0.80, 0.10), (0.75, 0.15), (0.90, 0.05), (0.90, 0.10)):
        cells = []
        for count in counts:
            supported = support(mean, spread, count, draws)
            recipe = "none" if supported.recipe is None else f"{supported.recipe:.3f}"
            cells.append(f"{supported.models:.3f}, {supported.wrong:.3f}, {recipe}")
        yield f"| {mean:.2f} ± {spread:.2f} | " + " | ".join(cells) + " |"


TABLES = {
    "drops": drop_rows,
    "pairs": pair_rows,
    "worst": worst_rows,
    "groups": group_rows,
    "order": order_rows,
    "models": model_rows,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tables", nargs="*", default=list(TABLES), metavar="table")
    parser.add_argument("--draws", type=int, default=1000)
    options = parser.parse_args()
    for table in options.tables or TABLES:
        print(f"\n{table}, {options.draws} draws a cell")
        for line in TABLES[table](options.draws):
            print(line, flush=True)


if __name__ == "__main__":
    main()
