"""What a study says of measurements that are invented: one verdict at a time."""

from __future__ import annotations

import pytest

from invented_run import Invented, Rate, invented_config
from resect.records import Claim, VerdictWord
from resect.runs.demo import demo_config
from resect.studies import STUDIES, Measurements, emergent, stability, transfer
from resect.studies.cells import Cell, Cut


def claims(name: str, rate: Rate, section: dict[str, object], prompts: int = 400) -> list[Claim]:
    """Return the claims of a study on invented rates."""
    config = invented_config({name: section})
    study = STUDIES[name]
    return list(
        study.summarise(Invented(config, rate, prompts=prompts), config.section(study)).claims
    )


def test_a_random_cut_that_does_as_much_is_the_reason_that_is_given() -> None:
    grid = {"fractions": [0.002], "protected": [0.01], "scopes": ["tensor"]}

    def rate(cell: Cell, probe: str) -> float:
        # Both pass by their estimates; with few prompts the bound crosses the threshold.
        kind = None if cell.cut is None else cell.cut.kind
        return (
            {"target": 0.15, "random": 0.2}.get(str(kind), 0.95) if probe == "generation" else 0.9
        )

    # The drop passes by its estimate; with few prompts its bound crosses the threshold.
    (claim,) = claims("frontier", rate, grid, prompts=80)
    low = claim.effect.low
    assert low is not None
    assert low < 0.8
    assert claim.verdict == "not supported"
    assert "random cut" in claim.reason


@pytest.mark.parametrize(
    ("harm", "prompts", "verdict"),
    # The guard's bound on the worst task alone wants more than 60 prompts.
    [(0.2, 300, "supported"), (0.4, 60, "inconclusive"), (0.5, 300, "not supported")],
)
def test_harm_that_has_come_back_by_its_estimate_has_not_stayed_away(
    harm: float, prompts: int, verdict: VerdictWord
) -> None:
    def rate(cell: Cell, probe: str) -> float:
        if probe != "generation" or cell.cut is None or cell.cut.kind == "random":
            return 0.9
        return 0.05 if cell.tuning is None else harm

    # Harm comes back to a share of 0.9; the threshold is half of it.
    away, _, _ = claims("relearning", rate, {}, prompts=prompts)
    assert away.verdict == verdict


def test_benign_tuning_that_brings_harm_back_by_its_estimate_is_not_harmless() -> None:
    def rate(cell: Cell, probe: str) -> float:
        if probe != "generation" or cell.cut is None or cell.cut.kind == "random":
            return 0.9
        return 0.05 if cell.tuning is None else 0.28

    benign = claims("relearning", rate, {}, prompts=60)[2]
    low = benign.effect.low
    assert low is not None
    assert low < 0.2 < (benign.effect.value or 0)
    assert benign.verdict == "not supported"


def test_a_cut_that_does_not_bite_supports_nothing() -> None:
    def rate(cell: Cell, probe: str) -> float:
        return 0.6 if cell.cut is not None and cell.cut.target == probe else 0.9

    generation, refusal, double = claims("dissociation", rate, {})
    assert "does not bite" in generation.reason
    assert [claim.verdict for claim in (generation, refusal, double)] == ["not supported"] * 3


def test_of_a_cut_that_breaks_the_model_its_cost_is_the_reason() -> None:
    def rate(cell: Cell, probe: str) -> float:
        return 0.05 if cell.cut is not None and cell.cut.kind == "target" else 0.9

    generation, *_ = claims("dissociation", rate, {})
    assert generation.verdict == "not supported"
    assert "of utility" in generation.reason


def test_every_variation_must_pass_by_its_bound() -> None:
    def rate(cell: Cell, probe: str) -> float:
        if probe != "generation" or cell.cut is None or cell.cut.kind == "random":
            return 0.9
        return 0.4 if cell.cut.examples == 8 else 0.05

    effect = claims("stability", rate, {}, prompts=100)[1]
    assert effect.verdict == "inconclusive"
    assert "8 examples" in effect.reason


