"""`resect run` measures harm by what sees a cut of this model, and says so where nothing does."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.torch import load_file, save_file

import tiny
from command_line import call, write
from resect.data import load_data
from resect.evaluation.ask import EvaluationSettings
from resect.evaluation.instrument import Sight
from resect.files.reading import read_json
from resect.model import load_model
from resect.records import Interval
from resect.runs import look
from resect.runs.config import load_config
from resect.weights.mask import Mask

WORDS = 6


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a model that is sure of what it says, and sets of its own answers, some with keys."""
    folder = tmp_path_factory.mktemp("instrument")
    paths = {"model": tiny.save("llama", folder / "model")}
    weights = load_file(paths["model"] / "model.safetensors")
    # No cut reaches the last norm; larger, it makes every next word likelier than the rest.
    weights["model.norm.weight"] *= 4
    save_file(weights, paths["model"] / "model.safetensors", metadata={"format": "pt"})
    model = load_model(paths["model"]).model
    for name, count in (("harm", 120), ("benign", 100), ("questions", 90)):
        rows = tiny.rows(count, name)
        tiny.answer_half(rows, model, tiny.cut(model, 0.0), WORDS)
        rows = [row for row in rows[::2] if len(row["completion"].split()) == WORDS]
        paths[name] = write(folder / f"{name}.jsonl", rows)
        # Behind an opening of a word the reply holds the rest of the answer.
        keyed = [row | {"key": [row["completion"].partition(" ")[2]]} for row in rows]
        paths[f"{name} with keys"] = write(folder / f"{name}-keys.jsonl", keyed)
    return paths


class Done(NamedTuple):
    """What a run said and left."""

    said: str
    run: Path

    @property
    def results(self) -> Any:
        return read_json(self.run / "results.json")

    @property
    def verdicts(self) -> set[str]:
        return {claim["verdict"] for claim in self.results["claims"]}


def run(places: dict[str, Path], output: Path, *options: Any, target: str = "harm") -> Done:
    done = call("run", places["model"], "--target", places[target], "--preserve", places["benign"],
                "--max-new-tokens", WORDS, *options, "-o", output)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Done(" ".join((done.stderr + done.stdout).split()), output)


def test_a_judge_that_sees_is_used(places: dict[str, Path], tmp_path: Path) -> None:
    done = run(places, tmp_path / "run", "--utility", places["questions with keys"],
               target="harm with keys")  # fmt: skip
    assert "instrument: the judge exact (generation: " in done.said
    assert "which tells this model from a destroyed one" in done.said
    assert "passed over" not in done.said
    assert [study["study"] for study in done.results["studies"]] == ["frontier"]
    assert done.verdicts != {"not measurable"}
    config = load_config(done.run / "config.yaml")
    assert (config.evaluation.measure, config.evaluation.look) == ("replies", look.LOOKED)
    # The number of questions is first of an assumed accuracy, then of the one that was seen.
    before, after = done.said.split("instrument: ", 1)
    assert "utility: the intact model answers 80 %, which is assumed" in before
    assert "utility: the intact model answers " in after
    assert "assumed" not in after
    assert "are missing" in after


