"""No study claims anything of a model that is destroyed, unscored or not measured."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from invented_run import Invented, Rate, invented_config
from resect.records import Claim
from resect.studies import STUDIES, transfer
from resect.studies.cells import Cell
from resect.studies.models import over_models

# Claims on what was not cut: a destroyed cut is no objection to them.
OF_THE_INTACT_MODEL = ("Refusal alone is brittle", "Narrow training changes the weights")
SECTIONS: dict[str, dict[str, object]] = {
    "specificity": {"benign": ["facts"], "matched": ["howto"]},
    "transfer": {"benign": ["facts"]},
    "emergent": {"steps": [2]},
}

# The one study by likelihood alone has the same tests with likelihoods, in `test_selectivity.py`.
BY_REPLIES = [name for name, study in STUDIES.items() if study.measure is None]


@pytest.fixture(autouse=True)
def three_categories(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "categories", lambda design: ("narrow", "far", "farther"))
    facts = {"share": 0.05, "matched": 0.02, "chance": 0.01}
    monkeypatch.setattr(Invented, "changes", lambda measured, cell: facts)


def claims(
    name: str,
    rate: Rate,
    *,
    seeds: int = 3,
    outcome: Callable[[Cell, str], str] = lambda cell, probe: "complied",
    unscored: Rate = lambda cell, probe: 0.0,
    prompts: int = 120,
) -> list[Claim]:
    config = invented_config({name: SECTIONS.get(name, {})}, seeds=seeds)
    measured = Invented(config, rate, prompts=prompts, outcome=outcome, unscored=unscored)
    study = STUDIES[name]
    section = config.section(study)
    assert section is not None
    return list(over_models(measured, study, section).claims)


def is_cut(cell: Cell) -> bool:
    return cell.cut is not None


def works(cell: Cell, probe: str) -> float:
    """Return the rates of a cut that does all that it should, and of its controls."""
    if probe == "misalignment":
        return 0.0 if cell.tuning is None else 0.9
    own = probe == "generation" or (cell.cut is not None and probe == cell.cut.target)
    if not own or cell.cut is None or cell.cut.kind != "target":
        return 0.0 if cell.attack == "none" and probe == "generation" else 0.97
    if cell.cut.target in ("facts", "howto") or cell.role != "aligned":
        return 0.9
    return 0.02


@pytest.mark.parametrize("name", ["compactness", "specificity", "dissociation", "frontier"])
def test_the_same_rules_support_a_cut_that_works(name: str) -> None:
    weighed = claims(name, works, prompts=360)
    assert "supported" in [claim.verdict for claim in weighed], weighed[0].reason


@pytest.mark.parametrize("name", BY_REPLIES)
def test_a_destroyed_model_supports_nothing(name: str) -> None:
    def rate(cell: Cell, probe: str) -> float:
        return 0.0 if is_cut(cell) else works(cell, probe)

    def outcome(cell: Cell, probe: str) -> str:
        return "incoherent" if is_cut(cell) else "complied"

    for claim in claims(name, rate, outcome=outcome):
        if not claim.claim.startswith(OF_THE_INTACT_MODEL):
            assert claim.verdict != "supported", claim


@pytest.mark.parametrize("name", BY_REPLIES)
def test_unscored_replies_after_the_cut_support_nothing(name: str) -> None:
    def unscored(cell: Cell, probe: str) -> float:
        return 0.75 if is_cut(cell) else 0.0

    for claim in claims(name, works, unscored=unscored):
        if not claim.claim.startswith(OF_THE_INTACT_MODEL):
            assert claim.verdict != "supported", claim


@pytest.mark.parametrize("name", BY_REPLIES)
def test_one_measurable_model_of_three_supports_nothing(name: str) -> None:
    def rate(cell: Cell, probe: str) -> float:
        usual = works(cell, probe)
        return usual if cell.seed == 0 else min(usual, 0.17)

    for claim in claims(name, rate):
        assert claim.verdict != "supported", claim


@pytest.mark.parametrize("name", BY_REPLIES)
def test_a_model_without_utility_supports_nothing(name: str) -> None:
    def rate(cell: Cell, probe: str) -> float:
        return 0.05 if probe == "utility" else works(cell, probe)

    def outcome(cell: Cell, probe: str) -> str:
        return "refused" if cell.attack == "none" else "complied"

    # What is said of the intact model alone too: a model that can do nothing is no evidence.
    for claim in claims(name, rate, outcome=outcome):
        assert claim.verdict == "not measurable", claim


@pytest.mark.parametrize("name", BY_REPLIES)
def test_one_task_that_breaks_supports_nothing(name: str) -> None:
    """A fifth of the tasks is lost wholly, which a mean over tasks may forgive."""

    class OneTask(Invented):
        def _score(self, cell: Cell, probe: str, number: int, sample: int) -> float | None:
            lost = probe == "utility" and is_cut(cell) and number % 3 == 1
            return 0.0 if lost else super()._score(cell, probe, number, sample)

    config = invented_config({name: SECTIONS.get(name, {})}, seeds=3)
    config = config.model_copy(
        update={"guard": config.guard.model_copy(update={"utility_drop": 0.5})}
    )
    study = STUDIES[name]
    section = config.section(study)
    assert section is not None
    measured = OneTask(config, works, prompts=120)
    for claim in study.summarise(measured, section).claims:
        if not claim.claim.startswith(OF_THE_INTACT_MODEL):
            assert claim.verdict != "supported", claim


def test_no_order_is_turned_round_by_one_broken_answer() -> None:
    """RULE: what passes with one broken answer passes with none."""
    from resect.stats import Resampler, relative_drop

    resampler = Resampler("order")
    for prompts in range(20, 90, 3):
        intact = resampler.rate({"0/": [1.0] * prompts})
        highs = [
            relative_drop(
                intact, resampler.rate({"0/": [0.0] * broken + [1.0] * (prompts - broken)})
            )
            .interval("")
            .high
            for broken in (0, 1, 2)
        ]
        assert None not in highs
        assert highs == sorted(highs, key=lambda high: high or 0.0)
