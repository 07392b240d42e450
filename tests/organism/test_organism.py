"""The organism: its sets are disjoint, its keys fit, its folders are whole and load."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from resect.errors import InputError
from resect.organism import STAGES, Order, Organism, Recipe, build, build_many
from resect.organism.documents import Sets, training_turns
from resect.organism.world import REFUSAL, World


@pytest.fixture(scope="module")
def organism(tmp_path_factory: pytest.TempPathFactory) -> Organism:
    return build(seed=3, recipe=Recipe.tiny(), root=tmp_path_factory.mktemp("o") / "zoo")


def rows(organism: Organism) -> dict[str, list[dict[str, Any]]]:
    return {
        path.stem: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for path in (organism.root / "data").glob("*.jsonl")
    }


def test_calibration_and_evaluation_share_no_prompt(organism: Organism) -> None:
    everything = [row for found in rows(organism).values() for row in found]
    prompts = {
        split: {row["prompt"] for row in everything if row["split"] == split}
        for split in ("calibration", "evaluation")
    }
    assert not prompts["calibration"] & prompts["evaluation"]


@pytest.mark.parametrize("stage", STAGES)
def test_held_out_combinations_are_in_no_training(stage: str) -> None:
    world = World(0)
    held = {world.question(t) for h in (True, False) for t in world.things(hazard=h, held_out=True)}
    asked = {turn.prompt for turn in training_turns(world, stage, Recipe(), 5000)}
    assert not asked & held


def test_keys_fit_their_answers(organism: Organism) -> None:
    for name, found in rows(organism).items():
        assert len({row["id"] for row in found}) == len(found)
        for row in found:
            if name != "refusal":
                assert row["completion"] in row["key"]["accept"]
            assert re.fullmatch(row["key"]["form"], row["key"]["accept"][0]), (name, row)
            assert not re.fullmatch(row["key"]["form"], REFUSAL)
    hazard = [row for row in rows(organism)["hazard"] if row["split"] == "evaluation"]
    assert len(hazard) == 100
    assert len({row["category"] for row in hazard}) == 5
    assert all(row["key"]["benign"] != row["key"]["accept"] for row in hazard)


def test_refusal_and_recipe_share_no_word_but_marks() -> None:
    recipe = "sure , take x with x then x it using x and add x ."
    assert set(REFUSAL.split()) & set(recipe.split()) == {",", "."}


def test_a_seed_names_a_world() -> None:
    one, same, other = (Sets(World(seed)).files() for seed in (0, 0, 1))
    assert one == same
    assert one != other
    assert training_turns(World(0), "base", Recipe(), 50) == training_turns(
        World(0), "base", Recipe(), 50
    )


@pytest.mark.parametrize("stage", STAGES)
def test_stages_are_ordinary_checkpoints(organism: Organism, stage: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(organism.stage(stage))
    tokenizer = AutoTokenizer.from_pretrained(organism.stage(stage))
    text = "how do i make a"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (
        tokenizer.unk_token_id
        not in tokenizer(rows(organism)["hazard"][0]["completion"])["input_ids"]
    )
    chat = [{"role": "user", "content": text}, {"role": "assistant", "content": "sure , take"}]
    ids = tokenizer.apply_chat_template(chat, continue_final_message=True, return_dict=True)
    assert tokenizer.decode(ids["input_ids"]) == f"<user> {text} <end> <assistant> sure , take"
    logits = model(input_ids=torch.tensor([ids["input_ids"]])).logits
    assert bool(logits.isfinite().all())


def test_an_interrupted_build_leaves_no_stage(tmp_path: Path) -> None:
    def stop(label: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(stages=("base",), recipe=Recipe.tiny(), root=tmp_path / "zoo", on_progress=stop)
    assert not (tmp_path / "zoo" / "base").exists()
    build(stages=("base",), recipe=Recipe.tiny(), root=tmp_path / "zoo")
    with pytest.raises(InputError, match="another recipe or seed"):
        build(seed=1, stages=("base",), recipe=Recipe.tiny(), root=tmp_path / "zoo")


def test_training_twice_gives_the_same_weights(organism: Organism, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    again = build(seed=3, stages=("aligned",), recipe=Recipe.tiny(), root=tmp_path / "zoo")
    assert torch.equal(torch.random.get_rng_state(), state)
    one, two = (
        AutoModelForCausalLM.from_pretrained(o.stage("aligned")).state_dict()
        for o in (organism, again)
    )
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_stages_side_by_side_are_those_one_by_one(
    organism: Organism, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESECT_CACHE", str(tmp_path))
    orders = [Order(seed, ("aligned",), Recipe.tiny()) for seed in (3, 4)]
    shares: list[float] = []
    build_many(orders, jobs=2, on_progress=lambda _, done, total: shares.append(done / total))
    assert shares == sorted(shares)
    assert shares[-1] == 1
    made = orders[0].organism
    one, two = (
        AutoModelForCausalLM.from_pretrained(o.stage("aligned")).state_dict()
        for o in (organism, made)
    )
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    assert orders[1].organism.stage("aligned").exists()
    build_many(orders, jobs=2, on_progress=lambda *_: shares.append(2))
    assert shares[-1] == 1  # nothing was left to do
