"""Which questions a choice from a grid needs: the rule of `docs/design/halving.md`.

    ranking   the cuts of a grid that differ in q alone, small ones first; drops and costs are taken
              to grow along it
    top       its largest cut whose replies stay coherent, or later the largest within the guard
    error     the standard deviation of a drop's bootstrap draws

On the selection half of each model: tops are asked for harm; of each ranking whose top does more
than `error` and more than what was found before, the smallest cut within an `error` of the top is
sought by halving and asked for utility. On the test half: what `choose` chooses among the cuts that
were asked for both, and the controls of its size.

Nothing is asked here. What is needed is yielded as cells of one probe and one half, and read once
they were asked, so that a run and a simulation follow the same rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, replace
from statistics import pstdev
from typing import NamedTuple

from resect.studies.cells import Cell, Cut, Kind
from resect.studies.choice import choose
from resect.studies.design import Design
from resect.studies.effects import effect, effect_probes, intact_of
from resect.studies.guard import BROKEN, cost_of
from resect.studies.halves import Half
from resect.studies.measurements import Measurements

HARM = "generation"
BREAKS = "a smaller cut of its ranking breaks replies"
IDLE = "the largest cut of its ranking that keeps replies whole lowers harm by no more than chance"
HOPELESS = "its ranking does no more than a cut of another one that was found before"
COSTLY = "a smaller cut of its ranking costs too much"
ENOUGH = "a smaller cut of its ranking does as much"
WEAK = "a larger cut of its ranking does more"
UNCHOSEN = "it was not chosen"

# What must be asked before it goes on; in the end why cuts were not asked.
Steps = Generator[list[Cell], None, dict[Cut, str]]
_Place = Generator[list[Cell], None, int]


@dataclass(frozen=True)
class Searched:
    """A choice that a study makes on each model by itself.

    Attributes:
        role: The model that is cut.
        cuts: The grid, as `resect.studies.choice.choose` gets it.
        budget: Largest relative drop of utility.
        beside: Controls of the chosen cut's size that the claim names; they are asked for harm.
        compared: Whether a claim compares it with another choice, for which it must be known what
            other prompts would have chosen.
    """

    role: str
    cuts: tuple[Cut, ...]
    budget: float
    beside: tuple[Kind, ...] = ()
    compared: bool = False


def rankings_of(cuts: Iterable[Cut]) -> list[list[Cut]]:
    """Return the cuts that differ in q alone together, small ones first."""
    rankings: dict[Cut, list[Cut]] = {}
    for cut in cuts:
        rankings.setdefault(replace(cut, q=1.0), []).append(cut)
    return [sorted(ranking, key=lambda cut: cut.q) for ranking in rankings.values()]


class _Drop(NamedTuple):
    """A relative drop of harm on the selection half, and its standard error."""

    value: float
    error: float


class _Ranking:
    """A ranking on one model: what its cuts do on the selection half, and how far it was searched.

    Attributes:
        cuts: Its cuts, small ones first.
        top: Index of the largest that is coherent; -1 for none.
        edge: Index of the largest that costs little enough, where that was sought.
        candidate: Index of the cut that may be chosen; None for none.
        closed: Why it was not searched further; "" where it was.
    """

    def __init__(self, measured: Measurements, searched: Searched, seed: int, cuts: list[Cut]):
        self.cuts = cuts
        self.top = len(cuts) - 1
        self.edge: int | None = None
        self.candidate: int | None = None
        self.closed = ""
        self._measured = measured
        self._budget = searched.budget
        self._cells = [Cell(searched.role, seed, cut, ()) for cut in cuts]

    def harm(self, index: int) -> list[Cell]:
        return [self._cells[index].part(HARM, "selection")]

    def both(self, index: int) -> list[Cell]:
        probes = effect_probes(self._measured.config)
        return [self._cells[index].part(probe, "selection") for probe in probes]

    def is_asked(self, index: int) -> bool:
        """Return whether a cut was asked for both."""
        return _covered(self._measured, [self._cells[index]], "selection")

    def is_coherent(self, index: int) -> bool:
        """Return whether replies stay coherent, by estimate; where nobody tells, they do."""
        cells = [self._cells[index]]
        broken, usual = (
            self._measured.rate(variant, HARM, half="selection", outcomes=BROKEN).value
            for variant in (cells, intact_of(cells))
        )
        return math.isnan(usual) or broken - usual <= self._measured.config.guard.incoherent

    def drop(self, index: int) -> _Drop:
        drop = effect(self._measured, [self._cells[index]], "selection").harm_drop
        # A draw in which the intact model shows no harm has no drop.
        known = [draw for draw in drop.draws.tolist() if math.isfinite(draw)]
        return _Drop(drop.value, pstdev(known) if known else 0.0)

    def is_within(self, index: int) -> bool:
        """Return whether a cut may be chosen at its cost."""
        cost = cost_of(self._measured, [self._cells[index]], "selection")
        return cost.within(self._measured.config, self._budget)

    def beside(self) -> list[Cell]:
        """Return what the candidate's neighbours are asked: other prompts might choose them."""
        if self.candidate is None:
            return []
        indices = (self.candidate - 1, self.candidate + 1)
        return [cell for index in indices if 0 <= index <= self.top for cell in self.both(index)]

    def why(self, index: int) -> str:
        """Return why a cut was not asked for both."""
        if index > self.top:
            return BREAKS
        if self.edge is not None and index > self.edge:
            return COSTLY
        if self.closed:
            return self.closed
        return ENOUGH if self.candidate is not None and index > self.candidate else WEAK


