"""From worlds to a table: what is certain is said so, and the same seed gives the same table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from resect.errors import InputError
from resect.planted.verdicts import benchmark, order, scenarios
from resect.planted.verdicts.benchmark import Request, plan, verdicts
from resect.planted.verdicts.count import Count, claims_of, count_verdicts, positions
from resect.planted.verdicts.ground import design_of
from resect.planted.verdicts.order import Order, order_of, verdicts_by_broken, with_broken
from resect.planted.verdicts.scenario import FREE, Effects, Scenario, flat
from resect.planted.verdicts.scenarios import scenarios_of
from resect.planted.verdicts.simulate import Simulated, Size, planned_of
from resect.planted.verdicts.table import rows_of, totals_of
from resect.planted.verdicts.text import BEGIN, END, filled
from resect.records import VerdictWord
from resect.studies import STUDIES
from resect.studies.cells import Cell, Cut
from resect.studies.models import over_models as weigh

NONE = {"supported": 0, "not supported": 0, "inconclusive": 0, "not measurable": 0}


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_has_worlds_of_every_truth(study: str) -> None:
    worlds = scenarios_of(study)
    assert len(worlds) >= 20
    assert len({world.label for world in worlds}) == len(worlds)
    assert set(worlds[0].expected) == {"true"}
    assert {len(world.expected) for world in worlds} == {len(STUDIES[study].stated)}
    for claim in range(len(STUDIES[study].stated)):
        truths = {world.expected[claim] for world in worlds}
        assert truths == {"true", "false", "boundary"}


def of_compactness(drop: float) -> Scenario:
    noiseless = Effects(flat(drop), FREE, control=FREE).world()
    world = replace(noiseless, rate=lambda reading: min(1.0, noiseless.rate(reading) / 0.95))
    return Scenario("compactness", f"drop {drop}", world, ("true",))


@pytest.mark.parametrize(("drop", "verdict"), [(1.0, "supported"), (0.0, "not supported")])
def test_what_is_certain_is_said_so(drop: float, verdict: str) -> None:
    counts = count_verdicts(of_compactness(drop), range(2), weigh)
    # Five models, so that something is said of their recipe too.
    assert [count.statement for count in counts] == ["models", "recipe"]
    assert {(count.verdict, count.number) for count in counts} == {(verdict, 2)}


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_can_be_simulated(study: str) -> None:
    scenario = scenarios_of(study)[0]
    counts = count_verdicts(scenario, range(1), weigh)
    assert {count.stated for count in counts} == set(range(len(STUDIES[study].stated)))
    assert {count.truth for count in counts} == {"true"}


def test_truth_of_these_models_may_differ_from_run_to_run() -> None:
    scenario = replace(
        of_compactness(0.5), realised=lambda models: sum(models) > 0, size=Size(models=1)
    )
    counts = count_verdicts(scenario, range(6), weigh)
    assert {count.truth for count in counts} == {"true", "false"}


def test_what_is_true_of_a_recipe_does_not_depend_on_the_drawn_models() -> None:
    scenario = replace(of_compactness(0.5), realised=lambda models: False)
    counts = count_verdicts(scenario, range(2), weigh)
    truths = {(count.statement, count.truth) for count in counts}
    assert truths == {("models", "false"), ("recipe", "true")}


@pytest.mark.usefixtures("short")
def test_runs_at_the_boundary_are_upper_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worlds = [of_compactness(0.8), replace(of_compactness(0.8), expected=("boundary",))]
    monkeypatch.setattr(scenarios, "WORLDS", {"compactness": lambda: worlds})
    monkeypatch.setattr(scenarios, "spoiled", lambda world: [])
    outcome = verdicts(Request(quick=True, jobs=1, boundary=30), tmp_path / "out", weigh)
    rows = {(row.statement, row.truth): row for row in outcome.rows}
    assert set(rows) == {
        ("models", "true"),
        ("recipe", "true"),
        ("models", "boundary"),
        ("pooled", "boundary"),
        ("recipe", "boundary"),
    }
    assert rows["pooled", "boundary"].draws == 30
    with pytest.raises(InputError, match="positive"):
        verdicts(Request(boundary=-1), tmp_path / "other", weigh)


@pytest.mark.parametrize("study", STUDIES)
def test_each_claim_has_its_runs_at_the_boundary(study: str) -> None:
    worlds, stated = scenarios_of(study), STUDIES[study].stated
    runs = Counter[int]()
    for block in plan(Request(studies=(study,), quick=True, boundary=100)):
        for claim, truth in enumerate(worlds[block.scenario].expected):
            if block.pooled and truth == "boundary":
                runs[claim] += block.stop - block.start
    # Whether draws share half of their weights is true or false of the drawn models.
    claims = range(1 if study == "stability" else 0, len(stated))
    assert set(runs) == set(claims)
    assert min(runs.values()) >= 100


def test_a_claim_that_was_not_stated_is_a_bug() -> None:
    study = STUDIES["transfer"]
    (claim,) = claims_of(scenarios_of("transfer")[0], 0, weigh)
    assert list(positions(study, [claim])) == [0]
    with pytest.raises(ValueError, match="has not stated"):
        list(positions(study, [replace(claim, claim="Something else.")]))


def test_more_broken_answers_never_pass_more_easily(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "SIZES", (33,))
    scenario = scenarios_of("dissociation")[0]
    assert order_of(scenario, weigh) == Order("dissociation", 1, 0)
    by_broken = list(verdicts_by_broken(replace(scenario, size=Size(models=1)), weigh))
    assert len(by_broken) == 4


def test_a_reversal_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    up: tuple[VerdictWord, ...] = ("inconclusive", "supported", "inconclusive", "not supported")
    words = iter(up)

    def wrong(measured, study, section):  # type: ignore[no-untyped-def]
        result = weigh(measured, study, section)
        claims = (replace(result.claims[0], verdict=next(words)), *result.claims[1:])
        return replace(result, claims=claims)

    monkeypatch.setattr(order, "SIZES", (33,))
    assert order_of(scenarios_of("dissociation")[0], wrong).reversals == 1


def test_broken_answers_are_those_of_the_cut() -> None:
    world = with_broken(scenarios_of("dissociation")[0].world, 2)
    size = Size(models=1)
    for cut, broken in ((None, 0), (Cut("generation", "target", 2e-3), 2)):
        cell = Cell("aligned", 0, cut, ("detection", "utility"))
        measured = Simulated(
            design_of(size, Path("nowhere")),
            world,
            size=size,
            planned=planned_of([cell]),
            label="test",
            draw=0,
        )
        for probe, categories in (("detection", 5), ("utility", 1)):
            scores = [row["score"] for row in measured.rows(cell) if row["probe"] == probe]
            assert scores.count(0.0) == broken * categories


def test_rows_and_totals() -> None:
    worlds = scenarios_of("stability")
    claim = STUDIES["stability"].stated[0].claim
    rows = rows_of(
        worlds[0],
        [
            Count(claim, 0, "true", "supported", 3),
            Count(claim, 0, "true", "inconclusive", 1),
            Count(claim, 0, "true", "supported", 4),
        ],
    )
    assert [(row.draws, row.counts) for row in rows] == [
        (8, NONE | {"supported": 7, "inconclusive": 1})
    ]
    columns = rows[0].plain()
    assert columns["supported"] == 7 / 8
    assert columns["supported_low"] < 7 / 8 < columns["supported_high"]
    rows += rows_of(worlds[1], [Count(claim, 0, "true", "not supported", 2)])
    rows += rows_of(worlds[2], [Count(claim, 0, "false", "supported", 1)])
    totals = totals_of(rows)
    assert [(total.truth, total.draws, total.supported) for total in totals] == [
        ("true", 10, 7),
        ("false", 1, 1),
    ]
    # The worst world of a true claim is the one that supports it least.
    assert totals[0].worst.startswith(worlds[1].name)
    assert totals[1].worst_share == 1


def test_the_table_goes_to_its_place() -> None:
    page = f"# Verdicts\n\n{BEGIN}\nold\n{END}\n\nafter\n"
    table = filled(page, "made\n\n## Part\n", "page.md")
    assert "old" not in table
    assert "### Part" in table
    assert table.startswith("# Verdicts")
    assert table.endswith("after\n")
    assert filled(table, "made\n\n## Part\n", "page.md") == table
    with pytest.raises(InputError, match="no place"):
        filled("# Verdicts", "table", "page.md")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave one world of one study, and its spoiled ones, and two runs of each."""
    usual = scenarios.WORLDS["stability"]
    monkeypatch.setattr(scenarios, "WORLDS", {"stability": lambda: usual()[:1]})
    monkeypatch.setattr(benchmark, "QUICK", 2)
    return iter(())


