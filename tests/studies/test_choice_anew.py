"""What two choices are compared by: the choice is made anew in each draw of its half."""

from __future__ import annotations

import numpy as np
import pytest

from invented_run import Invented, invented_config
from resect.studies.cells import Cell, Cut
from resect.studies.choice import choose
from resect.studies.effects import effect
from resect.studies.guard import cost_of

BUDGET = 0.05
GRID = (0.001, 0.002, 0.005)
LEFT = {0.001: 0.35, 0.002: 0.12, 0.005: 0.1}
KEPT = {0.001: 0.99, 0.002: 0.96, 0.005: 0.93}


def cuts_of(target: str = "generation") -> list[Cut]:
    return [Cut(target, "target", q) for q in GRID]


def measured_of(seeds: int = 2, prompts: int = 120) -> Invented:
    """Return models in which it is hardly clear which cut is the best within the budget."""

    def rate(cell: Cell, probe: str) -> float:
        if cell.cut is None:
            return 1 - 0.1 * cell.seed
        if probe == "generation":
            return LEFT[cell.cut.q] + 0.02 * cell.seed
        return KEPT[cell.cut.q]

    return Invented(invented_config({"compactness": {}}, seeds=seeds), rate, prompts=prompts)


def test_moves_are_those_of_a_choice_in_each_draw() -> None:
    measured = measured_of()
    choice = choose(measured, "aligned", cuts_of(), BUDGET)
    tested = {
        (seed, cut): effect(measured, [Cell("aligned", seed, cut, ())], "test")
        for seed in (0, 1)
        for cut in (None, *cuts_of())
    }
    weights = {seed: tested[seed, None].harm.value for seed in (0, 1)}
    picked = set()
    for draw in range(0, len(choice.moves()), 7):
        moved = 0.0
        for seed in (0, 1):
            drops = {}
            for cut in cuts_of():
                cells = [Cell("aligned", seed, cut, ())]
                drop = effect(measured, cells, "selection").harm_drop
                cost = cost_of(measured, cells, "selection")
                fits = cost.task.low is None or cost.task.low <= max(BUDGET, 0.1)
                if drop.draws[draw] > 0 and cost.utility.draws[draw] <= BUDGET and fits:
                    drops[cut] = drop
            best = None
            if drops:
                lead = max(drops.values(), key=lambda drop: drop.draws[draw])
                least = lead.draws[draw] - lead.draws.std()
                near = [cut for cut, drop in drops.items() if drop.draws[draw] >= least]
                best = min(near, key=lambda cut: cut.q)
            usual = tested[seed, choice.cuts[seed]].harm_drop.value
            moved += weights[seed] * (tested[seed, best].harm_drop.value - usual)
            picked.add((seed, best))
        assert choice.moves()[draw] == pytest.approx(moved / sum(weights.values()))
    assert len(picked) > 3  # the choice is open, or this shows nothing


def test_luck_of_the_choice_is_no_difference() -> None:
    measured = measured_of(seeds=1)
    left = choose(measured, "aligned", cuts_of(), BUDGET)
    # The same cuts but for the one that was chosen: as if luck had passed it over.
    others = [cut for cut in cuts_of() if cut != left.cuts[0]]
    right = choose(measured, "aligned", others[:1], BUDGET)
    known = (left.effect.harm_drop - right.effect.harm_drop).interval("given the choices")
    anew = (left.anew - right.anew).interval("choices made anew")
    assert known.value == anew.value
    assert known.low is not None
    assert anew.low is not None
    assert known.low > 0 >= anew.low


def test_a_clear_choice_adds_nothing() -> None:
    def rate(cell: Cell, probe: str) -> float:
        harmful = probe == "generation" and cell.cut is not None
        return 1.0 if not harmful or cell.cut.q < 0.002 else 0.02  # type: ignore[union-attr]

    measured = Invented(invented_config({"compactness": {}}), rate, prompts=300)
    choice = choose(measured, "aligned", cuts_of(), BUDGET)
    assert choice.cuts == {0: cuts_of()[1]}
    assert not choice.moves().any()
    assert np.array_equal(choice.anew.draws, choice.effect.harm_drop.draws)


def test_without_a_cut_within_the_budget_nothing_moves() -> None:
    def rate(cell: Cell, probe: str) -> float:
        return 1.0 if cell.cut is None else 0.2

    measured = Invented(invented_config({"compactness": {}}), rate, prompts=300)
    choice = choose(measured, "aligned", cuts_of(), BUDGET)
    assert choice.cuts == {0: None}
    assert choice.anew.interval("nothing") == choice.effect.harm_drop.interval("nothing")


def test_of_no_cuts_none_is_chosen() -> None:
    choice = choose(measured_of(seeds=1), "aligned", (), BUDGET)
    assert choice.cuts == {0: None}
    assert choice.anew.interval("nothing") == choice.effect.harm_drop.interval("nothing")
