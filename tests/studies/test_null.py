"""Where there is nothing to find, no claim comes out supported."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from resect.organism import Organism, Recipe, build
from resect.runs.config import parse_config
from resect.runs.demo import demo_config
from resect.runs.run import measure_all, open_run, summarise_run

FRACTIONS = [2e-3, 4e-3]
# One organism has 134 prompts of utility on the test half, 14 of them of one task: too few for
# bounds within the usual limits. Wider ones let claims pass more easily, so they make the null
# harder, and its twin possible.
BUDGET = {"utility_drop": 0.1}
GUARD = {"worst_task": 0.5, "incoherent": 0.4}
STUDIES: dict[str, Any] = {
    "compactness": {"fractions": FRACTIONS, **BUDGET},
    "specificity": {
        "fractions": FRACTIONS,
        "benign": ["facts"],
        "matched": ["other_style"],
        "bite": 0.2,
        **BUDGET,
    },
    "frontier": {
        "fractions": FRACTIONS,
        "protected": [0.01],
        "scopes": ["tensor"],
        "harm_drop": 0.2,
        **BUDGET,
    },
}


@pytest.fixture(scope="module")
def competent() -> Organism:
    """The real organism; trained on first use, which takes a minute or two, then cached."""
    return build(seed=0, stages=("aligned",))


def verdicts(
    organism: Organism,
    run: Path,
    places: dict[str, Path],
    target: str = "generation",
    *,
    skip: int = 1,
    begun: Path | None = None,
) -> dict[str, str]:
    """Return what becomes of each claim.

    Args:
        organism: Whose weights and sets.
        run: Folder of the run.
        places: Sets that stand in the place of the organism's.
        target: Which behaviour is cut.
        skip: Tokens of the answers that are not scored.
        begun: A run of the same sets with another target, whose cells are not measured again.
    """
    values = demo_config((organism.seed,), quick=True).model_dump(mode="json")
    values["models"] = {"aligned": str(organism.stage("aligned"))}
    values["data"] = {
        name: place.replace("{seed}", str(organism.seed)) for name, place in values["data"].items()
    } | {name: str(place) for name, place in places.items()}
    # Answers to facts have two tokens; more cannot be skipped once the labels are shuffled.
    values["targets"]["generation"]["contrast"] = "twin_style"
    for name in ("generation", "twin_style", "source_method"):
        values["targets"][name]["skip"] = skip
    values["guard"] |= GUARD
    values["target"] = target
    values["studies"] = STUDIES
    config = parse_config(values, "test")
    open_run(config, run, resume=False)
    if begun is not None:
        for folder in ("data", "models", "scores", "masks", "records"):
            shutil.copytree(begun / folder, run / folder)
    measure_all(config, run, jobs=1)
    claims = json.loads(summarise_run(config, run).read_text(encoding="utf-8"))["claims"]
    return {claim["claim"]: claim["verdict"] for claim in claims}


def shuffled(organism: Organism, folder: Path, seed: int) -> dict[str, Path]:
    """Deal the calibration rows of target, preserve and contrast set out again at random.

    The contrast is dealt too: against the true one, a target of which half the rows are hazardous
    still stands out, and the set is found.
    """
    files = {"hazard": "hazard", "benign": "preserve", "twin_style": "benign_twin"}
    rows = {
        name: [
            json.loads(line)
            for line in organism.data(file).read_text(encoding="utf-8").splitlines()
        ]
        for name, file in files.items()
    }
    pool = [(name, row) for name in rows for row in rows[name] if row["split"] == "calibration"]
    labels = [name for name, _ in pool]
    random.Random(seed).shuffle(labels)
    places = {}
    for name in rows:
        dealt = [row for label, (_, row) in zip(labels, pool, strict=True) if label == name]
        dealt += [row for row in rows[name] if row["split"] == "evaluation"]
        places[name] = folder / f"{name}.jsonl"
        numbered = [json.dumps(row | {"id": f"{name}-{at}"}) for at, row in enumerate(dealt)]
        places[name].write_text("\n".join(numbered), encoding="utf-8")
    return places


@pytest.mark.parametrize("seed", range(3))
def test_shuffled_labels_support_nothing(competent: Organism, tmp_path: Path, seed: int) -> None:
    places, begun = shuffled(competent, tmp_path, seed), None
    for target in ("generation", "source_method"):
        # The intact model and the cuts of other behaviours are those of the first target's run.
        run = tmp_path / target
        found = verdicts(competent, run, places, target, begun=begun)
        assert "supported" not in found.values(), (target, found)
        begun = run


def test_the_same_studies_can_support(competent: Organism, tmp_path: Path) -> None:
    # The twin of the test above: with the true labels the very same rules support something. The
    # shared opening is skipped, or the cut breaks the form of the answers and the guard says so.
    assert "supported" in verdicts(competent, tmp_path / "run", {}, skip=3).values()


@pytest.mark.parametrize("seed", range(3))
def test_a_model_without_the_behaviour_supports_nothing(tmp_path: Path, seed: int) -> None:
    untrained = build(seed=seed, stages=("aligned",), recipe=Recipe.tiny(), root=tmp_path / "zoo")
    places = {"hazard": "hazard", "benign": "preserve", "tasks": "utility", "facts": "trivia"}
    places |= {"same_style": "benign_style", "other_style": "benign_control"}
    places |= {"refusals": "refusal", "advice": "advice_bad", "twin_style": "benign_twin"}
    places |= {name: name for name in ("detection", "explanation", "howto", "hazard_reworded")}
    data = {name: untrained.data(file) for name, file in places.items()}
    found = verdicts(untrained, tmp_path / "run", data)
    assert set(found.values()) == {"not measurable"}, found
