"""Draws over prompts, the same prompts for every arm.

The draws are those of the Bayesian bootstrap (Rubin 1981): prompt i weighs g_i / Σ g, with g from a
gamma distribution. For the bounds one more prompt is added, scored 0 for the lower and 1 for the
upper one. In one stratum of n prompts g has the shape 1, and the bounds are

    those of Clopper and Pearson (1934) if the scores are 0 and 1,
    those of Learned-Miller and Thomas (2019, arXiv:1905.06208) for scores in [0, 1].

With H strata a stratum's mean has the variance s² / (n - 1 + 2 / H) with s² = Σ (x - mean)² / n: a
degree of freedom goes to each stratum's mean, and two come back by the added prompt.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from statistics import fmean
from typing import TYPE_CHECKING

from resect.records import Interval
from resect.stats.counts import LEVEL, Ends, clopper_pearson
from resect.stats.draws import rng
from resect.stats.sample import Array, Sample

if TYPE_CHECKING:
    import numpy as np

# With 1,999 draws 2.5 % of 1,999 + 1 is a whole number, as a bound that is itself a draw wants it.
RESAMPLES = 1999
Scores = Sequence[float | None]
Groups = Mapping[str, Sequence[Hashable]]


def rate(name: str, scores: Scores) -> Interval:
    """Return the mean of the scored values with its interval; unscored (None) are left out."""
    import numpy as np

    scored = [value for value in scores if value is not None]
    if not scored:
        return Interval(name, None)
    if all(value in (0, 1) for value in scored):
        low, high = clopper_pearson(sum(value == 1 for value in scored), len(scored))
        return Interval(name, float(np.mean(scored)), low, high)
    return Resampler(f"rate/{name}").rate({"": scored}).interval(name)


class Resampler:
    """Bootstrap over prompts within strata, the same resampled prompts for every arm.

    A stratum is a (seed, category) pair: prompts are exchangeable within it, seeds and tasks are
    kept apart. A rate is the mean over strata of the mean over a stratum's prompts. Where several
    seeds are asked the same prompts, these are resampled together and count once. Prompts that say
    the same (`groups`) are resampled together too.
    """

    def __init__(self, label: str, resamples: int = RESAMPLES, *, together: bool = False):
        """Name the draws by `label`; `together` if strata `SEED/CATEGORY` share their prompts."""
        self.label = label
        self.resamples = resamples
        self.together = together
        self._weights: dict[tuple[str, int, float], Array] = {}
        # An even grid in random order, so that what the added prompt alone decides is exact.
        order = rng(f"bootstrap/{label}/added", 0).permutation(resamples)
        self._even: Array = (order + 1) / (resamples + 1)

    def rate(self, strata: Mapping[str, Scores], groups: Groups | None = None) -> Sample:
        """Return the mean over strata of the mean score; None entries are unscored and left out.

        Values outside [0, 1] have no ends that are known; they get what `mean` gives.

        Args:
            strata: For each stratum the scores, in [0, 1], in the order of its prompts, the same
                order for every arm.
            groups: For each stratum the group of each prompt (see `near_duplicates`), the same for
                every arm; None if every prompt stands for itself.
        """
        import numpy as np

        sample = self.mean(strata, groups)
        scored = [score for scores in strata.values() for score in scores if score is not None]
        if not scored or min(scored) < 0 or max(scored) > 1:
            return sample
        # The weight of one of n + 1 prompts has the distribution beta(1, n).
        added = -np.expm1(np.log1p(-self._even) / self._independent(strata, groups))
        below = (1 - added) * sample.draws
        return Sample(
            sample.value, sample.draws, trials=sample.trials, below=below, above=below + added
        )

    def mean(self, strata: Mapping[str, Scores], groups: Groups | None = None) -> Sample:
        """Return what `rate` returns, for values that are no scores and have no known ends."""
        import numpy as np

        values, draws = [], []
        places = len({self.prompts_of(stratum) for stratum in strata})
        for stratum, scores in strata.items():
            scored = np.array([np.nan if s is None else s for s in scores], dtype=np.float64)
            finite = ~np.isnan(scored)
            if not finite.any():
                continue
            members = _members(stratum, len(scored), groups)
            weights = self._drawn(stratum, int(members.max()) + 1, places)
            sums = np.bincount(members[finite], scored[finite], weights.shape[1])
            counts = np.bincount(members[finite], minlength=weights.shape[1])
            # Equal scores are to give equal draws, which a quotient of two sums need not.
            lowest, highest = scored[finite].min(), scored[finite].max()
            with np.errstate(invalid="ignore"):
                draws.append(np.clip((weights @ sums) / (weights @ counts), lowest, highest))
            values.append(float(scored[finite].mean()))
        if not values:
            return Sample(math.nan, np.full(self.resamples, np.nan))
        flags = {name: [s is not None for s in scores] for name, scores in strata.items()}
        trials = self.trials(flags, groups)
        return Sample(float(np.mean(values)), np.mean(draws, axis=0), trials=trials)

    def spread(self, strata: Mapping[str, Scores], groups: Groups | None = None) -> Sample:
        """Return what `mean` returns, with draws that spread as those of Student's t.

        For values whose ends are not known there is no added prompt, and what it would have brought
        must come otherwise: with N prompts in H strata the draws have the variance of a mean times
        (N - H) / (N - H + 2), and a normal's quantiles where t's of N - H degrees of freedom are
        called for. Both are made good by one factor, the same for every draw, so that arms stay
        paired. Without a degree of freedom there are no draws.

        Args:
            strata: As for `rate`, any numbers.
            groups: As for `rate`.
        """
        sample = self.mean(strata, groups)
        return widened(sample, self._freedom(sample, strata))

    def reaching(self, strata: Mapping[str, Scores], groups: Groups | None = None) -> Sample:
        """Return what `mean` returns, with one more prompt as far out as the furthest one seen.

        For skewed values whose ends are not known: a bound reaches further on the side where single
        prompts do. The draws have the variance of a mean; the added prompt lies as far from the
        mean as the furthest prompt (or group) lies from that of its stratum. Without a degree of
        freedom there are no draws. Join such samples by `difference`.

        Args:
            strata: As for `rate`, any numbers.
            groups: As for `rate`.
        """
        import numpy as np

        sample = self.mean(strata, groups)
        freedom = self._freedom(sample, strata)
        if freedom < 1:
            return extended(sample, freedom, self._even, Ends(0.0, 0.0))
        added = -np.expm1(np.log1p(-self._even) / self._independent(strata, groups))
        return extended(sample, freedom, added, self._furthest(strata, groups))

    def _freedom(self, sample: Sample, strata: Mapping[str, Scores]) -> int:
        """Return the number of different prompts, less one for each stratum of them."""
        scored = {self.prompts_of(name) for name, scores in strata.items() if any_scored(scores)}
        return sample.trials - len(scored)

    def _furthest(self, strata: Mapping[str, Scores], groups: Groups | None) -> Ends:
        """Return how far the furthest prompts (or groups) lie from the mean of their stratum.

        Of a prompt that several seeds are asked it is the mean over these.
        """
        apart: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
        for name, scores in strata.items():
            same: defaultdict[int, list[float]] = defaultdict(list)
            for member, score in zip(_members(name, len(scores), groups), scores, strict=True):
                if score is not None:
                    same[int(member)].append(score)
            if same:
                mean = fmean([score for scored in same.values() for score in scored])
                for member, scored in same.items():
                    apart[self.prompts_of(name), member].append(fmean(scored) - mean)
        means = [fmean(apart_by_seed) for apart_by_seed in apart.values()]
        return Ends(min(0.0, *means), max(0.0, *means))

    def prompts_of(self, stratum: str) -> str:
        """Return a name that strata of the same prompts share."""
        return stratum.partition("/")[2] if self.together else stratum

    def trials(self, scored: Mapping[str, Sequence[bool]], groups: Groups | None = None) -> int:
        """Return the number of different prompts (or groups) of which any has a score."""
        import numpy as np

        counts: dict[str, int] = {}
        for name, flags in scored.items():
            prompts = self.prompts_of(name)
            members = np.unique(_members(name, len(flags), groups)[np.array(flags, dtype=bool)])
            counts[prompts] = max(counts.get(prompts, 0), len(members))
        return sum(counts.values())

    def _drawn(self, stratum: str, size: int, strata: int) -> Array:
        """Return weights [R, size] of the prompts (or groups) of a stratum, one of `strata`."""
        stratum = self.prompts_of(stratum)
        # A Dirichlet distribution of n equal shapes a gives a mean the variance s² / (n a + 1).
        # Two prompts in each of many strata would want the shape 0.
        shape = max(0.05, 1 - 2 * (1 - 1 / strata) / size)
        key = (stratum, size, shape)
        if key not in self._weights:
            draw = rng(f"bootstrap/{self.label}/{stratum}/{size}")
            self._weights[key] = draw.standard_gamma(shape, size=(self.resamples, size))
        return self._weights[key]

    def _independent(self, strata: Mapping[str, Scores], groups: Groups | None) -> float:
        """Return how many independent prompts of equal weight say as much (Kish 1965).

        With w the share of each prompt (or group) in the mean, that is 1 / Σ w².
        """
        shares: defaultdict[tuple[str, int], float] = defaultdict(float)
        scored = {name: scores for name, scores in strata.items() if any_scored(scores)}
        for stratum, scores in scored.items():
            flags = [score is not None for score in scores]
            for member, flag in zip(_members(stratum, len(scores), groups), flags, strict=True):
                if flag:
                    share = 1 / (len(scored) * sum(flags))
                    shares[self.prompts_of(stratum), int(member)] += share
        return 1 / math.fsum(share**2 for share in shares.values())


@lru_cache(maxsize=256)
def _wider(freedom: int) -> float:
    """Return by which factor draws of a mean are spread; `Resampler.spread` says why."""
    from scipy import stats as scipy_stats  # a second to load

    tail = (1 - LEVEL) / 2
    wider = float(scipy_stats.t.isf(tail, freedom) / scipy_stats.norm.isf(tail))
    return wider * math.sqrt((freedom + 2) / freedom)


def widened(sample: Sample, freedom: int) -> Sample:
    """Return a mean with draws that spread as Student's t of so many degrees of freedom.

    `Resampler.spread` says why and how; without a degree of freedom there are no draws.
    """
    if freedom < 1:
        return _without_draws(sample)
    wider = _wider(freedom)
    centred = sample.draws - sample.value
    return Sample(sample.value, sample.value + centred * wider, trials=sample.trials)


def extended(sample: Sample, freedom: int, added: Array, furthest: Ends) -> Sample:
    """Return a mean with one more prompt as far out as the furthest one; see `reaching`.

    Args:
        sample: The mean.
        freedom: Number of prompts, less one for each stratum.
        added: [R], the weight of one more prompt.
        furthest: How far the furthest prompts lie below (≤ 0) and above the mean of their stratum.
    """
    if freedom < 1:
        return _without_draws(sample)
    apart = (sample.draws - sample.value) * math.sqrt((freedom + 2) / freedom)
    below, above = ((1 - added) * apart + added * end for end in furthest)
    return Sample(
        sample.value,
        sample.value + apart,
        trials=sample.trials,
        below=sample.value + below,
        above=sample.value + above,
    )


def _without_draws(sample: Sample) -> Sample:
    import numpy as np

    return Sample(sample.value, np.full(len(sample.draws), np.nan), trials=sample.trials)


def any_scored(scores: Scores) -> bool:
    """Return whether any reply of a stratum has a score."""
    return any(score is not None for score in scores)


def _members(stratum: str, size: int, groups: Groups | None) -> np.ndarray:
    """Return the number of the group of each prompt [size], in order of first appearance."""
    import numpy as np

    if groups is None:
        return np.arange(size)
    numbers: dict[Hashable, int] = {}
    labels = groups[stratum]
    return np.array([numbers.setdefault(label, len(numbers)) for label in labels], dtype=np.intp)


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
    members: dict[Hashable, list[float]] = {}
    for score, cluster in zip(scores, clusters, strict=True):
        scored = members.setdefault(cluster, [])
        if score is not None:
            scored.append(score)
    return [sum(scored) / len(scored) if scored else None for scored in members.values()]
