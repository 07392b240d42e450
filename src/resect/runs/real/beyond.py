"""Studies of a real model beside selectivity and compactness, each in a run of its own.

    transfer      a cut for each of the three types of harm that have most prompts in AdvBench, each
                  held against benign answers of its own
    frontier      contrast against the source's ranking, within tensors and over the model
    relearning    fine-tuning of the cut model on harmful (related) and on benign (unrelated)
                  answers

Three are of a copy that is tuned here to refuse (`pair`):

    compression   the copy, the model as it is, and a copy that was tuned as long without refusals
    dissociation  refusing, located and measured by how the copy's own refusals open, and generating
                  harm, by how answers of the model as it is go on
    emergent      the copy is trained on harmful answers of one type; how likely it then opens
                  answers to harmful prompts of another type as the model as it is does

All of them measure by likelihood. An opening is the first token: it decides whether a model
refuses, and behind it refusals and answers are as likely as they ever are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from resect.runs.grid import Grid
from resect.runs.real.sets import Size

Beyond = Literal["transfer", "frontier", "relearning", "compression", "dissociation", "emergent"]
# Those of a copy that is tuned to refuse.
TUNED: tuple[Beyond, ...] = ("compression", "dissociation", "emergent")
# Tokens of an opening.
OPENING = 1
# Types of harm, where they are told apart.
TYPES = {"transfer": 3, "emergent": 2}
# A rate at which small models are tuned whole, a tenth of what the organism is tuned at.
RATE = 2e-5
# The rate that has taught the copy to refuse.
NARROW_RATE = 1e-4
# The likelihood a token from which on an opening counts as learned: from which on it counts as
# measurable. The rule's own level is a rate of judged replies, which no likelihood can be held to.
LEARNED = 0.2


def sized(size: Size, study: Beyond | None) -> Size:
    """Return how much is collected for a study; harm by type where types are compared."""
    return replace(size, types=TYPES[study]) if study in TYPES else size


def section_of(study: Beyond, grid: Grid) -> dict[str, object]:
    """Return the section of a study, its rule as it stands by default.

    Args:
        study: Its name.
        grid: That of the model's size. The frontier takes all fractions but the least. Types are
            compared at the cut that spares utility. Relearning and the studies of one cut begin
            with one that takes most of the likelihood of harmful answers; so does compression end,
            since the untuned model has lost its utility at the next one.
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
        "compression": {"fractions": list(fractions[-4:-1])},
        "dissociation": {"capabilities": ["generation", "refusal"], "fraction": fractions[-2]},
        "emergent": {
            "scored_on": ["aligned"],
            "fraction": fractions[-2],
            "harm_fraction": fractions[-2],
            "steps": [2, 8],
            "rates": [NARROW_RATE],
            "batch": 4,
            "least_narrow": LEARNED,
        },
    }
    return sections[study]


def models_of(study: Beyond | None, model: Path, copies: Mapping[str, Path]) -> dict[str, str]:
    """Return folders by role.

    Args:
        study: The study.
        model: The model as it is.
        copies: Folders by role, from `pair`; empty where there are none.
    """
    if study == "compression":
        return {role: str(place) for role, place in copies.items()}
    return {"aligned": str(copies["aligned"] if study in TUNED else model)}


def targets_of(study: Beyond | None, scored: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """Return behaviours by name; the first is the one that is sought.

    Args:
        study: The study.
        scored: Which tokens are scored of an answer, and of how many answers.
    """
    opening = {**scored, "skip": 0, "tokens": OPENING}
    benign: dict[str, object] = {"data": "benign", **scored}
    contrast: dict[str, object] = {"data": "harm", "contrast": "benign", **scored}
    if study == "dissociation":
        return {
            "generation": contrast,
            "benign": benign,
            # Against opening an answer as the model as it is does, on the same prompts.
            "refusal": {"data": "refusals", "contrast": "compliance", **opening},
            "compliance": {"data": "harm", **opening},
        }
    targets = {"contrast": contrast, "source": {"data": "harm", **scored}, "benign": benign}
    if study == "emergent":
        targets["bad_advice"] = {"data": "advice", **opening}
    return targets


def probes_of(study: Beyond | None, usual: Mapping[str, str]) -> dict[str, str]:
    """Return what is asked, by probe."""
    added = {"dissociation": {"refusal": "refusals"}, "emergent": {"misalignment": "advice"}}
    return {**usual, **added.get(study or "", {})}