def test_where_the_judge_is_blind_the_likelihood_is_used(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run(places, tmp_path / "run", "--budget", 1)
    assert "instrument: likelihood (generation: " in done.said
    assert "passed over: the judge keyword (generation: 1 in the intact model, 1 in a" in done.said
    studies = [study["study"] for study in done.results["studies"]]
    assert studies == ["compactness", "selectivity"]
    assert "likelihood (generation: " in done.results["provenance"]["instrument"]
    config = load_config(done.run / "config.yaml")
    assert config.evaluation.measure == "likelihood"
    section = config.studies.selectivity
    assert section is not None
    assert section.sides
    arms = next(s for s in done.results["studies"] if s["study"] == "selectivity")["tables"]
    chosen = next(arm for arm in arms["chosen"] if arm["arm"] == "target")
    mask = Mask.load(done.run / "chosen.mask.safetensors")
    assert mask.meta["q"] == chosen["q"]
    assert [row["split"] for row in mask.meta["measured"]["rows"]] == ["selection", "test"]
    assert mask.meta["measured"]["judge"] == "none, likelihood"
    assert call("reproduce", done.run, "-o", tmp_path / "again").returncode == 0
    assert read_json(tmp_path / "again" / "reproduction.json")["grade"] == "identical"

    def looked(*_arguments: object) -> None:
        raise AssertionError("the model was looked at again")

    monkeypatch.setattr(look, "can_see", looked)
    again = run(places, done.run, "--budget", 1, "--resume")
    assert "instrument: likelihood (generation: " in again.said


def test_a_blind_judge_that_was_asked_for_makes_the_verdict_not_measurable(
    places: dict[str, Path], tmp_path: Path
) -> None:
    done = run(places, tmp_path / "run", "--judge", "keyword")
    assert "which is blind" in done.said
    assert "one q is tried" in done.said
    assert done.verdicts == {"not measurable"}
    (claim,) = done.results["claims"]
    reason = (
        "The instrument is blind: by the judge keyword, generation does not tell a model that a "
        "large random cut has destroyed from the intact one. The intact model has 1, a destroyed "
        "one 1."
    )
    assert claim["reason"] == reason
    assert f"not measurable: {claim['claim']} {reason}" in done.said
    for page in ("report.html", "report.md"):
        assert "The instrument is blind" in (done.run / page).read_text("utf-8"), page
    assert not (done.run / "chosen.mask.safetensors").exists()
    # The configuration alone says the same.
    again = tmp_path / "again"
    assert call("study", "run", done.run / "config.yaml", "-o", again).returncode == 0
    assert read_json(again / "results.json")["claims"][0]["reason"] == reason


def test_a_measure_that_was_asked_for_is_not_passed_over(
    places: dict[str, Path], tmp_path: Path
) -> None:
    done = run(places, tmp_path / "replies", "--measure", "replies")
    assert done.verdicts == {"not measurable"}
    assert "passed over" not in done.said
    done = run(places, tmp_path / "likelihood", "--measure", "likelihood",
               "--utility", places["questions with keys"], "--contrast", places["benign"],
               target="harm with keys")  # fmt: skip
    assert "instrument: likelihood" in done.said
    config = load_config(done.run / "config.yaml")
    assert config.evaluation.probes == {
        "generation": "target", "utility": "utility", "preserve": "preserve",
        "contrast": "contrast", "prompts": "target",
    }  # fmt: skip
    assert config.studies.selectivity.rivals == ("plain",)


def test_what_is_not_settled_is_said_in_a_dry_run(places: dict[str, Path], tmp_path: Path) -> None:
    done = run(places, tmp_path / "run", "--dry-run")
    assert "replies, unless a first look when the run starts shows" in done.said
    assert "by the judge keyword: " in done.said
    assert "by likelihood: " in done.said
    assert not done.run.exists()
    done = run(places, tmp_path / "run", "--dry-run", "--measure", "likelihood")
    assert "by the judge" not in done.said
    bad = call("run", places["model"], "--measure", "luck", "-o", tmp_path / "run")
    assert bad.returncode == 2
    assert "replies" in bad.stderr


def test_a_folder_that_is_taken_is_refused_before_the_model_is_looked_at(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look, "can_see", lambda *_arguments: pytest.fail("looked"))
    (tmp_path / "letter.txt").write_text("mine", "utf-8")
    done = call("run", places["model"], "--target", places["harm"], "--preserve", places["benign"],
                "-o", tmp_path)  # fmt: skip
    assert done.returncode == 2
    assert "not empty and holds no run" in done.stderr


def test_what_is_left_open_is_looked_at_again(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []

    def open_question(_loaded: object, probes: dict[str, Any], _settings: object) -> Any:
        counts.append(len(probes["generation"]))
        interval = Interval("drop", 0.9, 0.4 if len(counts) < 3 else 0.6, 1.0)
        return {"generation": Sight(interval, interval, interval)}

    monkeypatch.setattr(look, "can_see", open_question)
    data = {"generation": load_data(places["harm"])}
    loaded = load_model(places["model"])
    sights = look.look(loaded, data, EvaluationSettings(), 8)
    assert counts == [8, 16, 32]
    assert sights["generation"].sees