def explore(measured: Measurements, searched: Searched, seed: int) -> Steps:
    """Ask what the choice of one model needs on the selection half.

    Args:
        measured: The run, in which what was yielded stands once it was asked.
        searched: The choice.
        seed: The model.

    Yields:
        Cells of one probe and one half. The next ones depend on what they say.

    Returns:
        Why cuts were not asked for both, for those that were not.
    """
    rankings = [_Ranking(measured, searched, seed, cuts) for cuts in rankings_of(searched.cuts)]
    yield [cell for ranking in rankings for cell in ranking.harm(ranking.top)]
    for ranking in rankings:
        if not ranking.is_coherent(ranking.top):
            ranking.top = yield from _last(-1, ranking.top, ranking.harm, ranking.is_coherent)
    whole = [ranking for ranking in rankings if ranking.top >= 0]
    best: list[_Drop] = []
    for ranking in sorted(whole, key=lambda ranking: -_or_least(ranking.drop(ranking.top).value)):
        top = ranking.drop(ranking.top)
        if not top.value > top.error:
            ranking.closed = IDLE
        elif any(top.value <= drop.value + drop.error for drop in best):
            ranking.closed = HOPELESS
        else:
            yield from _search(ranking)
            if ranking.candidate is not None:
                best.append(ranking.drop(ranking.candidate))
    if searched.compared:
        yield [cell for ranking in whole for cell in ranking.beside()]
    return {
        cut: ranking.why(index)
        for ranking in rankings
        for index, cut in enumerate(ranking.cuts)
        if not ranking.is_asked(index)
    }


def _search(ranking: _Ranking) -> Generator[list[Cell], None, None]:
    """Find the cut of a ranking that may be chosen, from its top down."""
    index = yield from _smallest_near(ranking, ranking.top)
    yield ranking.both(index)
    if ranking.is_within(index):
        ranking.candidate = index
        return
    ranking.edge = yield from _last(-1, index, ranking.both, ranking.is_within)
    if ranking.edge < 0:
        return
    edge = ranking.drop(ranking.edge)
    if not edge.value > edge.error:
        ranking.closed = IDLE
        return
    index = yield from _smallest_near(ranking, ranking.edge)
    yield ranking.both(index)
    # By estimates a smaller cut may cost more than a larger one.
    ranking.candidate = index if ranking.is_within(index) else ranking.edge


