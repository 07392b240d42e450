"""Draws over prompts, the same prompts for every arm."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from resect.records import Interval
from resect.stats.counts import wilson
from resect.stats.draws import rng
from resect.stats.sample import Array, Sample

RESAMPLES = 2000


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
