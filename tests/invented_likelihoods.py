"""A run whose likelihoods are invented: a rise for every cut and set."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from invented_run import GOLDEN, Invented
from resect.runs.config import RunConfig, parse_config
from resect.studies.cells import Cell
from resect.studies.measurements import Row

SIDES = ("utility", "trivia", "same_style", "prompts")
FRACTIONS = (1e-5, 1e-4, 1e-3)
Rise = Callable[[Cell, str], float]


def config(*, seeds: int = 1, **section: Any) -> RunConfig:
    """Return a configuration of the study alone."""
    return parse_config(
        {
            "name": "invented",
            "seeds": list(range(seeds)),
            "models": {"aligned": "nowhere"},
            "data": {name: f"{name}.jsonl" for name in ("harm", "benign")},
            "targets": {"generation": {"data": "harm"}, "source": {"data": "harm"}},
            "preserve": {"data": "benign"},
            "evaluation": {
                "probes": dict.fromkeys(("generation", *SIDES), "harm"),
                "measure": "likelihood",
            },
            "studies": {"selectivity": {"fractions": list(FRACTIONS), **section}},
        },
        "test",
    )


class Read(Invented):
    """Rows of which the likelihood was measured; the rise of each set is given."""

    def __init__(self, config: RunConfig, rise: Rise, *, prompts: int = 120, intact: float = 0.8):
        super().__init__(config, lambda cell, probe: 0.0, prompts=prompts)
        self.rise_of = rise
        self.intact = intact

    def of_seed(self, seed: int) -> Read:
        alone = self.config.model_copy(update={"seeds": (seed,)})
        assert isinstance(alone, RunConfig)
        return Read(alone, self.rise_of, prompts=self.prompt_count, intact=self.intact)

    def _invent(self, cell: Cell) -> list[Row]:
        rows = super()._invent(cell)
        for row in rows:
            number = int(row["example_id"].rpartition("-")[2])
            usual = self.intact * (0.5 + (number * GOLDEN) % 1)
            share = 0.5 + (number * GOLDEN * 7 + 0.3 * len(row["probe"])) % 1
            nll = usual + (self.rise_of(cell, row["probe"]) * share if cell.cut else 0.0)
            row |= {"nll": nll, "score": math.exp(-nll), "outcome": None}
        return rows