@pytest.mark.usefixtures("short")
def test_the_same_seed_gives_the_same_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\n{END}\n", encoding="utf-8")
    done: list[int] = []
    request = Request(quick=True, jobs=1)
    first = verdicts(request, tmp_path / "one", weigh, lambda n, _: done.append(n), page=page)
    assert done == list(range(len(done)))
    assert len(done) == 1 + 8
    # Runs in other blocks are the same runs.
    monkeypatch.setattr(benchmark, "BLOCK", 1)
    second = verdicts(request, tmp_path / "two", weigh)
    assert first == second
    texts = [(tmp_path / name / "verdicts.md").read_text("utf-8") for name in ("one", "two")]
    assert texts[0] == texts[1]
    assert "stable" in page.read_text("utf-8")
    results = json.loads((tmp_path / "one" / "results.json").read_text("utf-8"))
    # Two claims, of the models and of their recipe.
    assert len(results["rows"]) == 8 * 2 * 2
    assert results["orders"] == []
    assert not (tmp_path / "one.parts").exists()


@pytest.mark.usefixtures("short")
def test_a_whole_table_looks_at_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "SIZES", (33,))
    monkeypatch.setattr(scenarios, "WORDS", (5,))
    done: list[tuple[int, int]] = []
    request = Request(draws=1, jobs=1)
    outcome = verdicts(request, tmp_path / "out", weigh, lambda n, of: done.append((n, of)))
    assert outcome.orders == [Order("stability", 1, 0)]
    assert {row.scores for row in outcome.rows} == {"graded"}
    assert done[-1] == (9, 9)
    assert "| stability | 1 | 0 |" in (tmp_path / "out" / "verdicts.md").read_text("utf-8")


