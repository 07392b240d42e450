"""Intervals, tests and seeded draws.

All intervals are 95 %. A draw's generator is named by its use, so that adding a study changes no
other study's draw.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats as scipy_stats

from resect.records import Interval

LEVEL = 0.95
RESAMPLES = 2000

Array = npt.NDArray[np.float64]


def seed_of(label: str, seed: int = 0) -> int:
    """Return a 63-bit seed that depends on the label and the seed alone."""
    digest = hashlib.sha256(f"{seed}/{label}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def rng(label: str, seed: int = 0) -> np.random.Generator:
    """Return the generator named by `label`; the same label and seed give the same stream."""
    return np.random.default_rng(seed_of(label, seed))


def rate(name: str, scores: Sequence[float | None]) -> Interval:
    """Return the mean of the scored values with Wilson's interval; unscored (None) are left out.

    Wilson's interval is for 0/1 values; graded scores in [0, 1] get it too, where it is
    conservative, since their variance is at most that of a 0/1 value of the same mean.
    """
    scored = [value for value in scores if value is not None]
    if not scored:
        return Interval(name, None)
    mean = float(np.mean(scored))
    low, high = wilson(mean * len(scored), len(scored))
    return Interval(name, mean, low, high)


def wilson(hits: float, trials: int) -> tuple[float, float]:
    """Return Wilson's score interval of a rate (Wilson 1927); hits may be fractional."""
    z = float(scipy_stats.norm.ppf(0.5 + LEVEL / 2))
    share = hits / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = (
        z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials**2)) / (1 + z**2 / trials)
    )
    return max(0.0, centre - half), min(1.0, centre + half)


class Sample:
    """A statistic with its bootstrap draws; arithmetic is carried out draw by draw.

    Draws of two samples may be combined only if they come from the same resampled prompts, which
    holds for everything that one `Resampler` returns.
    """

    def __init__(
        self,
        value: float,
        draws: Array,
        exact: tuple[float, float] | None = None,
        trials: int = 0,
    ):
        """Hold a point estimate, draws [R] and, where known, bounds that need no resampling.

        `trials` is the number of different prompts behind it, 0 where that is not known.
        """
        self.value = value
        self.draws = draws
        self.exact = exact
        self.trials = trials

    def interval(self, name: str, level: float = LEVEL) -> Interval:
        """Return the percentile interval, widened to the exact bounds where they are known.

        A bootstrap of values that are all equal has no spread, however few they are; the exact
        bounds (Wilson) keep such an interval honest.
        """
        if math.isnan(self.value):
            return Interval(name, None)
        finite = self.draws[np.isfinite(self.draws)]
        if finite.size == 0:
            return Interval(name, self.value)
        tail = 100 * (1 - level) / 2
        low, high = (float(bound) for bound in np.percentile(finite, [tail, 100 - tail]))
        if self.exact is not None:
            low, high = min(low, self.exact[0]), max(high, self.exact[1])
        return Interval(name, self.value, min(low, self.value), max(high, self.value))

    def __sub__(self, other: Sample) -> Sample:
        """Return the paired difference.

        Where both sides have exact bounds and the draws of the difference have no spread to speak
        of (the middle 95 % of them are equal), the bounds of the difference are those of the sides.
        """
        exact = None
        if self.exact is not None and other.exact is not None:
            tails = np.nanpercentile(self.draws - other.draws, [2.5, 97.5])
            if tails[1] - tails[0] >= 1e-12:
                return Sample(self.value - other.value, self.draws - other.draws)
            exact = (self.exact[0] - other.exact[1], self.exact[1] - other.exact[0])
        return Sample(self.value - other.value, self.draws - other.draws, exact)


