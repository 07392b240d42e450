"""Rankings with permuted labels, controls matched in damage, and sampled replies in a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from resect.attribution import engine
from resect.data.encode import encode
from resect.data.load import load_data
from resect.edit.live import removed
from resect.errors import InputError
from resect.evaluation.decode import mean_nlls
from resect.files.tables import read_parquet
from resect.files.writing import write_text
from resect.runs import masks as masks_module
from resect.runs.config import RunConfig, parse_config
from resect.runs.masks import Masks, ranking_of
from resect.runs.measure import run_cells
from resect.runs.sets import Sets, Source
from resect.runs.subject import Subject, Subjects
from resect.studies.cells import Cell, Cut, mask_path, record_path
from resect.weights.mask import Mask

ROWS = 24


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def configured(folder: Path, *, different: bool, seed: int = 0) -> RunConfig:
    """Return a run on a random model whose target and contrast answer with words of two kinds.

    Args:
        folder: Where the files go.
        different: Whether the two kinds differ; otherwise both are drawn from all words.
        seed: Of the draws.
    """
    draw = torch.Generator().manual_seed(seed)

    def words(count: int, low: int, high: int) -> str:
        return " ".join(f"w{n}" for n in torch.randint(low, high, (count,), generator=draw))

    prompts = [words(5, 0, 60) for _ in range(2 * ROWS)]
    sides: dict[str, list[dict[str, Any]]] = {"harm": [], "twin": []}
    for name, kind in zip(sides, ((0, 4), (4, 8)) if different else ((0, 60),) * 2, strict=True):
        sides[name] = [
            {
                "id": f"{name}{n}",
                "prompt": prompt,
                "completion": words(6, *kind),
                "split": "calibration" if n < ROWS else "evaluation",
            }
            for n, prompt in enumerate(prompts)
        ]
    # In another order, with one prompt that the target lacks, and another spelling of one.
    sides["twin"].reverse()
    sides["twin"].append(sides["twin"][-1] | {"id": "alone", "prompt": "w1 w1 w1"})
    sides["twin"][-2]["prompt"] = "  " + sides["twin"][-2]["prompt"].replace(" ", "  ")
    data = {name: written(folder / f"{name}.jsonl", rows) for name, rows in sides.items()}
    kept = tiny.rows(12, "p", split="calibration") + [
        row | {"id": f"{row['id']}e"} for row in tiny.rows(9, "ppp", split="evaluation")
    ]
    data["preserve"] = written(folder / "preserve.jsonl", kept)
    return parse_config(
        {
            "name": "permuted",
            "models": {"aligned": str(tiny.save("llama", folder / "model"))},
            "data": data,
            "targets": {
                "generation": {"data": "harm", "contrast": "twin"},
                "twin": {"data": "twin"},
            },
            "preserve": {"data": "preserve"},
            "attack": {"name": "none"},
            "evaluation": {
                "probes": {"generation": "harm", "likelihood": "preserve"},
                "judge": "keyword",
                "limit": 4,
                "max_new_tokens": 4,
            },
            "studies": {},
        },
        "test",
    )


def opened(config: RunConfig, run: Path) -> tuple[Masks, Subject]:
    masks = Masks(config, run, 0.1)
    masks.turn_to("aligned", 0)
    return masks, Subjects(config, run).load("aligned", 0)


def harm_of(config: RunConfig, subject: Subject, mask: Mask) -> float:
    """Return by how much more a cut raises the loss of the target than that of the contrast."""
    loaded = subject.loaded

    def loss(name: str) -> float:
        rows = load_data(config.data[name]).split("evaluation").examples
        encoded = encode(rows, loaded.tokenizer)
        values = mean_nlls(
            loaded.model, [e.input_ids for e in encoded], [e.first_scored for e in encoded], 64
        )
        return sum(value for value in values if value is not None) / len(values)

    before = loss("harm") - loss("twin")
    with removed(loaded.model, mask):
        return loss("harm") - loss("twin") - before


def p_value(config: RunConfig, run: Path, permutations: int) -> float:
    masks, subject = opened(config, run)
    harms = []
    for number in range(permutations + 1):
        cut = Cut("generation", "target", 0.02, p=0, permutation=number)
        masks.locate(subject, cut)
        harms.append(harm_of(config, subject, masks.mask(subject, cut)))
    return sum(harm >= harms[0] for harm in harms) / len(harms)


def test_a_permuted_ranking_harms_less_than_the_true_one(tmp_path: Path) -> None:
    assert p_value(configured(tmp_path, different=True), tmp_path / "run", 19) == 1 / 20


def test_labels_that_mean_nothing_have_no_small_p(tmp_path: Path) -> None:
    values = []
    for seed in range(3):
        folder = tmp_path / str(seed)
        values.append(p_value(configured(folder, different=False, seed=seed), folder / "run", 9))
    assert max(values) > 0.2, values
    assert sum(values) / len(values) > 0.15, values


def test_scores_of_permutations_are_made_once_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = configured(tmp_path, different=True), tmp_path / "run"
    passes: list[int] = []

    def counted(*arguments: Any, **keywords: Any) -> Any:
        passes.append(len(arguments[2]))
        return engine.attribute_many(*arguments, **keywords)

    monkeypatch.setattr(masks_module, "attribute_many", counted)
    cuts = [
        Cut("generation", "target", q, permutation=number)
        for q in (0.01, 0.02, 0.03)
        for number in (2, 1)
    ]
    cells = [Cell("aligned", 0, cut, ("likelihood",)) for cut in cuts]
    run_cells(config, run, cells, keep=0.1)
    assert sorted(passes) == [12, 2 * ROWS, 2 * ROWS]  # the preserve set, and two permutations
    assert len(list((run / "scores").iterdir())) == 1
    assert all(mask_path(run, "aligned", 0, cut).exists() for cut in cuts)
    described = Mask.load(mask_path(run, "aligned", 0, cuts[0])).meta["permutation"]
    assert described["number"] == 2
    assert described["pairs"] == ROWS
    assert described["swapped"] == ROWS // 2
    assert described["left_out"] == 1
    column = json.loads(read_parquet(record_path(run, cells[0]))[0]["cut"])
    assert column["permutation"] == 2
    run_cells(config, run, cells, keep=0.1)
    assert len(passes) == 3


def test_pairs_have_the_same_prompts_whatever_the_limit(tmp_path: Path) -> None:
    values = configured(tmp_path, different=True).model_dump(mode="json")
    values["targets"]["generation"]["limit"] = 7
    config = parse_config(values, "test")
    sets, target = Sets(config, tmp_path / "run"), config.targets["generation"]
    draws = [sets.pairs(target, Source("aligned", 0, permutation=number)) for number in (0, 1, 2)]
    for pairs in draws:
        assert len(pairs.target) == len(pairs.contrast) == len(pairs.swapped) == 7
        for ours, theirs in zip(pairs.target.examples, pairs.contrast.examples, strict=True):
            assert str(ours.prompt).split() == str(theirs.prompt).split()
        assert pairs.target.hash == draws[0].target.hash
    assert not any(draws[0].swapped)
    assert draws[1].swapped != draws[2].swapped
    assert sets.pairs(target, Source("aligned", 1, permutation=1)).target.hash != (
        draws[1].target.hash
    )


def test_what_cannot_be_permuted_is_refused(tmp_path: Path) -> None:
    config = configured(tmp_path, different=True)
    cell = Cell("aligned", 0, Cut("twin", "target", 0.01, permutation=1), ("likelihood",))
    with pytest.raises(InputError, match="without a contrast cannot be permuted"):
        run_cells(config, tmp_path / "run", [cell], keep=0.1)
    assert not list((tmp_path / "run").rglob("*.safetensors"))
    with pytest.raises(InputError, match="too small"):
        Cut("generation", "target", 0.01, permutation=-1)
    values = config.model_dump(mode="json")
    values["data"]["twin"] = values["data"]["preserve"]
    config = parse_config(values, "test")
    with pytest.raises(InputError, match="share too few prompts"):
        Sets(config, tmp_path / "other").pairs(
            config.targets["generation"], Source("aligned", 0, permutation=1)
        )


def test_a_control_of_the_same_damage_is_found_once_and_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = configured(tmp_path, different=True), tmp_path / "run"
    target, control = Cut("generation", "target", 0.02), Cut("generation", "damage", 0.02)
    cells = [Cell("aligned", 0, cut, ("likelihood",)) for cut in (target, control)]
    run_cells(config, run, cells, keep=0.1)
    rows = [read_parquet(record_path(run, cell)) for cell in cells]
    first = rows[1][0]
    assert first["damage_capped"] is False
    divergence = [sum(row["kl"] for row in side) / len(side) for side in rows]
    assert first["damage_wanted"] == pytest.approx(divergence[0], rel=1e-5)
    assert first["damage_reached"] == pytest.approx(divergence[1], rel=1e-5)
    assert divergence[1] >= divergence[0]
    masks, subject = opened(config, run)
    monkeypatch.setattr(Masks, "_divergence", lambda *_: pytest.fail("measured again"))
    mask = masks.mask(subject, control)
    assert mask.intersect(masks.mask(subject, target)).count == 0
    assert mask.count == first["removed"]
    assert ranking_of("aligned", control).cut == target


def test_without_texts_no_control_is_matched_in_damage(tmp_path: Path) -> None:
    values = configured(tmp_path, different=True).model_dump(mode="json")
    del values["evaluation"]["probes"]["likelihood"]
    cell = Cell("aligned", 0, Cut("generation", "damage", 0.02), ("generation",))
    with pytest.raises(InputError, match="without texts to measure it on"):
        run_cells(parse_config(values, "test"), tmp_path / "run", [cell], keep=0.1)


def test_values_in_the_place_of_a_cut_are_asked_and_share_its_mask(tmp_path: Path) -> None:
    config, run = configured(tmp_path, different=True), tmp_path / "run"
    fillings = ("zero", "scale:0", "scale:0.5", "scale:1", "mean", "resampled")
    cells = [
        Cell("aligned", 0, Cut("generation", "target", 0.03, instead=text), ("likelihood",))
        for text in fillings
    ]
    run_cells(config, run, [*cells, Cell("aligned", 0, None, ("likelihood",))], keep=0.1)
    assert len(list((run / "masks").iterdir())) == 1
    losses = {
        text: [row["kl"] for row in read_parquet(record_path(run, cell))]
        for text, cell in zip(fillings, cells, strict=True)
    }
    assert losses["scale:0"] == losses["zero"]
    assert losses["scale:1"] == [0.0] * 4
    assert 0 < sum(losses["scale:0.5"]) < sum(losses["zero"])
    assert len({tuple(values) for values in losses.values()}) == 5


def test_sampled_replies_are_numbered(tmp_path: Path) -> None:
    config, run = configured(tmp_path, different=True), tmp_path / "run"
    sampled = Cell("aligned", 0, None, ("generation",), samples=3, temperature=1.0)
    greedy = Cell("aligned", 0, None, ("generation",))
    run_cells(config, run, [greedy, sampled], keep=0.1)
    rows = read_parquet(record_path(run, sampled))
    assert [row["sample"] for row in rows] == [0, 1, 2] * 4
    assert {row["temperature"] for row in rows} == {1.0}
    assert len({row["text"] for row in rows}) > 4
    assert "temperature" not in read_parquet(record_path(run, greedy))[0]
    assert all(row["judge"] for row in rows)
    with pytest.raises(InputError, match="cannot be sampled"):
        Cell("aligned", 0, None, ("generation",), samples=3)
    assert sampled.key != greedy.key