@pytest.mark.usefixtures("short")
def test_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = count_verdicts
    calls: list[str] = []

    def counted(scenario, draws, weigh):  # type: ignore[no-untyped-def]
        calls.append(scenario.name)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return usual(scenario, draws, weigh)

    monkeypatch.setattr(benchmark, "count_verdicts", counted)
    request = Request(quick=True, jobs=1)
    with pytest.raises(KeyboardInterrupt):
        verdicts(request, tmp_path / "out", weigh)
    assert not (tmp_path / "out").exists()
    verdicts(request, tmp_path / "out", weigh)
    assert len(calls) == 8 + 1


def test_bad_requests(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nosuch"):
        verdicts(Request(studies=("nosuch",)), tmp_path / "out", weigh)
    with pytest.raises(InputError, match="positive"):
        verdicts(Request(draws=0), tmp_path / "out", weigh)
    page = tmp_path / "page.md"
    page.write_text("nothing", encoding="utf-8")
    with pytest.raises(InputError, match="no place"):
        verdicts(Request(), tmp_path / "out", weigh, page=page)
    with pytest.raises(InputError, match="cannot read"):
        verdicts(Request(), tmp_path / "out", weigh, page=tmp_path / "gone.md")
    assert [path.name for path in tmp_path.iterdir()] == ["page.md"]
