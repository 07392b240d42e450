"""A resampler that remembers what depends on the shape of strata alone, for thousands of runs."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from resect.stats import Array, Resampler, Sample
from resect.stats.counts import Ends
from resect.stats.resample import Groups, Scores, _members, extended, widened


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


@dataclass(frozen=True)
class Layout:
    """What a rate over some prompts weighs them with, whatever their scores.

    Attributes:
        order: [N], the places of its prompts among all scores that are given, stratum by stratum.
        starts: [S], where each stratum begins in that order.
        members: [N], the column of each prompt in `weights`.
        prompts: [groups], the number of the prompt (or group) of each column, which several seeds
            may be asked.
        shares: [N], what each prompt weighs in the value.
        weights: [R, groups], what each group weighs in each draw; a draw's weights are 1 in all.
        added: [R], the weight of one more prompt.
        trials: Number of different prompts.
        freedom: The same, less one for each stratum of prompts.
    """

    order: np.ndarray
    starts: np.ndarray
    members: np.ndarray
    prompts: np.ndarray
    shares: Array
    weights: Array
    added: Array
    trials: int
    freedom: int

    def rate(self, given: Array) -> Sample:
        """Return the rate of scores in [0, 1], none of them missing."""
        mean = self.mean(given)
        below = (1 - self.added) * mean.draws
        return Sample(
            mean.value, mean.draws, trials=self.trials, below=below, above=below + self.added
        )

    def spread(self, given: Array) -> Sample:
        """Return the mean of any numbers, none of them missing; see `Resampler.spread`."""
        return widened(self.mean(given), self.freedom)

    def reaching(self, given: Array) -> Sample:
        """Return the mean of any numbers, none of them missing; see `Resampler.reaching`."""
        return extended(self.mean(given), self.freedom, self.added, self._furthest(given))

    def _furthest(self, given: Array) -> Ends:
        """Return how far the furthest prompts lie from the mean of their stratum."""
        if not self.order.size:
            return Ends(0.0, 0.0)
        scores = given[self.order]
        lengths = np.diff([*self.starts, len(scores)])
        apart = scores - np.repeat(np.add.reduceat(scores, self.starts) / lengths, lengths)
        grouped = np.bincount(self.members, apart) / np.bincount(self.members)
        means = np.bincount(self.prompts, grouped) / np.bincount(self.prompts)
        return Ends(min(0.0, float(means.min())), max(0.0, float(means.max())))

    def mean(self, given: Array) -> Sample:
        """Return the mean of any numbers, none of them missing."""
        if not self.order.size:
            return Sample(math.nan, np.full(len(self.added), np.nan))
        scores = given[self.order]
        sums = np.bincount(self.members, scores, self.weights.shape[1])
        # Equal scores are to give equal draws.
        lowest = np.minimum.reduceat(scores, self.starts).mean()
        highest = np.maximum.reduceat(scores, self.starts).mean()
        draws = np.clip(self.weights @ sums, lowest, highest)
        value = min(highest, max(lowest, float(self.shares @ scores)))
        return Sample(value, draws, trials=self.trials)


class QuickResampler(Resampler):
    """The draws of a `Resampler` in a fraction of its time.

    Where all prompts are scored, which of them say the same is the same for all arms and runs of a
    simulation, so that weights, their sums and counts of prompts are computed once.
    """

    def __init__(self, label: str, *, together: bool = False):
        """Name the draws by `label`; `together` as for `Resampler`."""
        super().__init__(label, together=together)
        self._shapes: dict[Hashable, list[_Stratum]] = {}
        self._counts: dict[Hashable, int] = {}
        self._sizes: dict[Hashable, float] = {}
        self.layouts: dict[Hashable, Layout] = {}
        self.categories: dict[Hashable, list[str]] = {}

    def layout(self, places: Mapping[str, Sequence[int]], groups: Groups) -> Layout:
        """Return the layout of a rate over strata of prompts, all of them scored.

        Args:
            places: For each stratum the places of its prompts among all scores of an arm.
            groups: For each stratum the group of each prompt.
        """
        scored: dict[str, Scores] = {name: [1.0] * len(row) for name, row in places.items()}
        strata = list(self._weighed(scored, groups))
        order = np.array([place for row in places.values() for place in row], dtype=np.intp)
        lengths = [len(row) for row in places.values()]
        columns = [stratum.weights.shape[1] for stratum in strata]
        firsts = np.cumsum([0, *columns])[:-1]
        members = [
            np.arange(length) + first if stratum.members is None else stratum.members + first
            for stratum, length, first in zip(strata, lengths, firsts, strict=True)
        ]
        blocks = [stratum.weights / stratum.totals[:, None] / len(strata) for stratum in strata]
        if not strata:
            nobody = np.zeros(0, dtype=np.intp)
            empty = np.zeros((self.resamples, 0))
            return Layout(order, nobody, nobody, nobody, np.zeros(0), empty, self._even, 0, 0)
        trials = self.trials(_flags(scored), groups)
        numbers: dict[tuple[str, int], int] = {}
        prompts = [
            numbers.setdefault((self.prompts_of(stratum.name), column), len(numbers))
            for stratum, width in zip(strata, columns, strict=True)
            for column in range(width)
        ]
        return Layout(
            order,
            np.cumsum([0, *lengths])[:-1],
            np.concatenate(members),
            np.array(prompts, dtype=np.intp),
            np.repeat([1 / (length * len(strata)) for length in lengths], lengths),
            np.concatenate(blocks, axis=1),
            -np.expm1(np.log1p(-self._even) / self._independent(scored, groups)),
            trials,
            trials - len({self.prompts_of(name) for name in places}),
        )

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
