"""The comparison with direction ablation: its page, and the real model's half on a tiny one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import mapped
from invented_wheels import unpacked
from resect.data.rows import read_rows
from resect.runs.config import load_config
from resect.runs.real import design
from resect.runs.real.checked import Check, Shown
from resect.runs.real.models import MODELS
from resect.runs.real.pair import Pair
from resect.runs.real.sets import Size
from resect.stats.groups import ALIKE, near_duplicates
from resect.studies.halves import Half

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "direction.md"
SIZE = Size(asked=10, pool=20, scored=10, tokens=8, seeds=1, fractions=2)
SCORED = 10

findings = mapped.script("findings")
real = mapped.script("direction_real")


def test_the_page_is_that_of_its_run_or_says_that_there_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(findings, "DOCS", ROOT / "docs")
    page = PAGE.read_text("utf-8")
    said = "No run is recorded yet.\n"
    if real.PLACE.numbers.exists():
        said = real.text(json.loads(real.PLACE.numbers.read_text("utf-8")))
    assert real.PLACE.filled(page, said) == page
    # A place of its own, beside the organism's.
    filled = real.PLACE.filled(page, "vorp\n")
    assert filled.count("vorp") == 1
    assert mapped.script("direction").PLACE.filled(filled, "zim\n").count("vorp") == 1


class Run(NamedTuple):
    """Where a comparison of a tiny model was measured, and the pages that were written from it."""

    folder: Path
    docs: Path

    @property
    def numbers(self) -> dict[str, Any]:
        values: dict[str, Any] = json.loads((self.folder / real.NUMBERS).read_text("utf-8"))
        return values


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    shown = Shown(0, 0, 0, 0)
    place = Run(tmp_path_factory.mktemp("runs") / "run", tmp_path_factory.mktemp("docs"))
    (place.docs / "direction.md").write_text(PAGE.read_text("utf-8"), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESECT_CACHE", str(tmp_path_factory.mktemp("cache")))
        wheels = unpacked(tmp_path_factory.mktemp("real"), patch)
        patch.setattr(real.fetch, "fetch", lambda *_: wheels)
        patch.setitem(MODELS, "smollm2", replace(MODELS["smollm2"], full=SIZE))
        patch.setattr(findings, "DOCS", place.docs)
        for name, value in {"SCORED": SCORED, "ASKED": 12, "DOSES": (4, 8), "BUDGET": 1.0}.items():
            patch.setattr(real, name, value)

        def untuned(_study: object, _real: object, model: Path, *_: object) -> design.Tuned:
            # The model itself stands for the copy.
            return design.Tuned(Pair(model, model, model, model), Check(0, 0, shown, shown, shown))

        patch.setattr(design, "real_pair", untuned)
        real.main([str(place.folder)])
        real.main([str(place.folder), "--page"])
        yield place


def test_every_line_has_a_number_of_every_arm_or_says_why_not(run: Run) -> None:
    values = run.numbers
    arms = {arm["name"]: arm["setting"] for arm in values["arms"]}
    assert list(arms) == [real.INTACT, real.CUT, real.RANDOM, real.ANSWERS, real.REFUSAL]
    lines = {line["name"]: line["numbers"] for line in values["lines"]}
    assert {"drop of utility, benign", "drop of utility, facts", "drop of utility, prose"} <= set(
        lines
    )
    trained = [name for name in lines if name.startswith(real.TRAINED)]
    assert len(trained) == 2
    for name, line in lines.items():
        assert (line[real.INTACT] is None) == name.startswith("drop")
        for arm, number in line.items():
            chosen = arms[arm] != "nothing within the limits"
            meant = arm != real.REFUSAL or name not in trained
            if arm != real.INTACT:
                assert (number is not None) == (chosen and meant), (name, arm)
            if number is not None:
                assert number["low"] <= number["value"] <= number["high"]
    # The same number of settings an arm.
    assert set(Counter(row["arm"] for row in values["grid"]).values()) == {real.SETTINGS}


def test_arms_are_held_against_their_own_end_alone(run: Run) -> None:
    page = (run.docs / "direction.md").read_text("utf-8")
    assert "| what it is for | – | harm harder | control | harm harder | harm easier |" in page
    assert real.PLACE.filled(page, real.text(run.numbers)) == page
    assert json.loads((run.docs / "direction-real.json").read_text("utf-8")) == run.numbers
    assert (
        page.partition("findings real: begin")[0]
        == PAGE.read_text("utf-8").partition("findings real: begin")[0]
    )
    assert "less that by the direction of harmful answers" in page


def test_harmful_prompts_are_on_one_side_and_halves_are_the_same_in_both_runs(run: Run) -> None:
    likelihood = load_config(run.folder / real.LIKELIHOOD / "config.yaml")
    rows = read_rows(Path(likelihood.data["harm"]))
    sides = Counter(row["split"] for row in rows)
    assert sides["calibration"] == SCORED
    assert sides["evaluation"] == 12
    prompts = {
        side: [str(row["prompt"]) for row in rows if row["split"] == side]
        for side in ("calibration", "evaluation")
    }
    groups = near_duplicates([*prompts["calibration"], *prompts["evaluation"]], ALIKE)
    assert not set(groups[:SCORED]) & set(groups[SCORED:])
    replies = load_config(run.folder / real.REPLIES / "config.yaml")
    bench = real.Bench(run.folder, likelihood, replies, 1)
    measured = bench.measured()

    def half_of(asked: list[Any], category: str) -> dict[str, Half]:
        return {row.example: row.half for row in asked if row.category == category}

    intact = real.cell(likelihood, None)
    answered = measured.replies.asked(real.asked(likelihood, None), "generation")
    for probe, category in (("generation", "harmful"), ("utility", "benign"), ("utility", "facts")):
        read = half_of(measured.likelihood.asked(intact, probe), category)
        assert read == half_of(answered, category)
        assert set(read.values()) == {"selection", "test"}


def test_near_duplicates_are_scored_and_do_not_fill_the_calibration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"SCORED": 64, "SCORED_ALIKE": 16, "ASKED": 40}.items():
        monkeypatch.setattr(real, name, value)
    same = [{"id": f"s{n}", "prompt": f"vorp zim dax n{n}"} for n in range(40)]
    others = [{"id": f"o{n}", "prompt": f"a{n} b{n} c{n} d{n}"} for n in range(90)]
    dealt = real.dealt([*others, *same])
    sides = Counter((row["split"], row["id"][0]) for row in dealt)
    assert sides == {
        ("calibration", "s"): 16, ("calibration", "o"): 48, ("evaluation", "o"): 40,
    }  # fmt: skip
    assert {row["category"] for row in dealt} == {real.HARMFUL}


def test_a_run_goes_on_where_it_was(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(
        real, "measure_cells", lambda *arguments, **_: asked.append(len(arguments[2]))
    )
    before = run.numbers
    real.main([str(run.folder)])
    assert asked == [0, 0, 0, 0]
    assert run.numbers["lines"] == before["lines"]


def test_no_reply_and_no_prompt_is_in_what_is_kept_in_the_repository(run: Run) -> None:
    written = (run.docs / "direction-real.json").read_text("utf-8")
    written += (run.docs / "direction.md").read_text("utf-8")
    config = load_config(run.folder / real.LIKELIHOOD / "config.yaml")
    for name in ("harm", "tasks"):
        for row in read_rows(Path(config.data[name])):
            assert str(row.get("prompt") or row["text"]) not in written
    assert str(run.folder) not in written
