"""The best cut of a grid: chosen on one half of the prompts, tested once on the other.

The best of several is a maximum, so on the prompts of the choice it is too good. Every arm and
every rival gets the same grid, and each seed, being a model of its own, chooses its own cut: the q
at which utility breaks down moves from model to model.

What two choices do cannot be compared by their test halves alone. With equal dose-responses the
luck of the choice still picks a larger cut for one of them, and no number of test prompts shows
that it was luck. So the choice is made anew in each bootstrap draw of the selection half, and what
that moves is added to the draws of the test half (`Choice.anew`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from statistics import fmean
from typing import TYPE_CHECKING, TypeAlias

from resect.stats import Sample
from resect.studies.cells import Cell, Cut, Kind
from resect.studies.effects import Effect, effect
from resect.studies.guard import cost_of
from resect.studies.measurements import Measurements
from resect.studies.weighing import percent

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from resect.stats import Array

Flags: TypeAlias = "npt.NDArray[np.bool_]"


def _nothing() -> Array:
    """Return that no draw moves anything."""
    import numpy as np

    return np.zeros(1)


@dataclass(frozen=True)
class Choice:
    """The cut of each seed, and what the cuts do on the prompts that had no part in the choice.

    Attributes:
        role: The model that is cut.
        cuts: Seed to cut; None where no cut of the grid lowers harm within the limits.
        effect: Of all seeds together, on the test half.
        moved: [R], by how much more harm falls on the test half with the cuts that each draw of
            the selection half would choose.
    """

    role: str
    cuts: Mapping[int, Cut | None]
    effect: Effect
    moves: Callable[[], Array] = _nothing

    @cached_property
    def anew(self) -> Sample:
        """What a choice within the budget does to harm: the luck of the choice is in the draws.

        For what compares two choices. What the chosen cuts themselves do is `effect`.
        """
        return self.effect.harm_drop.moved(self.moves())

    @property
    def cells(self) -> list[Cell]:
        """The chosen variants, one a seed."""
        return [Cell(self.role, seed, cut, ()) for seed, cut in self.cuts.items()]

    @property
    def q(self) -> float:
        """Mean fraction of the ranking over seeds; 0 where no cut was chosen."""
        return fmean(0.0 if cut is None else cut.q for cut in self.cuts.values())

    def of_kind(self, kind: Kind, target: str) -> list[Cell]:
        """Return the controls of each seed's cut: another kind, of its size."""
        return [
            Cell(self.role, seed, None if cut is None else Cut(target, kind, cut.q), ())
            for seed, cut in self.cuts.items()
        ]

    def __str__(self) -> str:
        """Say the fractions in a sentence."""
        fractions = {None if cut is None else cut.q for cut in self.cuts.values()}
        words = ["no cut" if q is None else percent(q) for q in sorted(fractions, key=_or_zero)]
        return "q = " + ", ".join(words)


def _or_zero(q: float | None) -> float:
    return q or 0.0


def choose(
    measured: Measurements,
    role: str,
    cuts: Sequence[Cut],
    budget: float,
    seeds: Sequence[int] | None = None,
) -> Choice:
    """Choose each seed's cut on the selection half, and measure them on the test half.

    A cut is chosen that lowers harm most within the limits of the guard, by estimates, or the
    smallest one that cannot be told from it.

    Args:
        measured: The run.
        role: The model that is cut.
        cuts: The grid, small cuts first.
        budget: Largest relative drop of utility.
        seeds: The seeds; None for all.
    """
    seeds = measured.config.seeds if seeds is None else seeds
    grids = {seed: _Grid.of(measured, role, cuts, budget, seed) for seed in seeds}
    chosen = {seed: grid.best() for seed, grid in grids.items()}
    cells = [Cell(role, seed, cut, ()) for seed, cut in chosen.items()]
    moves = partial(_moves, measured, role, grids, chosen)
    return Choice(role, chosen, effect(measured, cells, "test"), moves)


@dataclass(frozen=True)
class _Grid:
    """What the cuts of a grid do to one model on the selection half.

    Attributes:
        cuts: C cuts that may be chosen in some draw, small ones first.
        drops: Relative drop of harm by each.
        within: [C, R], whether each draw has it lower harm within the limits of the guard.
        allowed: [C], whether the estimates do.
    """

    cuts: tuple[Cut, ...]
    drops: tuple[Sample, ...]
    within: Flags
    allowed: Flags

    @classmethod
    def of(
        cls, measured: Measurements, role: str, cuts: Sequence[Cut], budget: float, seed: int
    ) -> _Grid:
        """Read a grid, of equal sizes the first one first."""
        import numpy as np

        ordered = sorted(cuts, key=lambda cut: cut.q)
        drops, within, allowed = [], [], []
        for cut in ordered:
            cells = [Cell(role, seed, cut, ())]
            drop = effect(measured, cells, "selection").harm_drop
            cost = cost_of(measured, cells, "selection")
            drops.append(drop)
            allowed.append(drop.value > 0 and cost.within(measured.config, budget))
            within.append((drop.draws > 0) & cost.drawn_within(measured.config, budget))
        return cls(tuple(ordered), tuple(drops), np.array(within), np.array(allowed))

    def best(self) -> Cut | None:
        """Return the smallest cut whose drop is within a standard error of the largest one.

        The largest of several drops owes part of its lead to luck, and larger cuts cost more, on
        other prompts too (the one-standard-error rule: Breiman, Friedman, Olshen and Stone 1984).
        """
        import numpy as np

        if not self.cuts:
            return None
        values = np.array([[drop.value] for drop in self.drops])
        (place,) = self._best(values, self.allowed[:, None])
        return None if place < 0 else self.cuts[place]

    def drawn(self) -> np.ndarray:
        """Return the place of the cut that each draw would choose [R], -1 for none."""
        import numpy as np

        if not self.cuts:
            return np.full(1, -1)
        return self._best(np.array([drop.draws for drop in self.drops]), self.within)

    def _best(self, drops: Array, allowed: Flags) -> np.ndarray:
        """Return the place of the best cut in each column of drops [C, R], -1 for none."""
        import numpy as np

        errors = np.array([_deviation(drop.draws) for drop in self.drops])
        drops = np.where(allowed, drops, -np.inf)
        least = drops.max(axis=0) - errors[drops.argmax(axis=0)]
        return np.where(allowed.any(axis=0), (drops >= least).argmax(axis=0), -1)


def _deviation(draws: Array) -> float:
    """Return the standard deviation; a draw in which the intact model shows no harm has no drop."""
    import numpy as np

    known = draws[np.isfinite(draws)]
    return float(known.std()) if known.size else 0.0


def _moves(
    measured: Measurements,
    role: str,
    grids: Mapping[int, _Grid],
    chosen: Mapping[int, Cut | None],
) -> Array:
    """Return by how much each draw's choice changes the drop of harm on the test half [R].

    A drop of several models is the mean of theirs, weighted by their intact rates.
    """
    import numpy as np

    total, weights = np.zeros(1), 0.0
    for seed, grid in grids.items():
        drops = {
            tried: effect(measured, [Cell(role, seed, tried, ())], "test").harm_drop.value
            for tried in grid.cuts
        }
        table = np.nan_to_num([*drops.values(), 0.0])
        cut = chosen[seed]
        usual = 0.0 if cut is None else drops[cut]
        intact = effect(measured, [Cell(role, seed, None, ())], "test").harm.value
        weight = 0.0 if np.isnan(intact) else intact
        total = total + weight * (table[grid.drawn()] - np.nan_to_num(usual))
        weights += weight
    return total / weights if weights else 0 * total
