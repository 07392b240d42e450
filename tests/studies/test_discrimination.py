"""Recognition by ranks: a shift of the answer is no loss, and a loss is one."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from invented_run import Invented, Rate, invented_config
from resect.records import Claim
from resect.runs.config import RunConfig, parse_config
from resect.stats import rng
from resect.studies import STUDIES
from resect.studies.cells import Cell
from resect.studies.discrimination import auroc, discrimination, undiscerning
from resect.studies.effects import intact_cells
from resect.studies.measurements import Row

STUDY = STUDIES["dissociation"]
# What a variant's margin of "yes" over "no" is, by the number of the prompt; even ones are harmful.
Margin = Callable[[Cell, int], float]


def configuration(recognised_by: str) -> RunConfig:
    values = invented_config({}).model_dump(mode="json")
    values["targets"]["recognition"] = {"data": "harm"}
    values["evaluation"]["probes"]["recognition"] = "harm"
    section = {"capabilities": ["generation", recognised_by]}
    return parse_config(values | {"studies": {"dissociation": section}}, "test")


class Recognising(Invented):
    """Measurements whose margins are given."""

    margin: Margin
    setup: RunConfig

    def _invent(self, cell: Cell) -> list[Row]:
        rows = super()._invent(cell)
        for number, row in enumerate(row for row in rows if row["probe"] == "recognition"):
            harmful = number % 2 == 0
            sure = self.margin(cell, number) * (1 if harmful else -1)
            row["reference"] = "yes ." if harmful else "no ."
            row["nll"] = max(-sure, 0.0) + math.log1p(math.exp(-abs(sure)))
            row["score"] = math.exp(-row["nll"])
        return rows


def measured(margin: Margin, recognised_by: str = "recognition", rate: Rate | None = None,
             prompts: int = 300) -> Recognising:  # fmt: skip
    def usual(cell: Cell, probe: str) -> float:
        cut = None if cell.cut is None or cell.cut.kind == "random" else cell.cut.target
        return 0.02 if cut == probe else 0.95

    config = configuration(recognised_by)
    run = Recognising(config, rate or usual, prompts=prompts)
    run.margin, run.setup = margin, config
    return run


def claim(margin: Margin, recognised_by: str = "recognition", rate: Rate | None = None) -> Claim:
    run = measured(margin, recognised_by, rate)
    result = STUDY.summarise(run, run.setup.section(STUDY))
    return result.claims[0]


def clear(_cell: Cell, number: int) -> float:
    return (3.0 if number % 2 == 0 else -3.0) + 0.01 * (number % 7)


def of_cut(cell: Cell) -> bool:
    return cell.cut is not None and cell.cut.kind == "target" and cell.cut.target == "generation"


def shifted(cell: Cell, number: int) -> float:
    """Return margins of a model that says yes to all after the cut, as sure as ever of the rest."""
    return clear(cell, number) + (10.0 if of_cut(cell) else 0.0)


def lost(cell: Cell, number: int) -> float:
    """Return margins that say nothing of a prompt after the cut."""
    noise = float(rng("lost", number).standard_normal())
    return noise if of_cut(cell) else clear(cell, number)


def test_a_shift_of_the_answer_is_no_loss_and_a_loss_is_one() -> None:
    assert claim(clear).verdict == "supported"
    assert claim(shifted).verdict == "supported"
    gone = claim(lost)
    assert gone.verdict == "not supported"
    assert "recognition" in gone.reason


def test_by_right_replies_the_same_shift_looks_like_a_loss() -> None:
    def rate(cell: Cell, probe: str) -> float:
        if probe == "detection":  # yes to all is right for half of them
            return 0.5 if of_cut(cell) else 0.95
        return 0.02 if of_cut(cell) and probe == "generation" else 0.95

    assert claim(shifted, "detection", rate).verdict == "not supported"
    assert claim(shifted, "recognition", rate).verdict == "supported"


def test_it_is_the_share_of_pairs_in_order() -> None:
    draw = rng("margins", 0).standard_normal(60).round(1)
    run = measured(lambda _cell, number: float(draw[number]), prompts=60)
    cells = intact_cells(run.config)
    yes, no = draw[::2], draw[1::2]
    pairs = [(a > b) + 0.5 * (a == b) for a in yes for b in no]
    value = float(np.mean(pairs))
    # Margins are numbers of a file, and equal ones differ in the last digit there.
    assert auroc(run, cells).value == pytest.approx(value, abs=0.02)
    assert discrimination(run, cells).value == pytest.approx(max(0, 2 * value - 1), abs=0.04)


def test_what_is_sure_beyond_the_last_digit_of_one_keeps_its_order() -> None:
    # exp(-nll) is 1.0 for prompts whose answer is yes, and they still lie below the others.
    run = measured(lambda _cell, number: 60.0 if number % 2 == 0 else 61.0)
    assert {row.score for row in run.asked(intact_cells(run.config)[0], "recognition")} >= {1.0}
    assert auroc(run, intact_cells(run.config)).value == 0.0


def test_a_model_that_never_could_tell_is_not_measurable() -> None:
    def blind(_cell: Cell, number: int) -> float:
        return float(rng("blind", number).standard_normal())

    run = measured(blind)
    assert "hardly tells" in undiscerning(run, intact_cells(run.config))
    assert claim(blind).verdict == "not measurable"
    backwards = measured(lambda cell, number: -clear(cell, number))
    assert discrimination(backwards, intact_cells(backwards.config)).value == 0.0


def test_the_table_shows_the_area() -> None:
    run = measured(shifted)
    result = STUDY.summarise(run, run.setup.section(STUDY))
    rows = {(row["cut"], row["measured"]): row for row in result.tables["matrix"]}
    row = rows["generation", "recognition"]
    assert (row["value"], row["retained"], row["n"]) == (1.0, 1.0, 300)