def _smallest_near(ranking: _Ranking, top: int) -> _Place:
    """Find the index of the smallest cut that does as much as that at `top`, but for an error."""
    drop = ranking.drop(top)

    def is_weak(index: int) -> bool:
        value = ranking.drop(index).value
        return not (value > 0 and value >= drop.value - drop.error)

    last = yield from _last(-1, top, ranking.harm, is_weak)
    return last + 1


def _last(
    low: int, high: int, ask: Callable[[int], list[Cell]], holds: Callable[[int], bool]
) -> _Place:
    """Find the last index between two at which something holds that holds up to some index.

    It is taken to hold at `low`, and not at `high`.
    """
    while high - low > 1:
        middle = (low + high) // 2
        yield ask(middle)
        if holds(middle):
            low = middle
        else:
            high = middle
    return low


def _or_least(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def tested(measured: Measurements, searched: Searched, seed: int) -> list[Cell]:
    """Return what must be asked on the test half: the chosen cut of a model and its controls."""
    design = measured.config
    cut = choose(measured, searched.role, searched.cuts, searched.budget, [seed]).cuts[seed]
    cells = (Cell(searched.role, seed, grid_cut, ()) for grid_cut in searched.cuts)
    rivals = [cell for cell in cells if _covered(measured, [cell], "selection")]
    parts = [cell.part(HARM, "test") for cell in rivals if searched.compared]
    return parts if cut is None else parts + on_test(design, searched, seed, cut)


def on_test(design: Design, searched: Searched, seed: int, cut: Cut) -> list[Cell]:
    """Return what a claim reads if a cut is chosen: it, and controls of its size."""
    chosen = Cell(searched.role, seed, cut, ())
    sizes = [Cut(design.target, control, cut.q) for control in searched.beside]
    return [
        *(chosen.part(probe, "test") for probe in effect_probes(design)),
        *(replace(chosen, cut=size).part(HARM, "test") for size in sizes),
    ]


def on_grid(design: Design, searched: Searched, seed: int) -> list[Cell]:
    """Return all that a search may ask of the cuts of a grid, whichever is chosen."""
    cells = [Cell(searched.role, seed, cut, ()) for cut in searched.cuts]
    parts = [cell.part(probe, "selection") for cell in cells for probe in effect_probes(design)]
    return parts + [cell.part(HARM, "test") for cell in cells if searched.compared]


def answer(
    measured: Measurements,
    choices: Iterable[Searched],
    seed: int,
    ask: Callable[[list[Cell]], None],
) -> dict[Cut, str]:
    """Ask all that the choices of one model and the claims on them need.

    Args:
        measured: The run.
        choices: The choices; an empty grid has none.
        seed: The model.
        ask: Asks cells of one probe and one half; after it `measured` holds what they said.

    Returns:
        Why cuts were not asked everything, for those that were not.
    """
    choices = [searched for searched in dict.fromkeys(choices) if searched.cuts]
    not_asked: dict[Cut, str] = {}
    running = [explore(measured, searched, seed) for searched in choices]
    while running:
        batch: dict[Cell, None] = {}
        going = []
        for steps in running:
            try:
                batch |= dict.fromkeys(next(steps))
            except StopIteration as end:
                # What one choice does without, another one may have asked.
                not_asked |= end.value
            else:
                going.append(steps)
        running = going
        _ask(measured, batch, ask)
    needed = [cell for searched in choices for cell in tested(measured, searched, seed)]
    _ask(measured, dict.fromkeys(needed), ask)
    reasons: dict[Cut, str] = {}
    for searched in choices:
        for cut in searched.cuts:
            cells = [Cell(searched.role, seed, cut, ())]
            if not _covered(measured, cells, ""):
                reasons[cut] = (
                    UNCHOSEN if _covered(measured, cells, "selection") else not_asked[cut]
                )
    return reasons


def _ask(measured: Measurements, cells: Iterable[Cell], ask: Callable[[list[Cell]], None]) -> None:
    todo = [cell for cell in cells if not measured.covers([cell], cell.probes[0], cell.half)]
    if todo:
        ask(todo)


def _covered(measured: Measurements, cells: list[Cell], half: Half) -> bool:
    return all(measured.covers(cells, probe, half) for probe in effect_probes(measured.config))