# Three draws, of which one differs from the others in one weight of eleven, say little of a fourth.
@pytest.mark.parametrize(
    ("threshold", "verdict"), [(0.3, "supported"), (0.5, "inconclusive"), (0.95, "not supported")]
)
def test_the_overlap_that_draws_need_is_a_field(threshold: float, verdict: VerdictWord) -> None:
    def rate(cell: Cell, probe: str) -> float:
        if probe != "generation" or cell.cut is None or cell.cut.kind == "random":
            return 0.9
        return 0.05

    def places(cut: Cut) -> list[int]:
        return list(range(10)) if cut.draw != 1 else list(range(1, 11))

    config = invented_config({"stability": {"least_overlap": threshold}})
    section = config.section(stability.STUDY)
    assert section is not None
    result = stability.STUDY.summarise(Invented(config, rate, places=places), section)
    agreement = result.claims[0]
    assert agreement.verdict == verdict
    assert f"{100 * threshold:g} % of their union" in agreement.rule
    assert f"{100 * threshold:g} % of their union" in stability.STUDY.rules(section)[0].rule


@pytest.mark.parametrize(("share", "verdict"), [(0.5, "not supported"), (1.0, "supported")])
def test_what_a_random_cut_may_do_is_a_field(share: float, verdict: VerdictWord) -> None:
    grid = {"fractions": [0.002], "protected": [0.01], "scopes": ["tensor"]}

    def rate(cell: Cell, probe: str) -> float:
        if probe != "generation" or cell.cut is None:
            return 0.9
        return 0.05 if cell.cut.kind == "target" else 0.4

    (claim,) = claims("frontier", rate, grid | {"random_share": share})
    assert claim.verdict == verdict
    assert f"less than {100 * share:g} % of it" in claim.rule


@pytest.fixture
def three_categories(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("narrow", "far", "farther")
    monkeypatch.setattr(transfer, "categories", lambda design: names)


@pytest.mark.usefixtures("three_categories")
@pytest.mark.parametrize("named", [True, False])
def test_transfer_keeps_its_benign_yardstick(named: bool) -> None:
    # The demonstration names its benign targets, and none of them is called `benign`.
    config = invented_config({"transfer": {"benign": ["facts", "howto"]} if named else {}})
    study = transfer.STUDY
    section = config.section(study)
    assert section is not None
    located = {cell.cut.target for cell in study.plan(config, section) if cell.cut is not None}
    assert located == {"generation"} | ({"facts", "howto"} if named else set())

    def rate(cell: Cell, probe: str) -> float:
        return 0.1 if cell.cut is not None and cell.cut.kind == "target" else 0.9

    def places(cut: Cut) -> list[int]:
        return [0, 1, 2, 3] if cut.target == "generation" else [3, 4, 5, 6]

    result = study.summarise(Invented(config, rate, places=places), section)
    overlaps = {interval.name: interval.value for interval in result.claims[0].controls}
    name = "mean Jaccard overlap, harm type and benign behaviour"
    assert (name in overlaps) == named
    assert ("benign" in result.shows) == named
    if named:
        assert overlaps[name] == pytest.approx(1 / 7)


def test_the_demonstration_names_the_yardstick_of_transfer() -> None:
    config = demo_config((0,), quick=True)
    section = config.section(transfer.STUDY)
    assert section is not None
    assert section.benign
    assert set(section.benign) <= set(config.targets)


def changes(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"share": 0.05, "matched": 0.02, "chance": 0.01}
    monkeypatch.setattr(Measurements, "changes", lambda measured, cell: facts)


def learned(cell: Cell, probe: str) -> float:
    if probe == "misalignment":
        return 0.0 if cell.tuning is None else 0.9
    return 0.9


def test_one_seed_gives_no_interval_over_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    changes(monkeypatch)
    explained = claims("emergent", learned, {"steps": [2]})[-1]
    assert explained.claim == emergent.EXPLAINED.claim
    assert explained.effect.value == pytest.approx(2.5)
    assert explained.effect.low is None
    assert explained.verdict == "not measurable"
    assert "one seed" in explained.reason


def test_smallest_and_largest_are_no_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    changes(monkeypatch)
    explained = claims("emergent", learned, {"steps": [2]})[-1]
    assert {interval.bounds for interval in explained.controls} == {"range"}
    agreement, effect = claims("stability", learned, {})
    assert agreement.effect.bounds == "95 %"
    assert {interval.bounds for interval in (*agreement.controls, effect.effect)} == {"95 %"}
