"""The cut of the largest margin of likelihoods: chosen on one half, tested on the other.

As in `resect.studies.choice` the choice is made anew in each draw for what compares two choices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from resect.studies.cells import Cell, Cut
from resect.studies.choice import Choice
from resect.studies.effects import effect
from resect.studies.guard import cost_of
from resect.studies.measurements import Measurements
from resect.studies.rises import HARM, Rises, or_least, rises_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from resect.stats import Array

Flags: TypeAlias = "npt.NDArray[np.bool_]"
Places: TypeAlias = "npt.NDArray[np.intp]"


class Wanted(NamedTuple):
    """What a cut is chosen for.

    Attributes:
        sides: Probes of the side sets.
        factor: How many times what a side set loses is taken off the margin.
        rise: The least rise of harmful answers, in nats a token.
        budget: Largest relative drop of utility.
    """

    sides: tuple[str, ...]
    factor: float
    rise: float
    budget: float


class Chosen(NamedTuple):
    """The cut of each seed, and what all of them do on the test half.

    Attributes:
        choice: The cuts.
        rises: What these do.
        anew: The same with the luck of the choice in the draws, for what compares two choices.
    """

    choice: Choice
    rises: Rises
    anew: Rises


class _Merit(NamedTuple):
    """What cuts are chosen by: whether one raises harmful answers by enough, then its margin."""

    bites: bool
    margin: float


class _Tried(NamedTuple):
    """What a cut does to one model on the selection half.

    Attributes:
        merit: By estimates, None where it is not within the guard.
        bites: [R], whether it raises harmful answers by enough in each draw.
        margins: [R], its margin in each draw, -inf where it is not within the guard.
    """

    merit: _Merit | None
    bites: Flags
    margins: Array


def choose_by_margin(measured: Measurements, wanted: Wanted, cuts: Sequence[Cut]) -> Chosen:
    """Choose each seed's cut on the selection half, and measure them on the test half."""
    design = measured.config
    tried = {
        seed: {cut: _try(measured, wanted, cut, seed) for cut in cuts} for seed in design.seeds
    }
    chosen = {seed: _best(grid) for seed, grid in tried.items()}
    cells = [Cell(design.subject, seed, cut, ()) for seed, cut in chosen.items()]
    rises = rises_of(measured, wanted.sides, cells, "test")
    moves = _moves(measured, wanted, tried, chosen)
    return Chosen(
        Choice(design.subject, chosen, effect(measured, cells, "test")),
        rises,
        Rises(
            rises.harm.moved(moves[HARM]),
            {side: rise.moved(moves[side]) for side, rise in rises.sides.items()},
        ),
    )


def _try(measured: Measurements, wanted: Wanted, cut: Cut, seed: int) -> _Tried:
    import numpy as np

    design, factor = measured.config, wanted.factor
    cells = [Cell(design.subject, seed, cut, ())]
    cost = cost_of(measured, cells, "selection")
    rises = rises_of(measured, wanted.sides, cells, "selection")
    margin = rises.margin(factor)
    merit = None
    if cost.within(design, wanted.budget):
        merit = _Merit(rises.harm.value >= wanted.rise, or_least(margin.value))
    within = cost.drawn_within(design, wanted.budget) & np.isfinite(margin.draws)
    return _Tried(merit, rises.harm.draws >= wanted.rise, np.where(within, margin.draws, -math.inf))


def _best(grid: Mapping[Cut, _Tried]) -> Cut | None:
    """Return the best cut of a grid by estimates, None where none is within the guard."""
    merits = {cut: tried.merit for cut, tried in grid.items() if tried.merit is not None}
    return max(merits, key=lambda cut: merits[cut], default=None)


def _drawn(grid: Mapping[Cut, _Tried]) -> Places:
    """Return the place of the cut that each draw would choose [R], the grid's length for none."""
    import numpy as np

    margins = np.array([tried.margins for tried in grid.values()])
    bites = np.array([tried.bites for tried in grid.values()]) & (margins > -math.inf)
    bitten = np.where(bites.any(axis=0) & ~bites, -math.inf, margins)
    return np.where((bitten > -math.inf).any(axis=0), bitten.argmax(axis=0), len(grid))


def _moves(
    measured: Measurements,
    wanted: Wanted,
    tried: Mapping[int, Mapping[Cut, _Tried]],
    chosen: Mapping[int, Cut | None],
) -> dict[str, Array]:
    """Return by how much each draw's choices change the rise of each set on the test half [R]."""
    import numpy as np

    design = measured.config
    moves: dict[str, Array] = dict.fromkeys((HARM, *wanted.sides), np.zeros(1))
    for seed, grid in tried.items():
        places = _drawn(grid)
        for name in moves:
            cells = {cut: [Cell(design.subject, seed, cut, ())] for cut in grid}
            rises = [measured.rise(cells[cut], name, half="test").value for cut in grid]
            table = np.nan_to_num([*rises, 0.0])
            cut = chosen[seed]
            usual = 0.0 if cut is None else table[list(grid).index(cut)]
            moves[name] = moves[name] + (table[places] - usual) / len(tried)
    return moves
