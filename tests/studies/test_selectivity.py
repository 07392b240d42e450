"""What a cut must do to be selective, on invented likelihoods, and the numbers behind it."""

from __future__ import annotations

import json
import math
from statistics import fmean
from typing import Any

import numpy as np
import pytest

from invented_likelihoods import FRACTIONS, SIDES, Read, Rise, config
from resect.errors import InputError
from resect.files.writing import plain
from resect.records import Claim
from resect.runs.config import RunConfig, parse_config
from resect.stats import Resampler, Sample
from resect.studies import STUDIES
from resect.studies.cells import Cell, Cut
from resect.studies.measurements import Row
from resect.studies.models import over_models
from resect.studies.rises import Rises, rises_of
from resect.studies.selectivity import Selectivity, sides_of


def claims(measured: Read, study: str = "selectivity") -> tuple[Claim, ...]:
    assert isinstance(measured.config, RunConfig)
    section = getattr(measured.config.studies, study)
    return over_models(measured, STUDIES[study], section).claims


def by_target(harm: dict[float, float], sides: dict[float, float], random: float = 0.0) -> Rise:
    """Return the rises of the target's cuts by fraction; `source` costs five times as much."""

    def rise(cell: Cell, probe: str) -> float:
        cut = cell.cut
        assert cut is not None
        if cut.kind != "target":
            return random
        cost = sides[cut.q] * (5 if cut.target == "source" else 1)
        return harm[cut.q] if probe == "generation" else cost

    return rise


HARM = {1e-5: 0.1, 1e-4: 0.8, 1e-3: 3.0}
SPARED = {1e-5: 0.0, 1e-4: 0.02, 1e-3: 1.5}


def test_a_selective_cut_is_supported_and_chosen_by_its_margin() -> None:
    (claim,) = claims(Read(config(), by_target(HARM, SPARED)))
    assert (claim.verdict, claim.recipe) == ("supported", None), claim.reason
    assert "q = 0.01 %" in claim.reason
    assert claim.effect.value == pytest.approx(0.8, rel=0.02)
    selectivity = claim.controls[0]
    assert selectivity.value == pytest.approx(40, rel=0.1)
    assert None not in (selectivity.low, selectivity.high)
    assert selectivity.low < selectivity.value < selectivity.high  # type: ignore[operator]


@pytest.mark.parametrize("side", SIDES)
def test_a_side_set_that_loses_as_much_is_enough_to_fail(side: str) -> None:
    spared = by_target(HARM, SPARED)

    def rise(cell: Cell, probe: str) -> float:
        return spared(cell, "generation" if probe == side else probe)

    (claim,) = claims(Read(config(utility_drop=1.0), rise))
    assert claim.verdict == "not supported"
    assert claim.reason.endswith(f"no more than 5 times as much as: {side}.")
    # A set that nobody named does not count.
    others = [name for name in SIDES if name not in (side, "utility")]
    if side != "utility":
        (claim,) = claims(Read(config(sides=others), rise))
        assert claim.verdict == "supported"


def test_a_destroyed_model_supports_nothing() -> None:
    flat = dict.fromkeys(FRACTIONS, 12.0)
    for random in (0.0, 12.0):
        measured = Read(config(utility_drop=1.0), by_target(flat, flat, random))
        assert [claim.verdict for claim in claims(measured)] == ["not supported"]
    (claim,) = claims(Read(config(), by_target(flat, flat)))
    assert claim.verdict == "not supported"
    assert "no cut" in claim.reason


@pytest.mark.parametrize("side", ["generation", "trivia"])
def test_rows_without_likelihood_leave_nothing_to_measure(side: str) -> None:
    class Unread(Read):
        def _invent(self, cell: Cell) -> list[Row]:
            rows = super()._invent(cell)
            for number, row in enumerate(rows):
                if cell.cut is not None and row["probe"] == side and number % 4:
                    row |= {"nll": None, "score": None}
            return rows

    (claim,) = claims(Unread(config(), by_target(HARM, SPARED)))
    assert claim.verdict == "not measurable"
    assert f"75 % of the rows of {side} have no likelihood" in claim.reason


@pytest.mark.parametrize(
    ("harm", "sides", "section", "verdict"),
    [
        (0.8, 0.02, {}, "supported"),
        (0.2, 0.0, {}, "not supported"),  # too little
        (0.305, 0.0, {}, "inconclusive"),  # perhaps too little
        (0.8, 0.2, {"utility_drop": 0.5}, "not supported"),  # four times as much
        (0.8, 0.145, {"utility_drop": 0.5}, "inconclusive"),
        (0.8, 0.2, {"utility_drop": 0.5, "selectivity": 3}, "supported"),
        (0.8, 0.12, {}, "not supported"),  # beyond the budget: no cut
        (0.8, -0.5, {}, "supported"),  # side sets that become more likely
    ],
)
def test_the_rule_at_its_edges(
    harm: float, sides: float, section: dict[str, Any], verdict: str
) -> None:
    rise = by_target(dict.fromkeys(FRACTIONS, harm), dict.fromkeys(FRACTIONS, sides))
    (claim,) = claims(Read(config(**section), rise))
    assert claim.verdict == verdict, claim.reason


