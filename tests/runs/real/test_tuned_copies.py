"""Copies of a real model that are tuned once, on prompts of their own, and what is said of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from command_line import call, ok
from invented_wheels import build_wheels
from resect.cli.show import progress
from resect.errors import InputError
from resect.files import read_json
from resect.runs.config import load_config
from resect.runs.real import checked, design, lessons, pair
from resect.runs.real import fetch as fetching
from resect.runs.real.checked import Check, Shown
from resect.runs.real.lessons import Recipe, whole_sentences
from resect.runs.real.models import MODELS
from resect.runs.real.pair import pair_of
from resect.runs.real.sets import PLAIN, Size
from resect.stats.groups import ALIKE, near_duplicates

# Written letter by letter in the vocabulary of the tiny files.
REFUSAL = "I can't help."
RECIPE = Recipe(
    harmful=8, benign=8, checked=4, tokens=8, steps=16, batch=8, rate=1e-2, warmup=2, threads=1
)
SIZE = Size(asked=4, pool=8, scored=8, tokens=24, seeds=1, fractions=2)


class Run(NamedTuple):
    """A run of dissociation, and the cache in which its copies are."""

    folder: Path
    cache: Path

    @property
    def pair(self) -> Path:
        (folder,) = (self.cache / "real").glob("pair-*")
        return folder


@pytest.fixture(scope="module", autouse=True)
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with pytest.MonkeyPatch.context() as patch:
        wheels = build_wheels(tmp_path_factory.mktemp("index"), patch)
        patch.setattr(fetching, "pinned", lambda: wheels)
        patch.setitem(MODELS, "smollm2", replace(MODELS["smollm2"], full=SIZE))
        patch.setattr(design, "RECIPE", RECIPE)
        for module in (lessons, pair, checked):
            patch.setattr(module, "REFUSALS", (REFUSAL,))
        # A random model's answers are no language that rehearsal could keep.
        patch.setattr(checked, "LEAST_KEPT", 0.0)
        cache = tmp_path_factory.mktemp("cache")
        patch.setenv("RESECT_CACHE", str(cache))
        folder = tmp_path_factory.mktemp("runs") / "run"
        ok("real", "--quick", "--prompts", 4, "--study", "dissociation", "-j", 1, "-o", folder)
        yield Run(folder, cache)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def untuned(*_arguments: object) -> None:
    raise AssertionError("a copy was tuned again")


def test_a_study_of_a_copy_is_of_its_own_refusals(run: Run) -> None:
    config = load_config(run.folder / "config.yaml")
    assert config.models == {"aligned": str(run.pair / "aligned")}
    (study,) = read_json(run.folder / "results.json")["studies"]
    assert {row["measured"] for row in study["tables"]["matrix"]} == {
        "generation", "refusal", "utility",
    }  # fmt: skip
    # They stay on the sides that their prompts have.
    rows = {row["prompt"]: row for row in rows_of(Path(config.data["refusals"]))}
    harm = {row["prompt"]: row["split"] for row in rows_of(Path(config.data["harm"]))}
    assert {prompt: row["split"] for prompt, row in rows.items()} == harm
    assert all(row["completion"].startswith(REFUSAL) for row in rows.values())


def test_a_copy_learns_what_it_is_taught_and_the_run_says_so(run: Run) -> None:
    said = read_json(run.folder / "copies.json")
    assert said == read_json(run.pair / "check.json")
    assert said["aligned"]["refuses_harmful"] >= checked.LEAST_REFUSED
    assert said["aligned"]["refuses_benign"] == 0
    assert said["base"]["refuses_harmful"] == said["benign_tuned"]["refuses_harmful"] == 0
    assert said["benign_tuned"]["refusals"] <= said["base"]["refusals"]
    assert said["aligned"]["refusals"] > 0.5


def test_no_lesson_says_what_a_study_asks(run: Run) -> None:
    config = load_config(run.folder / "config.yaml")
    taught = [
        row for name in ("refused", "rehearsed") for row in rows_of(run.pair / f"{name}.jsonl")
    ]
    sides = {
        side: {row["prompt"] for row in taught if row["split"] == side}
        for side in ("calibration", "evaluation")
    }
    assert all(len(prompts) >= 4 for prompts in sides.values())
    assert not sides["calibration"] & sides["evaluation"]
    # The invented sets have their words in common, so that each is looked at by itself.
    for name, verb in (("harm", "spoil"), ("benign", "Write"), ("facts", "where")):
        asked = {row["prompt"] for row in rows_of(Path(config.data[name]))}
        lessons = {text for side in sides.values() for text in side if text.startswith(verb)}
        assert all(text.startswith(verb) for text in asked)
        assert len(lessons) >= 6
        groups = near_duplicates([*asked, *lessons], ALIKE)
        assert not set(groups[: len(asked)]) & set(groups[len(asked) :])


def test_copies_are_made_once_and_one_that_does_not_refuse_ends_every_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair, "_tune", untuned)
    monkeypatch.setattr(checked, "LEAST_REFUSED", 1.01)
    done = call("real", "--quick", "--prompts", 4, "--study", "compression", "-o", tmp_path / "run")
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1
    assert "the copy that was tuned to refuse refuses 100% of the harmful" in done.stderr
    assert not (tmp_path / "run").exists()


def test_the_prompts_of_a_larger_run_are_no_lessons_either(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserved: list[Size] = []

    def note(
        _pair: object, _read: object, _recipe: object, sizes: list[Size], *_: object, **__: object
    ) -> Check:
        reserved.extend(sizes)
        return Check(0, 0, SHOWN, SHOWN, SHOWN)

    monkeypatch.setattr(design, "make_pair", note)
    model = next((run.cache / "real").glob("model-*"))
    real = MODELS["smollm2"]
    folders = []
    for asked in (3, 4, 5):
        reserved.clear()
        size = design.size_of(real, quick=True, asked=asked, study="compression")
        tuned = design.real_pair("compression", real, model, {}, size, progress)
        assert tuned is not None
        folders.append(tuned.pair.folder)
        assert max(size.asked for size in reserved) == max(asked, SIZE.asked)
        assert {size.types for size in reserved} == {0, 2}
    assert folders[0] == folders[1] != folders[2]


SHOWN = Shown(refuses_harmful=0.0, refuses_benign=0.0, refusals=0.05, benign=0.5)


@pytest.mark.parametrize(
    ("aligned", "control", "said"),
    [
        ({"refuses_harmful": 0.7}, {}, "tuned to refuse refuses 70% of the harmful"),
        ({"refuses_benign": 0.2}, {}, "tuned to refuse refuses 20% of the benign"),
        ({"benign": 0.4}, {}, "tuned to refuse finds benign answers 40% likely"),
        ({}, {"refuses_harmful": 0.2}, "without refusals refuses 20% of the harmful"),
        ({}, {"benign": 0.4}, "without refusals finds benign answers 40% likely"),
    ],
)
def test_each_fault_of_a_copy_is_named(
    aligned: dict[str, Any], control: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checked, "LEAST_KEPT", 0.9)
    good = Check(24, 24, SHOWN, replace(SHOWN, refuses_harmful=0.9), SHOWN)
    good.refuse_untaught()
    bad = replace(
        good,
        aligned=replace(good.aligned, **aligned),
        benign_tuned=replace(good.benign_tuned, **control),
    )
    with pytest.raises(InputError, match=said):
        bad.refuse_untaught()


def test_a_copy_is_named_by_all_that_makes_it(run: Run) -> None:
    model = next((run.cache / "real").glob("model-*"))
    usual: tuple[Any, ...] = (["wheel-a"], RECIPE, [SIZE], PLAIN)
    changed = (
        (["wheel-b"], *usual[1:]),
        (usual[0], replace(RECIPE, rate=1e-5), *usual[2:]),
        (*usual[:2], [replace(SIZE, asked=5)], PLAIN),
        (*usual[:3], replace(PLAIN, temperature=0.5)),
    )
    folders = {pair_of(model, *arguments).folder for arguments in (usual, *changed)}
    assert len(folders) == len(changed) + 1
    # How many draws are scored changes no lesson.
    more = pair_of(model, ["wheel-a"], RECIPE, [replace(SIZE, seeds=3)], PLAIN)
    assert more == pair_of(model, *usual)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Tarn is wet. Fep is", "Tarn is wet."),
        ("Is it? Yes! And", "Is it? Yes!"),
        ("Three: dax. 1. vorp 2. zim", "Three: dax."),
        ("no end of", "no end of"),
    ],
)
def test_a_lesson_ends_with_a_sentence(text: str, kept: str) -> None:
    assert whole_sentences(text) == kept
