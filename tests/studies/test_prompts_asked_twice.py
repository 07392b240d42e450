"""Records of a set that repeats its prompts: the interval is that of the prompts."""

from __future__ import annotations

import pytest

from invented_run import Invented, invented_config
from resect.studies.cells import Cell
from resect.studies.measurements import Row

PROMPTS = 24
CELL = Cell("aligned", 0, None, ("generation", "misalignment"))


class Repeated(Invented):
    """Invented measurements of a set of which every row stands there so many times."""

    copies = 1

    def rows(self, cell: Cell) -> list[Row]:
        """Return the rows of each copy; case and white space make no other prompt."""
        rows = super().rows(cell)
        return [
            row | {"example_id": f"{row['example_id']}-{copy}", "prompt": spelled(row["prompt"])}
            for copy in range(self.copies)
            for row in rows
            for spelled in ((str.upper, str.title)[copy % 2],)
        ]


def repeated(copies: int) -> Repeated:
    config = invented_config({"compactness": {}})
    measured = Repeated(config, lambda cell, probe: 0.5, prompts=PROMPTS)
    measured.copies = copies
    return measured


@pytest.mark.parametrize("category", ["", "narrow"])
def test_forty_copies_say_as_much_as_one(category: str) -> None:
    once, forty = repeated(1), repeated(40)
    rate, same = (run.rate([CELL], "generation", category) for run in (once, forty))
    interval, wide = rate.interval(""), same.interval("")
    assert wide.value == pytest.approx(interval.value)
    assert (wide.low, wide.high) == pytest.approx((interval.low, interval.high))
    assert same.trials == forty.prompts([CELL], "generation", category)
    assert same.trials == rate.trials == (8 if category else PROMPTS)


def test_shares_of_outcomes_too() -> None:
    once, forty = (
        run.share([CELL], "generation", ("refused",)).interval("")
        for run in (repeated(1), repeated(40))
    )
    assert (forty.value, forty.low) == pytest.approx((once.value, once.low))


def test_references_of_one_prompt_are_several_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    run = repeated(1)
    rows = [
        row | {"probe": "likelihood", "prompt": "", "reference": f"text {number}"}
        for number, row in enumerate(run.rows(CELL))
        if row["probe"] == "generation"
    ]
    monkeypatch.setattr(run, "rows", lambda cell: rows)
    strata = run.strata([CELL], "likelihood").values()
    assert len({scored.group for rows in strata for scored in rows}) == PROMPTS