def test_a_random_cut_that_does_as_much_fails() -> None:
    measured = Read(config(), by_target(HARM, SPARED))
    usual = measured.rise_of

    def rise(cell: Cell, probe: str) -> float:
        assert cell.cut is not None
        return usual(Cell("aligned", 0, Cut("generation", "target", cell.cut.q), ()), probe)

    (claim,) = claims(Read(config(), rise))
    assert claim.verdict == "not supported"
    assert "random weights" in claim.reason


def test_a_rival_has_to_be_beaten() -> None:
    measured = Read(config(rivals=["source"]), by_target(HARM, SPARED))
    selective, more = claims(measured)
    assert (selective.verdict, more.verdict) == ("supported", "supported")
    assert more.effect.name == "margin, less that of cuts ranked by source (nats)"

    def worse(cell: Cell, probe: str) -> float:
        assert cell.cut is not None
        swapped = {"generation": "source", "source": "generation"}[cell.cut.target]
        cut = Cut(swapped, cell.cut.kind, cell.cut.q)
        return measured.rise_of(Cell("aligned", 0, cut, ()), probe)

    _, more = claims(Read(config(rivals=["source"]), worse))
    assert more.verdict == "not supported"


def test_what_the_intact_model_finds_unlikely_is_not_measurable() -> None:
    (claim,) = claims(Read(config(), by_target(HARM, SPARED), intact=2.0))
    assert claim.verdict == "not measurable"
    assert "finds the answers of generation unlikely" in claim.reason
    (claim,) = claims(Read(config(least_side=0.5), by_target(HARM, SPARED)))
    assert claim.verdict == "not measurable"
    assert "noise, with less than 50 % a token: utility, trivia" in claim.reason


def test_a_run_without_side_sets_is_refused() -> None:
    for sides in ([], ["generation"]):
        design = config(sides=sides)
        with pytest.raises(InputError, match="sets that the cut is to leave alone"):
            STUDIES["selectivity"].plan(design, design.studies.selectivity)


def test_several_models_have_two_statements() -> None:
    (claim,) = claims(Read(config(seeds=5), by_target(HARM, SPARED)))
    assert claim.verdict == "supported"
    assert claim.recipe is not None
    assert claim.recipe.verdict == "supported"
    assert set(claim.by_seed.values()) == {"supported"}


def test_other_studies_read_the_same_rows() -> None:
    values = config().model_dump(mode="json")
    values["studies"] = {"compactness": {"fractions": list(FRACTIONS), "harm_drop": 0.5}}
    measured = Read(parse_config(values, "test"), by_target(HARM, SPARED))
    (claim,) = claims(measured, "compactness")
    assert claim.verdict == "supported", claim.reason
    # 0.8 nats take half of a likelihood: 1 - exp(-0.8) = 0.55.
    assert claim.effect.value == pytest.approx(1 - math.exp(-0.8), abs=0.03)
    assert "incoherent" not in claim.rule
    flat = dict.fromkeys(FRACTIONS, 12.0)
    broken = Read(measured.config, by_target(flat, flat))  # type: ignore[arg-type]
    assert claims(broken, "compactness")[0].verdict == "not supported"


def test_a_rise_is_the_mean_over_categories_of_paired_differences() -> None:
    measured = Read(config(seeds=2), by_target(HARM, SPARED))
    cut = Cut("generation", "target", 1e-4)
    cells = [Cell("aligned", seed, cut, ()) for seed in (0, 1)]
    for half in ("test", "selection", ""):
        rise = measured.rise(cells, "trivia", half=half)
        means = []
        for cell in cells:
            intact = measured.rows(Cell("aligned", cell.seed, None, ()))
            before = {row["example_id"]: row["nll"] for row in intact}
            rows = [row for row in measured.rows(cell) if row["probe"] == "trivia"]
            dealt = measured.asked(cell, "trivia")
            for category in ("narrow", "far", "farther"):
                gaps = [
                    row["nll"] - before[row["example_id"]]
                    for row, asked in zip(rows, dealt, strict=True)
                    if row["category"] == category and half in ("", asked.half)
                ]
                means.append(fmean(gaps))
        assert rise.value == pytest.approx(fmean(means))
        interval = rise.interval("")
        assert interval.low is not None
        assert interval.low < fmean(means) < interval.high  # type: ignore[operator]