class Resampler:
    """Bootstrap over prompts within strata, the same resampled prompts for every arm.

    A stratum is a (seed, category) pair: prompts are exchangeable within it, seeds and tasks are
    kept apart. A rate is the mean over strata of the mean over a stratum's prompts. Where several
    seeds are asked the same prompts, these are resampled together and count once.
    """

    def __init__(self, label: str, resamples: int = RESAMPLES, *, together: bool = False):
        """Name the draws by `label`; `together` if strata `SEED/CATEGORY` share their prompts."""
        self.label = label
        self.resamples = resamples
        self.together = together
        self._counts: dict[tuple[str, int], Array] = {}

    def _weights(self, stratum: str, size: int) -> Array:
        """Return bootstrap weights [R, size] whose rows sum to 1."""
        stratum = self.prompts_of(stratum)
        key = (stratum, size)
        if key not in self._counts:
            draw = rng(f"bootstrap/{self.label}/{stratum}/{size}")
            counts = draw.multinomial(size, np.full(size, 1 / size), size=self.resamples)
            self._counts[key] = counts / size
        return self._counts[key]

    def rate(self, strata: dict[str, list[float | None]]) -> Sample:
        """Return the mean over strata of the mean score; None entries are unscored and left out.

        Args:
            strata: For each stratum the scores, in [0, 1], in the order of its prompts, the same
                order for every arm.
        """
        sample = self.mean(strata)
        # Weights such as 1/6 do not sum to 1 exactly: equal scores may differ in a last bit.
        if np.isnan(sample.draws).all() or np.nanstd(sample.draws) > 1e-12:
            return sample
        scored = [s for scores in strata.values() for s in scores if s is not None]
        hits = float(np.mean(scored)) * sample.trials
        return Sample(sample.value, sample.draws, wilson(hits, sample.trials), sample.trials)

    def mean(self, strata: dict[str, list[float | None]]) -> Sample:
        """Return what `rate` returns, for values that are no scores and have no exact bounds."""
        values, draws = [], []
        for stratum, scores in strata.items():
            scored = np.array([np.nan if s is None else s for s in scores], dtype=np.float64)
            known = ~np.isnan(scored)
            if not known.any():
                continue
            weights = self._weights(stratum, len(scored))[:, known]
            total = weights.sum(axis=1)
            with np.errstate(invalid="ignore"):
                draws.append(weights @ scored[known] / total)
            values.append(float(scored[known].mean()))
        if not values:
            return Sample(math.nan, np.full(self.resamples, np.nan))
        trials = self.trials({name: [s is not None for s in own] for name, own in strata.items()})
        return Sample(float(np.mean(values)), np.mean(np.stack(draws), axis=0), trials=trials)

    def prompts_of(self, stratum: str) -> str:
        """Return a name that strata of the same prompts share."""
        return stratum.partition("/")[2] if self.together else stratum

    def trials(self, scored: Mapping[str, Sequence[bool]]) -> int:
        """Return the number of different prompts of which any has a score."""
        found: dict[str, int] = {}
        for name, own in scored.items():
            prompts = self.prompts_of(name)
            found[prompts] = max(found.get(prompts, 0), sum(own))
        return sum(found.values())


def relative_drop(intact: Sample, cut: Sample) -> Sample:
    """Return 1 - cut / intact, draw by draw; NaN where the intact rate is zero.

    Where no prompt changed, Wilson's bound on how many of all prompts may change stands in for the
    missing spread.
    """
    if intact.value == 0 or math.isnan(intact.value):
        return Sample(math.nan, np.full(len(cut.draws), np.nan))
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = 1 - cut.draws / intact.draws
    exact = None
    if cut.exact is not None:
        exact = (1 - cut.exact[1] / intact.value, 1 - cut.exact[0] / intact.value)
    elif cut.trials and np.nanmax(np.abs(draws)) < 1e-12:
        reach = wilson(0, cut.trials)[1] / intact.value
        exact = (-reach, min(reach, 1.0))
    return Sample(1 - cut.value / intact.value, draws, exact, cut.trials)


