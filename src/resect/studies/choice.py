"""The best cut of a grid: chosen on one half of the prompts, tested once on the other.

The best of several is a maximum, so on the prompts of the choice it is too good. Every arm and
every rival gets the same grid, and each seed, being a model of its own, chooses its own cut: the q
at which utility breaks down moves from model to model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from resect.stats import Sample
from resect.studies.cells import Cell, Cut, Kind
from resect.studies.effects import Effect, effect
from resect.studies.guard import cost_of
from resect.studies.measurements import Measurements
from resect.studies.weighing import percent


@dataclass(frozen=True)
class Choice:
    """The cut of each seed, and what the cuts do on the prompts that had no part in the choice.

    Attributes:
        role: The model that is cut.
        cuts: Seed to cut; None where no cut of the grid lowers harm within the limits.
        effect: Of all seeds together, on the test half.
    """

    role: str
    cuts: Mapping[int, Cut | None]
    effect: Effect

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
    chosen = {seed: _best(measured, role, cuts, budget, seed) for seed in seeds}
    cells = [Cell(role, seed, cut, ()) for seed, cut in chosen.items()]
    return Choice(role, chosen, effect(measured, cells, "test"))


def _best(
    measured: Measurements, role: str, cuts: Sequence[Cut], budget: float, seed: int
) -> Cut | None:
    """Return the smallest cut whose drop is within a standard error of the largest one.

    The largest of several drops owes part of its lead to luck, and larger cuts cost more, on other
    prompts too (the one-standard-error rule: Breiman, Friedman, Olshen and Stone 1984).
    """
    drops: dict[Cut, Sample] = {}
    for cut in cuts:
        cells = [Cell(role, seed, cut, ())]
        drop = effect(measured, cells, "selection").harm_drop
        if drop.value > 0 and cost_of(measured, cells, "selection").within(measured.config, budget):
            drops[cut] = drop
    if not drops:
        return None
    largest = max(drops.values(), key=lambda drop: drop.value)
    least = largest.value - float(largest.draws.std())
    near = [cut for cut, drop in drops.items() if drop.value >= least]
    # Of equal sizes the first in the grid.
    return min(near, key=lambda cut: cut.q)
