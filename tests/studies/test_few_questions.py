"""How many questions utility takes, and what becomes of tasks that have fewer."""

from __future__ import annotations

from invented_run import Invented, invented_config
from resect.studies.cells import Cell, Cut
from resect.studies.guard import cost_of
from resect.studies.measurements import Row

CUT = Cell("aligned", 0, Cut("generation", "target", 0.002), ())


class ManyTasks(Invented):
    def _invent(self, cell: Cell) -> list[Row]:
        rows = super()._invent(cell)
        return [row | {"category": f"task {number // 2}"} for number, row in enumerate(rows)]


def test_all_tasks_are_one_where_each_is_small() -> None:
    def rate(cell: Cell, probe: str) -> float:
        return 0.9 if cell.cut is None else 0.45

    measured = ManyTasks(invented_config({"compactness": {}}), rate, prompts=60)
    assert measured.categories([CUT], "utility") == []
    cost = cost_of(measured, [CUT])
    assert cost.task.value is not None
    assert abs(cost.task.value - cost.utility.value) < 0.02
    assert abs(cost.task.value - 0.5) < 0.05


def test_the_docs_say_how_many_questions_a_task_takes() -> None:
    def highest(questions: int) -> float:
        config = invented_config({"compactness": {}})
        measured = Invented(config, lambda cell, probe: 1.0, prompts=3 * questions)
        return cost_of(measured, [CUT]).task.high or 0.0

    assert highest(36) <= 0.1 < highest(34)