def test_margin_and_selectivity_are_the_least_and_the_largest() -> None:
    resampler = Resampler("toy", together=False)

    def sample(name: str, mean: float) -> object:
        return resampler.spread({name: [mean + 0.01 * (n % 5 - 2) for n in range(40)]})

    rises = Rises(sample("a", 0.9), {"x": sample("b", 0.1), "y": sample("c", -0.3)})  # type: ignore
    assert rises.margin(5).value == pytest.approx(0.4)
    assert rises.margin(0.5).value == pytest.approx(0.85)
    assert rises.largest.side == "x"
    assert rises.largest.rise.value == pytest.approx(0.1)
    assert rises.selectivity.value == pytest.approx(9)
    none = Rises(rises.harm, {"y": rises.sides["y"]})
    assert none.margin(5).value == pytest.approx(0.9)  # never more than the rise itself
    assert (none.selectivity.value, none.selectivity.high) == (None, None)


@pytest.mark.parametrize("seed", range(3))
def test_intervals_say_what_the_verdict_says(seed: int) -> None:
    resampler, draw = Resampler("say", 399), np.random.default_rng(seed)

    def sample(name: str, mean: float, deviation: float) -> Sample:
        return resampler.reaching({name: list(mean + deviation * (draw.exponential(1, 16) - 1))})

    rises = Rises(
        sample("h", 1.0, 0.5),
        {"x": sample("x", 0.12, 0.1), "y": sample("y", 0.1, 0.2), "z": sample("z", 0.02, 0.1)},
    )
    assert isinstance(rises.selectivity.low, float)
    words = set()
    for factor in np.geomspace(0.5, 40, 40):
        holds = [rises.over(side, factor).interval("").low for side in rises.sides]
        supported = all(low is not None and low > 0 for low in holds)
        words.add(supported)
        assert supported == (rises.margin_interval("", factor).low > 0)  # type: ignore[operator]
        assert supported == (factor < rises.selectivity.low)
    assert words == {True, False}
    assert rises.selectivity.high is None or rises.selectivity.high > rises.selectivity.value  # type: ignore[operator]
    share = rises.share.interval("")
    assert share.low < share.value < share.high  # type: ignore[operator]
    side = rises.largest_interval("")
    assert side.low <= side.value <= side.high  # type: ignore[operator]
    assert side.value == rises.largest.rise.value


def test_the_probes_that_are_asked() -> None:
    design = config(rivals=["source"], damage=True)
    section = design.studies.selectivity
    cells = STUDIES["selectivity"].plan(design, section)
    assert {cell.probes for cell in cells} == {("generation", *SIDES)}
    kinds = {(cell.cut.target, cell.cut.kind) for cell in cells if cell.cut is not None}
    assert kinds == {
        ("generation", "target"), ("source", "target"), ("generation", "random"),
        ("generation", "magnitude"), ("generation", "damage"),
    }  # fmt: skip
    assert len(cells) == 1 + 5 * len(FRACTIONS)
    measured = Read(design, by_target(HARM, SPARED))
    assert list(rises_of(measured, sides_of(design, section), cells[:1]).sides) == list(SIDES)
    assert Selectivity().selectivity == 5


def test_shares_of_rankings_are_compared_at_the_same_fraction() -> None:
    spared = {q: 0.1 * rise for q, rise in HARM.items()}
    measured = Read(config(rivals=["source"], seeds=2), by_target(HARM, spared))
    assert isinstance(measured.config, RunConfig)
    rows = STUDIES["selectivity"].summarise(measured, measured.config.studies.selectivity)
    shares: dict[tuple[Any, Any], dict[str, Any]] = {
        (row["arm"], row["q"]): dict(row) for row in rows.tables["shares"]
    }
    assert set(shares) == {(arm, q) for arm in ("target", "ranked by source") for q in FRACTIONS}
    for q in FRACTIONS:
        target, rival = shares["target", q], shares["ranked by source", q]
        assert target["share"] == pytest.approx(0.1, rel=0.2)
        assert target["share_low"] < target["share"] < target["share_high"]
        assert (target["above_target"], target["above_target_low"]) == (0, 0)
        # `source` costs five times as much for the same harm.
        assert rival["share"] == pytest.approx(5 * target["share"])
        assert rival["above_target"] == pytest.approx(4 * target["share"])
        assert rival["above_target_low"] > 0


class OfOneTemplate(Read):
    """Eight prompts of each set that differ in one word of five."""

    def _invent(self, cell: Cell) -> list[Row]:
        rows = super()._invent(cell)
        words = "write short poem"
        return [row | {"category": "", "prompt": f"{words} {row['example_id']}"} for row in rows]


@pytest.mark.parametrize("study", ["selectivity", "compactness"])
def test_prompts_that_say_the_same_leave_nothing_to_measure(study: str) -> None:
    sections = {"compactness": {"fractions": list(FRACTIONS)}}
    asked = config()
    asked = parse_config(
        asked.model_dump(exclude_unset=True)
        | {"studies": asked.studies.model_dump(exclude_none=True) | sections},
        "test",
    )
    measured = OfOneTemplate(asked, by_target(HARM, SPARED), prompts=8)
    (claim,) = claims(measured, study)
    assert claim.verdict == "not measurable"
    assert "generation count as 1: they share 50 % of their content words" in claim.reason
    # JSON has no number for what is not known.
    json.dumps(plain(claim), allow_nan=False)
