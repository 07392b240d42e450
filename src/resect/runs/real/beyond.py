"""Studies of a real model beside selectivity and compactness, each in a run of its own.

    transfer     a cut for each of the three types of harm that have most prompts in AdvBench, each
                 held against benign answers of its own
    frontier     contrast against the source's ranking, within tensors and over the model
    relearning   fine-tuning of the cut model on harmful (related) and on benign (unrelated) answers

All of them measure by likelihood. *Dissociation* is not among them: it locates and measures a
capability such as refusing by answers of its own, and there are none here that a rule would let
pass. The instructed model refuses nothing, so that its refusals are templates, which it finds too
unlikely (5 % a token, where a behaviour that can be measured has 20, `least_rate`); the base model
neither refuses nor explains. What a cut does to refusals and to the words of the prompts is in the
table of selectivity.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from resect.runs.grid import Grid
from resect.runs.real.sets import Size

Beyond = Literal["transfer", "frontier", "relearning"]
TYPES = 3
# A rate at which small models are tuned whole, a tenth of what the organism is tuned at.
RATE = 2e-5


def sized(size: Size, study: Beyond | None) -> Size:
    """Return how much is collected for a study; harm by type where types are compared."""
    return replace(size, types=TYPES) if study == "transfer" else size


def section_of(study: Beyond, grid: Grid) -> dict[str, object]:
    """Return the section of a study, its rule as it stands by default.

    Args:
        study: Its name.
        grid: That of the model's size. The frontier takes all fractions but the least. Types are
            compared at the cut that spares utility, and relearning begins with one that takes most
            of the likelihood of harmful answers.
    """
    fractions = grid.fractions
    sections: dict[Beyond, dict[str, object]] = {
        "transfer": {"fraction": fractions[-3], "benign": ["benign"]},
        "frontier": {
            "fractions": list(fractions[-4:]),
            "protected": list(grid.protected),
            "scopes": ["tensor", "model"],
            "methods": [{"name": "source", "target": "source"}],
        },
        "relearning": {
            "data": "harm",
            "benign": "benign",
            "examples": [16],
            "steps": [2, 8],
            "rate": RATE,
            "batch": 4,
            "fraction": fractions[-2],
        },
    }
    return sections[study]
