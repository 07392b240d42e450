"""What a search asks of a grid; the slow twin is the choice among all cuts of the grid."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from resect.planted.verdicts.ground import design_of, section_of
from resect.planted.verdicts.simulate import Size
from resect.stats import Sample
from resect.studies import STUDIES, Measurements
from resect.studies.cells import Cell, Cut
from resect.studies.choice import choose
from resect.studies.design import Design
from resect.studies.halves import Half
from resect.studies.halving import (
    BREAKS,
    COSTLY,
    ENOUGH,
    HOPELESS,
    IDLE,
    UNCHOSEN,
    WEAK,
    Searched,
    answer,
    on_grid,
    on_test,
)

DESIGN = design_of(Size(models=1), Path("nowhere"))
GRID = tuple(Cut("generation", "target", q) for q in (0.001, 0.002, 0.003, 0.004, 0.005, 0.006))
BUDGET = 0.05
Does = Callable[[Cut], float]


def nothing(_cut: Cut) -> float:
    return 0.0


class Told(Measurements):
    """What cuts do, as it is told; everything was asked, or some parts."""

    def __init__(
        self,
        drop: Does,
        cost: Does = nothing,
        broken: Does = nothing,
        *,
        spread: float = 0.01,
        design: Design = DESIGN,
    ):
        super().__init__(design, Path("nowhere"))
        self.does = {"generation": drop, "utility": cost}
        self.broken = broken
        self.spread = spread
        self.parts: list[Cell] | None = None

    def covers(self, cells: Iterable[Cell], probe: str, half: Half = "") -> bool:
        return self.parts is None or all(
            replace(cell, probes=()).part(probe, name) in self.parts
            for cell in cells
            if cell.cut is not None
            for name in ([half] if half else ("selection", "test"))
        )

    def categories(self, cells: Iterable[Cell], probe: str, *, half: Half = "") -> list[str]:
        return ["task"]

    def rate(
        self,
        cells: Iterable[Cell],
        probe: str,
        category: str = "",
        *,
        half: Half = "",
        other_than: str = "",
        outcomes: Collection[str] = (),
    ) -> Sample:
        (cell,) = cells
        if not self.covers([cell], probe, half):
            return Sample(np.nan, np.full(4, np.nan))
        if cell.cut is None:
            return Sample(0.0 if outcomes else 1.0, np.full(4, 0.0 if outcomes else 1.0))
        if outcomes:
            return Sample(self.broken(cell.cut), np.full(4, self.broken(cell.cut)))
        value = 1 - self.does[probe](cell.cut)
        spread = self.spread * np.array([-1, 1, -1, 1])
        return Sample(value, value + spread)

    def ask(self, cells: Iterable[Cell]) -> None:
        cells = list(cells)
        assert self.parts is not None
        assert not set(cells) & set(self.parts), "asked twice"
        self.parts += cells


def answered(measured: Told, *choices: Searched) -> dict[Cut, str]:
    measured.parts = []
    return answer(measured, choices, 0, measured.ask)


def chosen(measured: Told, searched: Searched) -> Cut | None:
    return choose(measured, searched.role, searched.cuts, searched.budget).cuts[0]


def step(place: int, below: float, above: float) -> Does:
    """Return what is one thing below a place of the grid and another from there on."""
    return lambda cut: above if cut.q >= (*(c.q for c in GRID), 1.0)[place] else below


def doses(values: Sequence[float]) -> Does:
    return lambda cut: values[GRID.index(cut)]


SEARCHED = Searched("aligned", GRID, BUDGET)


@pytest.mark.parametrize("below", [0.0, 0.3])
def test_the_choice_is_that_of_the_whole_grid(below: float) -> None:
    """Harm, cost and broken replies set in anywhere: 75 grids of four cuts each."""
    searched, asked = replace(SEARCHED, cuts=GRID[:4]), []
    places = (0, 1, 2, 3, 6)
    for harm, cost, broken in itertools.product(places, places, (1, 3, 6)):
        measured = Told(step(harm, below, 0.9), step(cost, 0.0, 0.3), step(broken, 0.0, 0.6))
        usual = chosen(measured, searched)
        answered(measured, searched)
        assert chosen(measured, searched) == usual, (harm, cost, broken)
        assert measured.parts is not None
        tests = [part for part in measured.parts if part.half == "test"]
        assert {part.cut for part in tests} == ({usual} if usual else set())
        asked.append(len(measured.parts))
    # Of the 16 parts of the grid; the rule says at most so many.
    most = [*on_grid(DESIGN, searched, 0), *on_test(DESIGN, searched, 0, GRID[0])]
    assert max(asked) <= len(most) == 10
    assert sum(asked) / len(asked) < 0.4 * 16


def test_rising_doses_are_cut_where_the_whole_grid_cuts_them() -> None:
    """Doses that rise by degrees; costs may close the window anywhere."""
    drops = (0.1, 0.35, 0.6, 0.8, 0.88, 0.885)
    for costs in ((0.0,) * 6, (0.0, 0.01, 0.02, 0.03, 0.04, 0.3), (0.0, 0.02, 0.2, 0.3, 0.4, 0.5)):
        measured = Told(doses(drops), doses(costs))
        usual = chosen(measured, SEARCHED)
        assert usual is not None
        answered(measured, SEARCHED)
        assert chosen(measured, SEARCHED) == usual


def test_every_cut_that_was_not_asked_has_its_reason() -> None:
    why = answered(Told(step(2, 0.0, 0.9), step(5, 0.0, 0.3), step(5, 0.0, 0.6)), SEARCHED)
    assert [why.get(cut) for cut in GRID] == [WEAK, WEAK, None, ENOUGH, ENOUGH, BREAKS]
    why = answered(Told(step(2, 0.0, 0.9), step(2, 0.0, 0.3)), SEARCHED)
    # The first two do nothing, and cost nothing: they are asked, and not chosen.
    assert [why.get(cut) for cut in GRID][2:] == [UNCHOSEN, COSTLY, COSTLY, COSTLY]
    why = answered(Told(lambda cut: 0.005), SEARCHED)
    assert set(why.values()) == {IDLE}
    assert set(why) == set(GRID)


def test_a_ranking_that_can_do_no_more_is_asked_no_more() -> None:
    worse = tuple(replace(cut, scope="model") for cut in GRID)
    both = Searched("aligned", (*worse, *GRID), BUDGET, ("random",))

    def drop(cut: Cut) -> float:
        if cut.kind == "random":
            return 0.0
        return step(1, 0.0, 0.7 if cut.scope else 0.9)(replace(cut, scope=None))

    measured = Told(drop)
    usual = chosen(measured, both)
    why = answered(measured, both)
    assert chosen(measured, both) == usual == GRID[1]
    assert {why[cut] for cut in worse} == {HOPELESS}
    assert measured.parts is not None
    of_worse = [part for part in measured.parts if part.cut in worse]
    assert of_worse == [Cell("aligned", 0, worse[-1], ()).part("generation", "selection")]
    # The control is asked for harm alone, on the half that is tested, at the size of the choice.
    control = Cell("aligned", 0, Cut("generation", "random", GRID[1].q), ())
    assert [p for p in measured.parts if p.cut == control.cut] == [
        control.part("generation", "test")
    ]


def test_a_choice_without_cuts_asks_nothing() -> None:
    measured = Told(nothing)
    assert answered(measured, Searched("aligned", (), BUDGET, ("random",))) == {}
    assert measured.parts == []


@pytest.mark.parametrize("name", [name for name, study in STUDIES.items() if study.searched])
def test_studies_search_what_they_plan(name: str) -> None:
    study, section = STUDIES[name], section_of(name)
    assert study.searched is not None
    planned = {replace(cell, probes=()): cell.probes for cell in study.plan(DESIGN, section)}
    for choice in study.searched(DESIGN, section):
        parts = on_grid(DESIGN, choice, 0)
        for part in parts + on_test(DESIGN, choice, 0, choice.cuts[-1]):
            assert set(part.probes) <= set(planned[replace(part, probes=(), half="")])
