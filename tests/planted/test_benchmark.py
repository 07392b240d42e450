"""Planted models hold what they promise, and the benchmark runs on them, new methods included."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from resect.attribution import methods
from resect.attribution.methods import Rule
from resect.data.encode import encode
from resect.data.load import load_data
from resect.edit.live import removed
from resect.errors import InputError
from resect.evaluation.decode import GenerationSettings, generate
from resect.model import load_model, prunable_tensors
from resect.organism.recipe import Recipe
from resect.planted import benchmark as benchmark
from resect.planted import trial as cells
from resect.planted.behaviour import recipes, skill
from resect.planted.benchmark import Request, localise, plan
from resect.planted.plant import BenignRecipe, Planted, PlantedRecipe, plant
from resect.planted.teaching import SHAPES, draw_set
from resect.planted.trial import CellResult, Trial, areas, run_cell
from resect.planted.variants import ORACLE, SOURCE, Variant, variants
from resect.stats import rng
from resect.weights.mask import Mask

SMALL = PlantedRecipe(
    share=0.05, steps=3, batch=6, benign=BenignRecipe(Recipe.tiny(), steps=3, batch=6)
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plants")


@pytest.fixture(scope="module")
def planted(root: Path) -> Planted:
    return plant(SMALL, root=root)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return prunable_tensors(load_model(folder, device="cpu").model)


def changed(one: Path, other: Path) -> dict[str, set[int]]:
    now, before = tensors(one), tensors(other)
    return {n: set((now[n] != before[n]).reshape(-1).nonzero()[:, 0].tolist()) for n in now}


@pytest.mark.parametrize(
    "recipe",
    [
        SMALL,
        replace(SMALL, clamp=True),
        replace(SMALL, start="kept"),
        replace(SMALL, shape="neurons"),
        replace(SMALL, shape="low_rank", rank=2),
        replace(SMALL, categories="separate"),
        replace(SMALL, decoy=False),
    ],
    ids=["plain", "clamp", "kept", "neurons", "low_rank", "separate", "alone"],
)
def test_only_the_set_is_trained(recipe: PlantedRecipe, root: Path) -> None:
    found = plant(recipe, root=root)
    moved, inside = changed(found.model, found.before), found.mask().tensors
    for name, places in moved.items():
        assert places <= set(inside[name].index.tolist())
    assert sum(map(len, moved.values())) > found.mask().count / 2
    outside, after = (
        next(load_model(folder).model.get_input_embeddings().parameters())
        for folder in (found.before, found.model)
    )
    assert torch.equal(outside, after)
    assert found.mask().intersect(found.mask("decoy")).count == 0
    assert found.mask().count == pytest.approx(found.mask("decoy").count, rel=0.05)
    if recipe.categories == "separate":
        parts = found.mask("hazard-a").union(found.mask("hazard-b"))
        assert parts.overlap(found.mask()) == 1


def test_cutting_the_set_gives_back_the_model_before(planted: Planted) -> None:
    loaded, before = load_model(planted.model), tensors(planted.before)
    with removed(loaded.model, planted.mask()):
        for name, weight in prunable_tensors(loaded.model).items():
            assert torch.equal(weight, before[name])
    assert any(changed(planted.model, planted.before).values())


def test_low_rank_is_of_low_rank(root: Path) -> None:
    found = plant(replace(SMALL, shape="low_rank", rank=2), root=root)
    now, before = tensors(found.model), tensors(found.before)
    processes = [int(torch.linalg.matrix_rank(now[n] - before[n], rtol=1e-4)) for n in now]
    assert max(processes) in (1, 2)


def test_a_plant_is_the_same_when_made_again(planted: Planted, tmp_path: Path) -> None:
    again = plant(SMALL, root=tmp_path)
    assert not any(changed(again.model, planted.model).values())
    assert again.mask().overlap(planted.mask()) == 1
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("shape", SHAPES)
def test_sets_are_of_the_size_and_apart(shape: Any) -> None:
    model = tiny.build("llama")
    total = sum(weight.numel() for weight in prunable_tensors(model).values())
    first = draw_set(model, shape, 0.1, rng("test/s"), {})
    second = draw_set(model, shape, 0.1, rng("test/d"), first.places)
    for drawn in (first, second):
        assert drawn.count == pytest.approx(0.1 * total, rel=0.3)
        for index in drawn.places.values():
            assert index.tolist() == sorted(set(index.tolist()))
    for name, index in first.places.items():
        assert not torch.isin(index, second.places.get(name, torch.tensor([-1]))).any()
    with pytest.raises(InputError, match="does not fit"):
        draw_set(model, "layer", 0.9, rng("test/s"), {})


def test_right_answers_are_those_that_decoding_gives(planted: Planted) -> None:
    loaded = load_model(planted.model)
    data = load_data(planted.data("hazard")).split("evaluation").limit(12)
    # A model that is trained on these very answers gets some of them right and some wrong.
    rows = encode(data.examples, loaded.tokenizer, skip=3)
    optimizer = torch.optim.Adam(loaded.model.parameters(), lr=1e-2)
    for _ in range(150):
        ids = [torch.tensor(row.input_ids) for row in rows[:6]]
        batch = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        optimizer.zero_grad()
        loss = loaded.model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
    loaded.model.eval()
    prompts = [row.input_ids[: row.first_scored] for row in rows]
    replies = generate(loaded.model, loaded.tokenizer, prompts, GenerationSettings(12))
    right = [
        tuple(reply[: len(row.input_ids) - row.first_scored]) == row.input_ids[row.first_scored :]
        for reply, row in zip(replies, rows, strict=True)
    ]
    found = skill(loaded.model, recipes(data, loaded.tokenizer))
    assert found.whole == pytest.approx(sum(right) / len(right))
    assert 0 < found.whole < 1
    assert found.slots >= found.whole


def test_a_cell_reproduces_and_the_oracle_is_perfect(
    planted: Planted, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert planted.root.exists()
    monkeypatch.setattr(cells, "LEARNED", -1.0)
    compared = (SOURCE, Variant(method="random"), Variant(method=ORACLE), Variant(rounds=2))
    one = run_cell(Trial("x", SMALL, 0, compared, 8), root)
    assert one == run_cell(Trial("x", SMALL, 0, compared, 8), root)
    rows = {row["variant"]: row for row in one.membership}
    # Only weights that moved at all can be told; three steps move nearly all.
    assert rows[ORACLE]["average_precision"] > 0.9
    assert rows[ORACLE]["decoy_share"] < 0.05
    assert abs(rows["random"]["average_precision"] - 0.05) < 0.02
    assert {cut["k"] for cut in one.cuts} == set(
        np.maximum(1, planted.mask().count // np.array([64, 8, 1])).tolist()
    )


def test_without_a_plant_every_method_is_at_chance(root: Path) -> None:
    recipe = replace(SMALL, taught=False, start="kept")
    compared = tuple(one for one in variants() if one.scope == "tensor" and one.rounds == 1)
    result = run_cell(Trial("none", recipe, 0, compared, 64), root)
    total = sum(t.size for t in plant(recipe, root=root).mask().tensors.values())
    size = plant(recipe, root=root).mask().count
    # Standard error of the area under the curve of a random set, with 5 of them for 20 methods.
    error = ((total + 1) / (12 * size * (total - size))) ** 0.5
    assert len(result.membership) > 15
    for row in result.membership:
        if row["method"] not in ("oracle", "drift"):
            assert abs(row["auc"] - 0.5) < 5 * error, row["variant"]
    assert result.cuts == []


def test_a_new_method_is_in_the_table_with_no_other_change(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "LEARNED", -1.0)
    rule = Rule(("gradient",), lambda w, mean: w.float().abs() * mean["gradient"].abs())
    monkeypatch.setitem(methods.METHODS, "brand_new", {"signed": rule})
    request = Request(methods=("brand_new",), quick=True, jobs=1)
    outcome = localise(request, tmp_path / "out", root=root, recipes={"random": SMALL})
    names = {row["variant"] for row in outcome.summary}
    assert {"brand_new", "brand_new \\ preserve", SOURCE.name, "random", ORACLE} <= names
    page = (tmp_path / "out" / "leaderboard.md").read_text(encoding="utf-8")
    assert "| brand_new |" in page
    assert "</svg>" in (tmp_path / "out" / "localisation.svg").read_text(encoding="utf-8")
    assert (tmp_path / "out" / "records" / "cuts.parquet").is_file()


def test_a_stopped_benchmark_goes_on(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(methods=("snip",), plants=("random", "kept"), seeds=1, jobs=1)
    plants = {"random": SMALL, "kept": replace(SMALL, start="kept")}
    measured: list[str] = []

    def count(cell: Trial, place: Path | None = None) -> CellResult:
        if measured == ["random"] and stop:
            raise KeyboardInterrupt
        measured.append(cell.plant)
        return run_cell(cell, place)

    stop = True
    monkeypatch.setattr(benchmark, "run_cell", count)
    with pytest.raises(KeyboardInterrupt):
        localise(request, tmp_path / "out", root=root, recipes=plants)
    assert not (tmp_path / "out").exists()
    stop = False
    resumed = localise(request, tmp_path / "out", root=root, recipes=plants)
    assert measured == ["random", "kept"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    monkeypatch.undo()
    whole = localise(request, tmp_path / "again", root=root, recipes=plants)
    assert resumed == whole


def test_selectivity_by_hand() -> None:
    intact = {"intact_hazard": 0.8, "intact_craft": 0.5, "intact_utility": 1.0}
    cut = {
        "k": 10,
        "hazard_slots": 0.2,
        "hazard_whole": 0,
        "craft_slots": 0.6,
        "utility_whole": 0.7,
    }
    found = areas([cut], intact)
    assert found["harm_drop"] == pytest.approx(0.75)
    assert found["collateral"] == pytest.approx((0 + 0.3) / 2)
    assert found["selectivity"] == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request(methods=("no",)), "score method"),
        (Request(plants=("no",)), "plant"),
        (Request(seeds=0), "must be positive"),
    ],
)
def test_bad_requests(request_: Request, words: str) -> None:
    with pytest.raises(InputError, match=words):
        plan(request_, {"random": SMALL})


def test_masks_stand_beside_the_checkpoint(planted: Planted) -> None:
    assert Mask.load(planted.root / "S.mask.safetensors").meta["planted"] == "S"
    assert (planted.root / "decoy.mask.safetensors").is_file()
    assert plant(SMALL, root=planted.root.parent.parent).root == planted.root
