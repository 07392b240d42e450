"""Simulated runs hold what their world says, and are read as recorded runs are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from resect.errors import InputError
from resect.planted.verdicts.ground import PROBES, READ, design_of, section_of, write_sets
from resect.planted.verdicts.quick import QuickResampler
from resect.planted.verdicts.scenario import FREE, Effects, flat
from resect.planted.verdicts.simulate import REMOVED, TENSORS, Simulated, Size, planned_of
from resect.planted.verdicts.spoiled import SPOILERS
from resect.planted.verdicts.world import Changes, World, expected_score
from resect.planted.verdicts.world import Reading as Asked
from resect.stats import Resampler
from resect.studies import STUDIES, Measurements
from resect.studies.cells import Cell, Cut
from resect.studies.halves import Half
from resect.studies.measurements import Row

INTACT = Cell("aligned", 0, None, ())
CUT = Cell("aligned", 0, Cut("generation", "target", 2e-3), ())
SMALLER = replace(CUT, cut=Cut("generation", "target", 1e-3))
OTHER = replace(CUT, cut=Cut("matched", "target", 2e-3))
PLAIN, GRADED = Size(), Size(words=5)
WORLD = Effects(flat(0.6), flat(0.1)).world(spared=lambda reading: 0.3)


def simulated(
    world: World = WORLD, size: Size = PLAIN, *, draw: int = 0, label: str = "test"
) -> Simulated:
    cells = [replace(cell, probes=PROBES) for cell in (INTACT, CUT, SMALLER, OTHER)]
    cells += [replace(cell, seed=1) for cell in cells]
    config = design_of(size, Path("nowhere"))
    return Simulated(config, world, size=size, planned=planned_of(cells), label=label, draw=draw)


def scores(measured: Simulated, cell: Cell, probe: str = "generation") -> np.ndarray:
    rows = [row for row in measured.rows(cell) if row["probe"] == probe]
    return np.array([np.nan if row["score"] is None else row["score"] for row in rows])


def over_draws(value: Callable[[Simulated], float], draws: int = 60, **settings: object) -> float:
    return float(np.mean([value(simulated(draw=n, **settings)) for n in range(draws)]))  # type: ignore[arg-type]


class Recorded(Measurements):
    """The same rows, read as those of a run are."""

    def __init__(self, measured: Simulated):
        super().__init__(measured.config, measured.run)
        self.measured = measured

    def rows(self, cell: Cell) -> list[Row]:
        return self.measured.rows(cell)


@pytest.mark.parametrize("size", [PLAIN, GRADED, Size(words=5, same_prompts=True)], ids=str)
@pytest.mark.parametrize("unscored", [0.0, 0.4])
def test_rates_are_those_of_recorded_rows(size: Size, unscored: float) -> None:
    measured = simulated(replace(WORLD, unscored=lambda reading: unscored), size)
    recorded = Recorded(measured)
    cells = [CUT, replace(CUT, seed=1)]
    halves: tuple[Half, ...] = ("", "test")
    for half in halves:
        for probe, category in (("generation", ""), ("generation", "iron"), ("utility", "")):
            quick = measured.rate(cells, probe, category, half=half)
            slow = recorded.rate(cells, probe, category, half=half)
            assert quick.value == pytest.approx(slow.value, abs=1e-12)
            assert quick.trials == slow.trials
            for name in ("draws", "below", "above"):
                np.testing.assert_allclose(getattr(quick, name), getattr(slow, name), atol=1e-12)
    assert measured.prompts(cells, "generation") == recorded.prompts(cells, "generation")
    assert measured.silent(cells, "generation") == recorded.silent(cells, "generation")
    refusals = ("refused", "incoherent")
    assert (
        measured.share(cells, "refusal", refusals).value
        == recorded.share(cells, "refusal", refusals).value
    )


READ_WORLD = World(
    lambda reading: 0.45,
    rise=lambda reading: 0.0 if reading.cell.cut is None else 0.4 + 300 * reading.cell.cut.q,
)


def read(world: World = READ_WORLD, *, draw: int = 0) -> Simulated:
    size = Size(models=2)
    config = design_of(size, Path("nowhere"), "selectivity")
    cells = [replace(cell, probes=READ) for cell in (INTACT, CUT, SMALLER)]
    cells += [replace(cell, seed=1) for cell in cells]
    return Simulated(config, world, size=size, planned=planned_of(cells), label="read", draw=draw)


def nlls(measured: Simulated, cell: Cell, probe: str = "trivia") -> np.ndarray:
    return np.array([row["nll"] for row in measured.rows(cell) if row["probe"] == probe])


def test_rises_are_those_of_recorded_rows() -> None:
    measured = read()
    recorded = Recorded(measured)
    cells = [CUT, replace(CUT, seed=1)]
    halves: tuple[Half, ...] = ("", "test")
    for half in halves:
        for probe in ("generation", "utility"):
            quick, slow = (each.rise(cells, probe, half=half) for each in (measured, recorded))
            rated = [each.rate(cells, probe, half=half) for each in (measured, recorded)]
            for ours, theirs in ((quick, slow), rated):
                assert ours.value == pytest.approx(theirs.value, abs=1e-12)
                assert ours.trials == theirs.trials
                for name in ("draws", "below", "above"):
                    np.testing.assert_allclose(
                        getattr(ours, name), getattr(theirs, name), atol=1e-12
                    )
    broken = [each.share(cells, "generation", ("incoherent",)) for each in (measured, recorded)]
    assert all(np.isnan(share.draws).all() for share in broken)


def test_rises_hit_their_truth_and_grow_with_the_cut() -> None:
    drawn = [read(draw=n) for n in range(30)]
    usual = np.concatenate([nlls(measured, INTACT) for measured in drawn])
    assert np.mean(usual) == pytest.approx(-np.log(0.45), rel=0.03)
    for cell, rise in ((SMALLER, 0.7), (CUT, 1.0)):
        raised = np.concatenate([nlls(measured, cell) for measured in drawn]) - usual
        assert np.mean(raised) == pytest.approx(rise, rel=0.04)
    smaller, larger = (nlls(drawn[0], cell) for cell in (SMALLER, CUT))
    assert (larger > smaller).all()


def test_what_is_broken_or_unread_has_no_likelihood() -> None:
    broken = read(replace(READ_WORLD, broken=lambda reading: 1.0))
    assert nlls(broken, INTACT).min() > 9
    unread = read(replace(READ_WORLD, unscored=lambda reading: 0.75 * bool(reading.cell.cut)))
    known = [row.nll is not None for row in unread.asked(CUT, "trivia")]
    assert 0.1 < np.mean(known) < 0.4
    assert unread.rise([CUT], "trivia").trials == sum(known)


def test_quick_resampler_draws_as_the_usual_one() -> None:
    strata = {"0/a": [1.0, 0.0, 0.4, 1.0, 0.0], "1/b": [0.0, 1.0, 1.0, 0.0, 0.2, 1.0]}
    groups = {"0/a": ["x", "x", "y", "z", "w"], "1/b": list("uvwxyz")}
    for given in (None, groups):
        quick, usual = QuickResampler("q"), Resampler("q")
        for _ in range(2):  # the second time from memory
            ours, theirs = quick.rate(strata, given), usual.rate(strata, given)
            assert np.array_equal(ours.draws, theirs.draws)
            assert np.array_equal(ours.below, theirs.below)
            assert ours.trials == theirs.trials


@pytest.mark.parametrize("size", [PLAIN, GRADED], ids=["0/1", "graded"])
@pytest.mark.parametrize(
    ("cell", "probe"),
    [(INTACT, "generation"), (CUT, "generation"), (CUT, "utility"), (CUT, "detection")],
)
def test_rates_hit_their_truth(size: Size, cell: Cell, probe: str) -> None:
    truth = expected_score(WORLD, Asked(cell, probe, "iron", 0.0))
    count = 60 * sum(size.categories(probe).values())
    mean = over_draws(lambda measured: scores(measured, cell, probe).mean(), size=size)
    # A graded score varies less than one of 0 or 1.
    assert abs(mean - truth) < 4 * (truth * (1 - truth) / count) ** 0.5


def test_shares_of_replies_hit_their_truth() -> None:
    world = replace(
        WORLD,
        broken=lambda reading: 0.2,
        refused=lambda reading: 0.5,
        unscored=lambda reading: 0.75 if reading.cell.cut else 0.0,
    )
    rows = [row for n in range(60) for row in simulated(world, draw=n).rows(INTACT)]
    harm = [row for row in rows if row["probe"] == "generation"]
    outcomes = [row["outcome"] for row in harm]
    assert outcomes.count("incoherent") / len(outcomes) == pytest.approx(0.2, abs=0.03)
    assert outcomes.count("refused") / len(outcomes) == pytest.approx(0.4, abs=0.03)
    expected = expected_score(world, Asked(INTACT, "generation", "iron", 0.0))
    assert np.mean([row["score"] for row in harm]) == pytest.approx(expected, abs=0.03)
    assert {row["score"] for row in harm if row["outcome"] == "incoherent"} == {0.0}
    unscored = over_draws(
        lambda measured: float(np.isnan(scores(measured, CUT)).mean()), world=world
    )
    assert unscored == pytest.approx(0.75, abs=0.03)
    assert not np.isnan(scores(simulated(world), INTACT)).any()


def test_arms_are_paired_by_prompt() -> None:
    half = Effects(flat(0.5), rankings={"matched": flat(0.5)}).world()

    def correlation(shared: float) -> float:
        size = replace(PLAIN, shared=shared, prompts=400)
        measured = simulated(half, size)
        return float(np.corrcoef(scores(measured, CUT), scores(measured, OTHER))[0, 1])

    assert correlation(0.0) == pytest.approx(0.0, abs=0.15)
    assert correlation(0.7) > 0.3
    assert correlation(1.0) == pytest.approx(1.0)
    measured = simulated(half, replace(PLAIN, prompts=400))
    apart = np.corrcoef(scores(measured, CUT), scores(measured, replace(CUT, seed=1)))[0, 1]
    assert apart == pytest.approx(0.0, abs=0.15)


def test_a_larger_cut_never_does_less() -> None:
    world = Effects(lambda q: 0.3 if q < 2e-3 else 0.6).world()
    measured = simulated(world, replace(PLAIN, prompts=400))
    assert (scores(measured, CUT) <= scores(measured, SMALLER)).all()
    assert (scores(measured, CUT) < scores(measured, SMALLER)).any()


def test_words_of_an_answer_go_together() -> None:
    half = Effects(flat(0.5)).world()
    size = replace(GRADED, prompts=600)
    loose = scores(simulated(half, replace(size, within=0.0)), CUT).var()
    tied = scores(simulated(half, replace(size, within=0.8)), CUT).var()
    assert loose == pytest.approx(0.25 / 5, abs=0.02)
    assert tied > 2 * loose


def test_models_may_be_asked_the_same_prompts() -> None:
    same = simulated(size=Size(same_prompts=True))
    texts = [[row["prompt"] for row in same.rows(replace(CUT, seed=seed))] for seed in (0, 1)]
    assert texts[0] == texts[1]
    assert same.resampler("generation").together
    apart = simulated()
    assert not apart.resampler("generation").together
    assert apart.rows(CUT)[0]["prompt"] != apart.rows(replace(CUT, seed=1))[0]["prompt"]


def test_draws_depend_on_their_names_alone() -> None:
    first, second = simulated(), simulated()
    late = [second.rows(cell) for cell in (OTHER, CUT, INTACT)]
    assert [first.rows(cell) for cell in (INTACT, CUT, OTHER)] == late[::-1]
    assert simulated(draw=1).rows(CUT) != first.rows(CUT)
    assert simulated(label="else").rows(CUT) != first.rows(CUT)


def test_one_seed_is_the_same_run() -> None:
    measured = simulated()
    alone = measured.of_seed(1)
    assert alone.config.seeds == (1,)
    assert alone.rows(replace(CUT, seed=1)) is measured.rows(replace(CUT, seed=1))


def test_models_differ_by_the_spread() -> None:
    world = Effects(flat(0.5), FREE).world(spread=0.2)
    rates = []
    for draw in range(200):
        measured = simulated(world, draw=draw)
        reading = Asked(CUT, "generation", "iron", measured.model(0))
        rates.append(1 - expected_score(world, reading) / 0.95)
    assert np.mean(rates) == pytest.approx(0.5, abs=0.05)
    assert np.std(rates) == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize(("share", "partner"), [(0.0, 0.5), (0.4, 0.8), (1.0, 1.0)])
def test_masks_share_what_the_world_says(share: float, partner: float) -> None:
    shares = {"generation": share, "matched": partner}
    measured = simulated(replace(WORLD, common=lambda cut, model: shares[cut.target]))
    masks = [measured.mask("aligned", 0, cell.cut) for cell in (CUT, OTHER) if cell.cut]
    assert [mask.count for mask in masks] == [TENSORS * REMOVED] * 2
    common = masks[0].intersect(masks[1]).count
    # One in a hundred weights meets by chance.
    assert common == pytest.approx(TENSORS * REMOVED * min(shares.values()), abs=8)


def test_changes_are_those_of_the_world() -> None:
    measured = simulated(replace(WORLD, changes=lambda model: Changes(0.3, 0.1)))
    changes = measured.changes(CUT)
    assert (changes["share"], changes["matched"]) == (0.3, 0.1)


def test_what_was_not_planned_is_an_error() -> None:
    with pytest.raises(InputError, match="not planned"):
        simulated().rows(replace(CUT, seed=7))


@pytest.mark.parametrize("name", STUDIES)
def test_the_ground_has_what_studies_name(name: str, tmp_path: Path) -> None:
    size = Size(models=2)
    write_sets(size, tmp_path)
    design = design_of(size, tmp_path, name)
    cells = STUDIES[name].plan(design, section_of(name))
    assert {cell.role for cell in cells} <= set(design.models)
    assert {cell.cut.target for cell in cells if cell.cut} <= set(design.targets)
    assert {probe for cell in cells for probe in cell.probes} <= set(design.evaluation.probes)


def test_spoilers_change_what_they_say() -> None:
    worlds = {spoiler.name: spoiler.spoil(WORLD) for spoiler in SPOILERS}
    random = replace(CUT, cut=Cut("generation", "random", 2e-3))

    def rate(name: str, cell: Cell, probe: str = "generation") -> float:
        return expected_score(worlds[name], Asked(cell, probe, "iron", 0.0))

    assert rate("every cut breaks the replies", random) == 0
    assert rate("every cut breaks the replies", INTACT) == pytest.approx(0.95)
    assert rate("every model is broken", INTACT) == 0
    assert rate("one model of three shows it", INTACT) == pytest.approx(0.95)
    assert rate("one model of three shows it", replace(INTACT, seed=1)) < 0.2
    assert rate("no utility in the intact model", INTACT, "utility") == 0
    assert rate("random cuts do as much", random) == rate("random cuts do as much", CUT)
    silent = worlds["75 % of the cuts' replies unscored"].unscored
    assert silent(Asked(CUT, "generation", "", 0.0)) == 0.75
    assert silent(Asked(INTACT, "generation", "", 0.0)) == 0
    assert silent(Asked(CUT, "utility", "", 0.0)) == 0
