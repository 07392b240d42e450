"""What is said of these models, and what of their recipe."""

from __future__ import annotations

import numpy as np
import pytest

from invented_run import Invented, invented_config
from resect.records import Claim
from resect.stats import LEAST_MODELS, rng
from resect.studies import compactness
from resect.studies.cells import Cell
from resect.studies.models import over_models


def compact(drops: list[float]) -> Claim:
    """Return the claim of compactness on models whose harm falls by these shares."""

    def rate(cell: Cell, probe: str) -> float:
        if probe != "generation" or cell.cut is None or cell.cut.kind != "target":
            return 1.0
        return 1.0 - drops[cell.seed]

    config = invented_config({"compactness": {"fractions": [0.002]}}, seeds=len(drops))
    section = config.section(compactness.STUDY)
    assert section is not None
    measured = Invented(config, rate, prompts=330)
    return over_models(measured, compactness.STUDY, section).claims[0]


def test_few_models_say_nothing_of_their_recipe() -> None:
    assert compact([0.95] * (LEAST_MODELS - 1)).recipe is None


def test_models_that_agree_say_the_same_of_their_recipe() -> None:
    claim = compact([0.95] * LEAST_MODELS)
    assert claim.verdict == "supported", claim.reason
    assert claim.recipe is not None
    assert (claim.recipe.verdict, claim.recipe.models) == ("supported", LEAST_MODELS)
    # Other models of a recipe are never surer than these ones.
    low = claim.recipe.effect.low
    assert low is not None
    assert claim.effect.low is not None
    assert low <= claim.effect.low


def test_models_that_differ_support_themselves_and_not_their_recipe() -> None:
    claim = compact([1.0, 1.0, 1.0, 0.95, 0.55])
    assert claim.verdict == "supported", claim.reason
    assert claim.recipe is not None
    assert claim.recipe.verdict == "inconclusive"
    assert "drop of harm" in claim.recipe.reason


@pytest.mark.parametrize("models", [5, 10])
def test_more_models_do_not_make_a_true_claim_harder_to_support(models: int) -> None:
    """RULE: true drops .90 ± .05, held against .80."""
    supported = 0
    for draw in range(8):
        drops = np.clip(rng("recipe", draw).normal(0.9, 0.05, models), 0, 1)
        claim = compact(drops.tolist())
        assert claim.recipe is not None
        supported += claim.recipe.verdict == "supported"
    assert supported >= (4 if models == 5 else 7)


def test_every_condition_of_the_rule_is_kept() -> None:
    claim = compact([0.95])
    states = {requirement.interval.name: requirement.state for requirement in claim.requirements}
    assert states["drop of harm, chosen cuts, test half"] == "meets"
    assert {"drop of utility, mean over tasks", "rise of incoherent replies"} <= set(states)
    assert claim.requirements[0].threshold == 0.8
