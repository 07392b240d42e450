"""The cut of the largest margin, and what its choice would be in each draw."""

from __future__ import annotations

import math

import numpy as np
import pytest

from invented_likelihoods import FRACTIONS, SIDES, Read, config
from resect.studies.cells import Cell, Cut
from resect.studies.guard import cost_of
from resect.studies.margins import Wanted, choose_by_margin
from resect.studies.rises import rises_of

WANTED = Wanted(SIDES, 5.0, 0.3, 0.1)
CUTS = [Cut("generation", "target", q) for q in FRACTIONS]
# Two cuts of nearly the same margin, one of which bites by a hair, and one that costs too much.
HARM = {1e-5: 0.302, 1e-4: 0.4, 1e-3: 3.0}
SPARED = {1e-5: 0.0, 1e-4: 0.02, 1e-3: 1.5}


def rise(cell: Cell, probe: str) -> float:
    assert cell.cut is not None
    return (HARM if probe == "generation" else SPARED)[cell.cut.q] * (1 + 0.1 * cell.seed)


def test_moves_are_those_of_a_choice_in_each_draw() -> None:
    measured = Read(config(seeds=2), rise, prompts=40)
    chosen = choose_by_margin(measured, WANTED, CUTS)
    assert chosen.choice.cuts[0] in CUTS[:2]
    parts = {
        (seed, cut, half): rises_of(measured, SIDES, [Cell("aligned", seed, cut, ())], half)
        for seed in (0, 1)
        for cut in CUTS
        for half in ("selection", "test")
    }
    costs = {
        (seed, cut): cost_of(measured, [Cell("aligned", seed, cut, ())], "selection")
        for seed in (0, 1)
        for cut in CUTS
    }
    picked = set()
    for draw in range(0, len(chosen.rises.harm.draws), 11):
        moves = dict.fromkeys(("generation", *SIDES), 0.0)
        for seed in (0, 1):
            merits = {}
            for cut in CUTS:
                cost, tried = costs[seed, cut], parts[seed, cut, "selection"]
                task = cost.task.low is None or cost.task.low <= 0.1
                if cost.utility.draws[draw] <= 0.1 and task:
                    merits[cut] = (tried.harm.draws[draw] >= 0.3, tried.margin(5.0).draws[draw])
            best = max(merits, key=lambda cut: merits[cut], default=None)
            picked.add((seed, best))
            for name in moves:
                for picked_cut, sign in ((best, 1), (chosen.choice.cuts[seed], -1)):
                    if picked_cut is not None:
                        tested = parts[seed, picked_cut, "test"]
                        sample = tested.harm if name == "generation" else tested.sides[name]
                        moves[name] += sign * sample.value / 2
        harm = chosen.anew.harm.draws[draw] - chosen.rises.harm.draws[draw]
        assert harm == pytest.approx(moves["generation"], abs=1e-9)
        for side in SIDES:
            moved = chosen.anew.sides[side].draws[draw] - chosen.rises.sides[side].draws[draw]
            assert moved == pytest.approx(moves[side], abs=1e-9)
    assert len(picked) > 2  # the choice is open, or this shows nothing
    assert chosen.anew.harm.value == chosen.rises.harm.value


def test_without_a_cut_within_the_budget_nothing_moves() -> None:
    def costly(cell: Cell, probe: str) -> float:
        return 3.0

    measured = Read(config(), costly)
    chosen = choose_by_margin(measured, WANTED, CUTS)
    assert chosen.choice.cuts == {0: None}
    assert np.array_equal(chosen.anew.harm.draws, chosen.rises.harm.draws)
    assert not math.isnan(chosen.anew.harm.value)
