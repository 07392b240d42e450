"""A resampler that remembers what depends on the shape of strata alone, for thousands of runs."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from resect.stats import Array, Resampler, Sample
from resect.stats.resample import Groups, Scores, _members


class _Stratum(NamedTuple):
    """What the prompts of a stratum weigh.

    Attributes:
        name: Its name.
        members: Group of each prompt; None if each stands for itself.
        weights: [R, groups].
        totals: [R], the weights of all prompts.
    """

    name: str
    members: np.ndarray | None
    weights: Array
    totals: Array


class QuickResampler(Resampler):
    """The draws of a `Resampler`, bit for bit, in a fraction of its time.

    Where all prompts are scored, which of them say the same is the same for all arms and runs of a
    simulation, so that weights, their sums and counts of prompts are computed once.
    """

    def __init__(self, label: str, *, together: bool = False):
        """Name the draws by `label`; `together` as for `Resampler`."""
        super().__init__(label, together=together)
        self._shapes: dict[Hashable, list[_Stratum]] = {}
        self._counts: dict[Hashable, int] = {}
        self._sizes: dict[Hashable, float] = {}

    def mean(self, strata: Mapping[str, Scores], groups: Groups | None = None) -> Sample:
        """Return what `Resampler.mean` returns."""
        if not _all_scored(_flags(strata)):
            return super().mean(strata, groups)
        key = _shape(_flags(strata), groups)
        if key not in self._shapes:
            self._shapes[key] = list(self._weighed(strata, groups))
        values, draws = [], []
        for name, members, weights, totals in self._shapes[key]:
            scored: Array = np.array(strata[name], dtype=np.float64)
            sums = scored
            if members is not None:
                sums = np.bincount(members, scored, weights.shape[1]).astype(np.float64)
            draws.append(np.clip((weights @ sums) / totals, scored.min(), scored.max()))
            values.append(float(scored.mean()))
        trials = self.trials(_flags(strata), groups)
        return Sample(float(np.mean(values)), np.mean(draws, axis=0), trials=trials)

    def trials(self, scored: Mapping[str, Sequence[bool]], groups: Groups | None = None) -> int:
        """Return what `Resampler.trials` returns."""
        if not _all_scored(scored):
            return super().trials(scored, groups)
        key = _shape(scored, groups)
        if key not in self._counts:
            self._counts[key] = super().trials(scored, groups)
        return self._counts[key]

    def _independent(self, strata: Mapping[str, Scores], groups: Groups | None) -> float:
        if not _all_scored(_flags(strata)):
            return super()._independent(strata, groups)
        key = _shape(_flags(strata), groups)
        if key not in self._sizes:
            self._sizes[key] = super()._independent(strata, groups)
        return self._sizes[key]

    def _weighed(self, strata: Mapping[str, Scores], groups: Groups | None) -> Iterator[_Stratum]:
        """Yield what `Resampler.mean` weighs the strata with."""
        places = len({self.prompts_of(stratum) for stratum in strata})
        for stratum, scores in strata.items():
            members = _members(stratum, len(scores), groups)
            weights = self._drawn(stratum, int(members.max()) + 1, places)
            counts = np.bincount(members, minlength=weights.shape[1])
            apart = np.array_equal(members, np.arange(len(scores)))
            yield _Stratum(stratum, None if apart else members, weights, weights @ counts)


def _flags(strata: Mapping[str, Scores]) -> dict[str, list[bool]]:
    return {name: [score is not None for score in scores] for name, scores in strata.items()}


def _all_scored(flags: Mapping[str, Sequence[bool]]) -> bool:
    return bool(flags) and all(row and all(row) for row in flags.values())


def _shape(scored: Mapping[str, Sequence[bool]], groups: Groups | None) -> Hashable:
    """Return what strata of the same prompts, all of them scored, share."""
    return (
        tuple((name, len(flags)) for name, flags in scored.items()),
        None if groups is None else tuple(tuple(groups[name]) for name in scored),
    )
