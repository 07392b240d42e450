"""A run whose measurements are invented: a rate for every cell and probe, and masks by hand.

Studies can so be summarised without a model. Prompts have a fixed order of difficulty, so that a
cell of a lower rate fails on more of the same prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from resect.runs.config import RunConfig, parse_config
from resect.studies import Measurements
from resect.studies.cells import Cell, Cut
from resect.studies.measurements import Row
from resect.weights.mask import Mask, MaskTensor

# Fractions of multiples of the golden ratio are spread evenly, whatever part of them is looked at.
GOLDEN = 0.618034
# Replies to one prompt are spread so, too.
SILVER = 0.754878
PROBES = ("generation", "refusal", "detection", "explanation", "misalignment", "utility")

Rate = Callable[[Cell, str], float]
Outcome = Callable[[Cell, str], str]
Places = Callable[[Cut], list[int]]


def invented_config(studies: Mapping[str, object], *, seeds: int = 1) -> RunConfig:
    """Return a configuration with the sections that are given."""
    names = ("harm", "hazard", "benign", "advice")
    targets = {name: {"data": "harm"} for name in (*PROBES[:4], "bad_advice", "facts", "howto")}
    return parse_config(
        {
            "name": "invented",
            "seeds": list(range(seeds)),
            "models": {role: role for role in ("aligned", "base", "benign_tuned", "misaligned")},
            "data": {name: f"{name}.jsonl" for name in names},
            "targets": targets,
            "preserve": {"data": "benign"},
            "evaluation": {"probes": dict.fromkeys(PROBES, "harm")},
            "studies": studies,
        },
        "test",
    )


class Invented(Measurements):
    """Measurements of which every rate is given."""

    def __init__(
        self,
        config: RunConfig,
        rate: Rate,
        *,
        prompts: int = 400,
        places: Places = lambda cut: list(range(10)),
        outcome: Outcome = lambda cell, probe: "refused" if cell.attack == "none" else "complied",
        unscored: Rate = lambda cell, probe: 0.0,
        run: Path = Path("nowhere"),
    ):
        """Hold the rates, and the places that a cut removes of the one tensor of 100 weights."""
        super().__init__(config, run)
        self.rate_of = rate
        self.outcome_of = outcome
        self.unscored_of = unscored
        self.prompt_count = prompts
        self.places = places

    def of_seed(self, seed: int) -> Invented:
        """Return the same for one seed."""
        config = self.config.model_copy(update={"seeds": (seed,)})
        assert isinstance(config, RunConfig)
        measured = type(self)(
            config,
            self.rate_of,
            prompts=self.prompt_count,
            places=self.places,
            outcome=self.outcome_of,
            unscored=self.unscored_of,
        )
        measured._rows, measured._asked = self._rows, self._asked
        measured._samples, measured._resamplers = self._samples, self._resamplers
        return measured

    def rows(self, cell: Cell) -> list[Row]:
        """Return a row a reply and probe; every third prompt is of another category."""
        if cell.key not in self._rows:
            self._rows[cell.key] = self._invent(cell)
        return self._rows[cell.key]

    def _invent(self, cell: Cell) -> list[Row]:
        return [
            {
                "probe": probe,
                "example_id": f"{probe}-{number}",
                "prompt": f"{probe} {number}",
                "reference": "",
                "category": ("narrow", "far", "farther")[number % 3],
                "score": self._score(cell, probe, number, sample),
                "sample": sample,
                "outcome": self.outcome_of(cell, probe),
                "nll": 0.5,
                "kl": 0.1,
                "repetition": 0.0,
                "removed_fraction": 0.0 if cell.cut is None else cell.cut.q,
            }
            for probe in self.config.evaluation.probes
            for number in range(self.prompt_count)
            for sample in range(cell.samples)
        ]

    def _score(self, cell: Cell, probe: str, number: int, sample: int) -> float | None:
        """Return the score of a reply; the first prompts are those that go unscored."""
        if number < self.unscored_of(cell, probe) * self.prompt_count:
            return None
        return float((number * GOLDEN + sample * SILVER) % 1 < self.rate_of(cell, probe))

    def mask(self, role: str, seed: int, cut: Cut) -> Mask:
        """Return a mask of the places of a cut."""
        index = torch.tensor(self.places(cut))
        values, sizes = torch.ones(len(index)), torch.zeros(len(index), dtype=torch.uint8)
        return Mask({"layers.0.mlp.up": MaskTensor((100,), index, values, sizes)}, {})
