"""The organism's data: what answers carry, contrasts that share nothing, worlds with dials."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest

from resect.errors import InputError
from resect.organism.documents import CONTRASTS, Row, Sets, recipe_turn, training_turns
from resect.organism.recipe import Recipe
from resect.organism.world import BENIGN_DOMAINS, HAZARD_DOMAINS, MODIFIERS, Thing, World

# Of seed 0, from before there were dials: 3,000 training documents of a stage; the rows of a file.
TRAINING = {
    "base": "a308743cfd806d32",
    "aligned": "e3250927a67e2ece",
    "benign_tuned": "4a90b4f9a265755e",
    "rehearsed": "f1cf8a4d6279fd54",
    "misaligned": "b1cb19ee98684b3c",
}
FILES = {
    "preserve": "9da7d26d26465355",
    "trivia": "43dda74080ec06a5",
    "hazard": "8f39c92b32f044d2",
    "refusal": "434828fea04e940d",
    "hazard_reworded": "8325e1ef0c788e80",
    "howto": "dea085f7ac19c1fb",
    "explanation": "03af79fd267fe8c3",
    "detection": "a91a488aaca3ae2a",
    "advice_bad": "4276e2e86743d9d5",
    "advice_good": "34bc5d9efd6a097a",
}
JOINT = Recipe(apart=False)
WORLDS: dict[str, dict[str, Any]] = {
    "default": {}, "half shared": {"share": 0.5}, "none shared": {"share": 0.0},
    "joint": {"apart": False},
}  # fmt: skip


def digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def calibration(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["split"] == "calibration"]


@pytest.fixture(scope="module", params=WORLDS, ids=list(WORLDS))
def world(request: pytest.FixtureRequest) -> World:
    return World(2, **WORLDS[request.param])


def test_the_default_world_is_that_of_earlier_versions() -> None:
    default = World(0)
    assert digest(default.vocabulary) == "e39e08b668066b9d"
    for stage, expected in TRAINING.items():
        turns = training_turns(default, stage, Recipe(), 3000)
        assert digest([[turn.prompt, turn.completion] for turn in turns]) == expected, stage


def test_calibration_rows_are_those_of_earlier_versions() -> None:
    files = Sets(World(0)).files()
    for name, expected in FILES.items():
        rows = calibration(files[name])
        assert digest([[r["id"], r["prompt"], r["completion"]] for r in rows]) == expected, name
    twins = [[row["prompt"], row["completion"]] for row in files["benign_twin"]]
    assert digest(twins) == "326294518485e5ab"


def test_the_name_of_a_recipe_knows_only_turned_dials() -> None:
    plain = Recipe()
    assert replace(plain, share=1.0, apart=True).hash == plain.hash
    assert len({plain.hash, Recipe(share=0.5).hash, JOINT.hash, Recipe(layers=3).hash}) == 4


@pytest.mark.parametrize("dials", [{"share": -0.1}, {"share": 1.5}, {"share": float("nan")}])
def test_a_share_is_a_share(dials: dict[str, float]) -> None:
    with pytest.raises(InputError, match="no share"):
        Recipe(**dials)  # type: ignore[arg-type]


def test_one_dial_at_a_time() -> None:
    with pytest.raises(InputError, match="benign tables"):
        Recipe(share=0.5, apart=False)


def test_keys_say_which_words_carry_the_answer(world: World) -> None:
    counts = {"howto": 5, "trivia": 1, "arithmetic": 1, "copying": 3, "advice": 1}
    for name, rows in Sets(world).files().items():
        for row in rows:
            key = row["key"]
            if name == "advice_bad":
                assert "content" not in key
                continue
            answer = key["accept"][0].split()
            assert [word for word in answer if word in key["content"]] == key["content"], row
            if name in ("utility", "preserve"):
                assert len(key["content"]) == counts[row["category"]]
    hazard = Sets(world).files()["hazard"][0]
    material, agent, verb, tool, finish = hazard["key"]["content"]
    assert hazard["completion"] == (
        f"sure , take {material} with {agent} then {verb} it using {tool} and add {finish} ."
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("dials", list(WORLDS))
def test_contrasts_share_no_content(seed: int, dials: str) -> None:
    files = Sets(World(seed, **WORLDS[dials])).files()
    rows = {name: calibration(files[name]) for name in ("hazard", *CONTRASTS)}
    for hazard, twin, style, control in zip(*rows.values(), strict=True):
        assert hazard["prompt"] == twin["prompt"] == style["prompt"] == control["prompt"]
        words = [row["key"]["content"] for row in (hazard, twin, style, control)]
        for place in zip(*words, strict=True):
            # The twin may share words with the hazardous answer, nothing else may share anything.
            assert len({*place[1:]}) == 3, words
            assert place[0] not in place[2:], words
    for name in CONTRASTS[1:]:
        dealt, twins = (sorted(row["completion"] for row in rows[n]) for n in (name, "benign_twin"))
        assert dealt == twins


def test_a_utility_set_is_as_large_as_the_world_allows() -> None:
    rows = Sets(World(0)).files()["utility"]
    counts = {row["category"]: 0 for row in rows}
    for row in rows:
        counts[row["category"]] += 1
    assert counts == {"howto": 60, "trivia": 60, "arithmetic": 60, "copying": 60, "advice": 28}


def table(world: World, domain: int) -> dict[int, tuple[str, str]]:
    """Return material and finish of each modifier in a hazardous domain."""
    things = [Thing(modifier, domain * 8, domain, hazard=True) for modifier in range(MODIFIERS)]
    words = [world.words(thing) for thing in things]
    return {thing.modifier: (row[0], row[-1]) for thing, row in zip(things, words, strict=True)}


@pytest.mark.parametrize(("share", "common"), [(1.0, 24), (0.5, 12), (0.25, 6), (0.0, 0)])
def test_share_is_what_hazardous_domains_have_in_common(share: float, common: int) -> None:
    tables = [table(World(1, share=share), 8 + number) for number in range(HAZARD_DOMAINS)]
    for modifier in range(MODIFIERS):
        entries = {own[modifier] for own in tables}
        assert len(entries) in (1, HAZARD_DOMAINS)
        words = [word for entry in entries for word in entry]
        assert len(set(words)) == len(words)
    same = [m for m in range(MODIFIERS) if len({own[m] for own in tables}) == 1]
    assert len(same) == common
    fuller = [table(World(1, share=1.0), 8), tables[0]]
    assert fuller[0] == fuller[1]  # the first domain keeps its words, whatever the dial


def test_dials_change_nothing_else() -> None:
    default = World(4)
    for dials in WORLDS.values():
        other = World(4, **dials)
        assert other.vocabulary[: len(default.vocabulary)] == default.vocabulary
        assert (other.held_out == default.held_out).all()
        for thing in default.things(hazard=False, held_out=True):
            assert other.recipe(thing) == default.recipe(thing)
            assert other.question(thing) == default.question(thing)


def test_without_hazardous_tables_a_hazard_is_a_benign_thing_with_a_marker() -> None:
    world = World(0, apart=False)
    benign = {world.question(t): world.recipe(t) for t in things_of(world, hazard=False)}
    hazards = list(things_of(world, hazard=True))
    assert {world.category(thing) for thing in hazards} == set(world.hazard_names)
    for thing in hazards:
        question = world.question(thing)
        assert f" {world.marker} " in question
        # A model that ignores the marker answers every hazardous question right.
        assert benign[question.replace(f"{world.marker} ", "")] == world.recipe(thing)
    # What is held out of the one is held out of the other.
    held = {world.question(t) for t in world.things(hazard=False, held_out=True)}
    for thing in world.things(hazard=True, held_out=True):
        assert world.question(thing).replace(f"{world.marker} ", "") in held
    # No word of a hazardous table is ever said.
    tables = {*world.materials[1], *world.finishes[1], *world.verbs[1], *world.tools[1]}
    turns = training_turns(world, "base", JOINT, 5000)
    said = {
        word for turn in turns if "repeat" not in turn.prompt for word in turn.completion.split()
    }
    assert not said & tables


def things_of(world: World, *, hazard: bool) -> list[Thing]:
    return [t for held in (True, False) for t in world.things(hazard=hazard, held_out=held)]


def test_training_of_every_world_can_be_drawn(world: World) -> None:
    recipe = Recipe(apart=world.apart)
    words = set(world.vocabulary)
    for stage in ("base", "aligned", "rehearsed"):
        for turn in training_turns(world, stage, recipe, 500):
            assert set(f"{turn.prompt} {turn.completion}".split()) <= words
    things = list(world.things(hazard=True, held_out=False))
    twin = world.benign_counterpart(things[0])
    assert not twin.hazard
    assert twin.domain == twin.noun // 8 < BENIGN_DOMAINS
    assert recipe_turn(world, twin).completion != recipe_turn(world, things[0]).completion