def best_within(budget: float, harm_drops: list[Sample], utility_drops: list[Sample]) -> Sample:
    """Return the largest harm drop among cuts whose utility drop is within the budget.

    The choice is repeated in every draw, so that its luck is inside the interval. No cut (a drop
    of 0 at no cost) is always among the choices.

    Args:
        budget: Largest relative utility drop, a fraction.
        harm_drops: One sample a cut.
        utility_drops: Utility drops of the same cuts.
    """

    def choose(harm: Array, utility: Array) -> Array:
        allowed = np.where(utility <= budget, np.nan_to_num(harm, nan=0.0), 0.0)
        best: Array = np.maximum(allowed.max(axis=0), 0.0)
        return best

    value = choose(
        np.array([[sample.value] for sample in harm_drops]),
        np.array([[sample.value] for sample in utility_drops]),
    )
    draws = choose(
        np.stack([sample.draws for sample in harm_drops]),
        np.stack([sample.draws for sample in utility_drops]),
    )
    chosen = [
        sample
        for sample, cost in zip(harm_drops, utility_drops, strict=True)
        if cost.value <= budget and sample.value == value[0]
    ]
    return Sample(float(value[0]), draws, chosen[0].exact if chosen else None)


def average(samples: Sequence[Sample], *, together: bool = False) -> Sample:
    """Return the mean of samples, such as those of the models of several seeds.

    Where one of them has exact bounds, the mean has those of the square-and-add rule (MOVER: Zou
    and Donner 2008): l = v - sqrt(sum (v_i - l_i)^2) / k, and u likewise. Samples of the same
    prompts (`together`) are not independent; they get the means of their bounds, which are wider.
    """
    value = float(np.mean([one.value for one in samples]))
    draws = np.mean(np.stack([one.draws for one in samples]), axis=0)
    if math.isnan(value) or all(one.exact is None for one in samples):
        return Sample(value, draws)
    below, above = [], []
    for one in samples:
        bounds = one.interval("")
        below.append(one.value - (one.value if bounds.low is None else bounds.low))
        above.append((one.value if bounds.high is None else bounds.high) - one.value)
    joined = math.fsum if together else lambda parts: math.hypot(*parts)
    exact = (value - joined(below) / len(samples), value + joined(above) / len(samples))
    return Sample(value, draws, exact)


def overlap_p_value(population: int, first: int, second: int, shared: int) -> float:
    """Return P(overlap ≥ shared) for two random sets of these sizes (hypergeometric)."""
    return float(scipy_stats.hypergeom.sf(shared - 1, population, first, second))


def ratio(numerator: Sample, denominator: Sample) -> Sample:
    """Return numerator / denominator, draw by draw; NaN where the denominator's rate is zero.

    Where one arm has no spread and its exact bounds are known, the ratio of the bounds stands in
    for the missing spread.
    """
    if denominator.value == 0 or math.isnan(denominator.value):
        return Sample(math.nan, np.full(len(numerator.draws), np.nan))
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = numerator.draws / denominator.draws
    exact = None
    if numerator.exact is not None:
        low, high = numerator.exact
        exact = (low / denominator.value, high / denominator.value)
    return Sample(numerator.value / denominator.value, draws, exact)


def cluster_means(
    scores: Sequence[float | None], clusters: Sequence[Hashable]
) -> list[float | None]:
    """Return one score a cluster: the mean of its scored samples, None if it has none.

    Several samples of a prompt are not several prompts. With one mean a prompt, a bootstrap over
    prompts is the one-stage cluster bootstrap (Davison and Hinkley 1997, section 3.8), and every
    prompt weighs the same however many of its samples could be scored.

    Args:
        scores: A score a sample; None is unscored.
        clusters: The prompt of each sample. Clusters come back in order of first appearance.
    """
    found: dict[Hashable, list[float]] = {}
    for score, cluster in zip(scores, clusters, strict=True):
        known = found.setdefault(cluster, [])
        if score is not None:
            known.append(score)
    return [sum(known) / len(known) if known else None for known in found.values()]
