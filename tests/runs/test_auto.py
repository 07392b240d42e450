"""`resect run` on a model with nothing configured, and `resect reproduce` of what it made."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tiny
from command_line import call, ok, write
from resect.data import load_data
from resect.errors import InputError
from resect.export import pass_gate
from resect.files.reading import read_json
from resect.files.tables import read_parquet, write_parquet
from resect.files.writing import write_json
from resect.model import load_model
from resect.report.traced import read_traces
from resect.runs.auto import AutoRequest, Planned, plan_auto
from resect.runs.forecast import expected_here
from resect.runs.reproduce import compare_runs, compare_values
from resect.runs.run import plan_run
from resect.runs.speed import here
from resect.weights.mask import Mask


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a model whose every second target row is its own reply under a cut of 0.2 %."""
    folder = tmp_path_factory.mktemp("auto")
    paths = {"model": tiny.save("llama", folder / "model")}
    model = load_model(paths["model"]).model
    rows = tiny.rows(64, "c")
    tiny.answer_half(rows, model, tiny.cut(model, 0.0))
    paths["target"] = write(folder / "harm.jsonl", [r | {"key": key(r)} for r in rows])
    paths["preserve"] = write(folder / "benign.jsonl", tiny.rows(40, "bbb"))
    return paths


def key(row: dict[str, Any]) -> dict[str, Any]:
    words = row["completion"].split()
    # Under a prefill of one word a right answer is the rest of it, or all of it.
    return {"accept": [row["completion"], " ".join(words[1:])]}


def request(places: dict[str, Path], **options: Any) -> AutoRequest:
    spec = {name: str(places[name]) for name in ("model", "target", "preserve")}
    return AutoRequest(**(spec | options))


def test_what_is_decided_without_being_asked(places: dict[str, Path], tmp_path: Path) -> None:
    planned = plan_auto(request(places, prompts=20), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    config = planned.config
    # Answers of six words: a quarter is one token, which opens replies and is not scored.
    assert (config.attack.tokens, config.targets["generation"].skip) == (1, 1)
    assert (config.format, config.evaluation.judge) == ("chat", "exact")
    assert config.evaluation.max_new_tokens == 7
    assert config.studies.frontier is not None
    # The largest matrix has 384 weights: a tenth of the rule's 3e-3 would be an empty mask.
    assert config.studies.frontier.fractions == (2.7e-3, 3e-3, 7.5e-3)
    assert config.studies.frontier.protected == (0.015,)
    splits = rows_by_split(planned, "target")
    assert not set(splits["calibration"]) & set(splits["evaluation"])
    assert len(splits["evaluation"]) == 20 < len(splits["calibration"])
    text = "\n".join(planned.reasons)
    short = [row for row in tiny_rows(places) if len(row["completion"].split()) <= 1]
    assert short
    assert f"target: {len(short)} answers of at most 1 tokens are left out" in text
    assert not {r["prompt"] for r in short} & {p for prompts in splits.values() for p in prompts}
    for words in ("chat template", "opening of 1 tokens", "judge exact", "at most 5 %",
                  "the least q is 0.0027: less removes nothing"):  # fmt: skip
        assert words in text
    again = plan_auto(request(places, prompts=20), tmp_path / "run")
    assert again == planned


def test_cells_and_minutes_are_said_before_a_run_starts(
    places: dict[str, Path], tmp_path: Path
) -> None:
    done = call("run", places["model"], "--target", places["target"], "--preserve",
                places["preserve"], "--dry-run", "-o", tmp_path / "run")  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stderr.split())
    planned = plan_auto(request(places), tmp_path / "run")
    cells = plan_run(planned.config)
    said_of = rf"\b{len(cells)} cells, at most about \d+ min on this machine"
    assert re.search(said_of, said), said
    assert re.search(r"; about \d+ min if they are as long as the answers of their sets", said)
    machine = here()
    usual = expected_here(planned.config, cells, planned.sizes, machine=machine)
    assert 0 < usual < 600
    most = expected_here(planned.config, cells, planned.sizes, machine=machine, full=True)
    assert most > usual
    # A process of two takes half as long on a machine of the same speed.
    assert expected_here(planned.config, cells, planned.sizes, machine=machine, jobs=2) == usual / 2
    many = {name: replace(size, asked=1000 * size.asked) for name, size in planned.sizes.items()}
    assert expected_here(planned.config, cells, many, machine=machine) > 10 * usual


def test_a_utility_set_is_asked_as_a_whole(places: dict[str, Path], tmp_path: Path) -> None:
    rows = [row | {"key": key(row)} for row in tiny.rows(30, "u")]
    utility = write(tmp_path / "utility.jsonl", rows)
    # However few prompts of the behaviour are asked.
    planned = plan_auto(request(places, utility=str(utility), prompts=8), tmp_path / "run")
    assert {name: len(rows) for name, rows in rows_by_split(planned, "utility").items()} == {
        "evaluation": 30
    }


def test_a_contrast_may_have_rows_for_scoring_alone(
    places: dict[str, Path], tmp_path: Path
) -> None:
    rows = [row | {"split": "calibration"} for row in tiny.rows(20, "bbb")]
    contrast = write(tmp_path / "contrast.jsonl", rows)
    planned = plan_auto(request(places, contrast=str(contrast)), tmp_path / "run")
    assert planned.config.targets["generation"].contrast == "contrast"
    assert {row.split for row in planned.sets["contrast"].examples} == {"calibration"}


@pytest.mark.parametrize("option", ["limit", "prompts"])
def test_an_option_that_leaves_too_few_rows_is_named(
    option: str, places: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"--{option} asks for too few rows") as error:
        plan_auto(request(places, **{option: 4}), tmp_path / "run")
    assert "at least 8" in str(error.value)


def test_prompts_that_say_the_same_are_counted_before_a_run_starts(
    places: dict[str, Path], tmp_path: Path
) -> None:
    lamps = [row | {"prompt": f"write poem for u{n}"} for n, row in enumerate(tiny_rows(places))]
    planned = plan_auto(
        request(places, target=str(write(tmp_path / "lamps.jsonl", lamps)), prompts=8),
        tmp_path / "run",
    )
    # One of each category.
    said = "target: 8 prompts for evaluation count as 2: those that share 50 % of their"
    assert said in "\n".join(planned.reasons)


def tiny_rows(places: dict[str, Path]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in places["target"].read_text("utf-8").splitlines()]


def rows_by_split(planned: Planned, name: str) -> dict[str, list[str]]:
    text = next(text for path, text in planned.files.items() if path.stem == name)
    splits: dict[str, list[str]] = {}
    for line in text.splitlines():
        row = json.loads(line)
        splits.setdefault(row["split"], []).append(row["prompt"])
    return splits


def test_rows_are_written_as_they_were_read(places: dict[str, Path], tmp_path: Path) -> None:
    rows = [
        {"id": f"m{n}", "prompt": [{"role": "user", "content": f"w{n}"}], "category": "x"}
        | {"completion": "w1 w2 w3 w4", "prefix_tokens": 2, "key": {"accept": ["w2"]}}
        for n in range(40)
    ]
    talk = write(tmp_path / "talk.jsonl", rows)
    planned = plan_auto(request(places, target=str(talk)), tmp_path / "run")
    path, text = next(iter(planned.files.items()))
    path.parent.mkdir(parents=True)
    path.write_text(text, "utf-8")
    read = {example.id: example for example in load_data(path).examples}
    for example in load_data(talk).examples:
        mine = read[example.id]
        assert (mine.prompt, mine.completion) == (example.prompt, example.completion)
        assert (mine.key, mine.prefix_tokens) == (example.key, example.prefix_tokens)


def test_what_is_missing_is_said_clearly(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_words: Any, **_options: Any) -> Any:
        raise InputError("cannot load it from the Hub", got="no connection")

    monkeypatch.setattr("resect.data.preset.hub_rows", offline)
    words = ["run", places["model"], "-o", tmp_path / "run"]
    for options, missing in ((["--preserve", places["preserve"]], "target"), ([], "target"),
                           (["--target", places["target"]], "preserve")):  # fmt: skip
        done = call(*words, *options)
        assert done.returncode == 2
        for text in (f"no --{missing} was given", "no connection", "prompt and completion",
                     "--data-dir", "next step: resect run"):  # fmt: skip
            assert text in done.stderr, text
    bare = write(tmp_path / "bare.jsonl", [r | {"completion": ""} for r in tiny.rows(20, "f")])
    done = call(*words, "--target", bare, "--preserve", places["preserve"])
    assert done.returncode == 2
    assert "completion" in done.stderr
    few = write(tmp_path / "few.jsonl", tiny.rows(10, "f"))
    done = call(*words, "--target", few, "--preserve", places["preserve"])
    assert done.returncode == 2
    assert "too small" in done.stderr
    assert not (tmp_path / "run").exists()


def test_one_command_makes_one_report_and_it_reproduces(
    places: dict[str, Path], tmp_path: Path
) -> None:
    run, again = tmp_path / "run", tmp_path / "again"
    words = ["run", places["model"], "--target", places["target"], "--preserve",
             places["preserve"], "--budget", 1, "--prompts", 16,
             "--max-new-tokens", 5, "-o", run]  # fmt: skip
    output = ok(*words)
    assert str(run / "report.html") in output
    results = read_json(run / "results.json")
    rows = [
        row
        for row in results["studies"][0]["tables"]["grid"]
        if row["chosen"] and row["seed"] is None
    ]
    # Half of the answers are the model's own and are lost with a few weights.
    assert rows
    chosen = Mask.load(run / "chosen.mask.safetensors")
    harmless(run, places)
    assert chosen.meta["measured"]["rows"] == rows
    assert chosen.meta["q"] == rows[0]["q"]
    assert chosen.fraction == pytest.approx(rows[0]["removed_fraction"])
    ok("prune", places["model"], run / "chosen.mask.safetensors", "--run", run,
       "-o", tmp_path / "cut")  # fmt: skip
    card = (tmp_path / "cut" / "README.md").read_text("utf-8")
    assert "| test |" in card
    assert results["claims"][0]["verdict"] in card
    gated(run, chosen, results["claims"][0])
    assert call("reproduce", run, "--check").returncode == 0
    done = call("reproduce", run, "-o", again)
    assert done.returncode == 0, done.stdout
    assert "results: identical" in done.stdout
    assert read_json(again / "reproduction.json")["grade"] == "identical"
    broken(run, again, tmp_path)


def harmless(run: Path, places: dict[str, Path]) -> None:
    """Check that both models were asked harmless prompts, and that the report says how it went."""
    facts = read_json(run / "harmless.json")
    assert facts["prompts"] == 16
    rows = {name: read_parquet(run / "harmless" / f"{name}.parquet") for name in ("intact", "cut")}
    lines = places["preserve"].read_text("utf-8").splitlines()
    assert {row["prompt"] for row in rows["cut"]} <= {json.loads(line)["prompt"] for line in lines}
    assert [row["prompt"] for row in rows["intact"]] == [row["prompt"] for row in rows["cut"]]
    assert [row["text"] for row in rows["intact"]] != [row["text"] for row in rows["cut"]]
    assert {row["judge"] for row in rows["cut"]} == {"keyword"}
    # Words of a random model are no refusals.
    assert facts["intact"]["value"] == facts["cut"]["value"] == 0
    page = (run / "report.html").read_text("utf-8")
    assert "Of 16 harmless prompts of the preserve set the intact model refuses 0.0 %" in page


def gated(run: Path, chosen: Mask, claim: dict[str, Any]) -> None:
    """Ask for the claim on the chosen cut: of it, and of the other masks of the run."""
    place = run / "chosen.mask.safetensors"
    require = [f"{claim['study']}: {claim['claim']}={claim['verdict']}"]
    assert len(pass_gate(chosen, None, require, source=place).met) == 1
    kept = sorted((run / "masks").glob("*.mask.safetensors"))
    assert {mask.file for mask in read_traces(run).masks} == {path.name for path in kept}
    others = [path for path in kept if Mask.load(path).hash != chosen.hash]
    assert others
    for path in others:
        with pytest.raises(InputError, match="is not about this mask"):
            pass_gate(Mask.load(path), None, require, source=path)


def broken(run: Path, again: Path, tmp_path: Path) -> None:
    """Change one thing at a time in the repetition and see it graded."""

    def grades(kind: str) -> set[str]:
        return {row.grade for row in compare_runs(run, again) if row.kind == kind}

    record = sorted((again / "records").glob("*.parquet"))[0]
    rows = read_parquet(record)
    for change, grade in (
        ({"text": "something else"}, "differs"),
        ({"repetition": (rows[0]["repetition"] or 0.0) + 1e-6}, "within rounding"),
    ):
        write_parquet(record, [rows[0] | change, *rows[1:]])
        assert grade in grades("records"), change
    write_parquet(record, rows)
    assert grades("records") == {"identical"}
    # The smallest and the largest cut of the grid.
    masks = sorted((again / "masks").glob("*"), key=lambda path: Mask.load(path).count)
    assert Mask.load(masks[-1]).count > Mask.load(masks[0]).count
    shutil.copy(masks[-1], masks[0])
    assert "differs" in grades("mask")
    masks[0].unlink()
    assert "cannot check" in grades("mask")
    results = read_json(again / "results.json")
    results["claims"][0]["verdict"] = "supported now"
    write_json(again / "results.json", results)
    assert "differs" in grades("claim")
    # Another data file: nothing is run again, and the exit code says so.
    data = run / "data" / "target.jsonl"
    data.write_text(data.read_text("utf-8") + "\n", "utf-8")
    done = call("reproduce", run, "-o", tmp_path / "never")
    assert done.returncode == 3
    assert "not run again" in done.stderr
    assert not (tmp_path / "never").exists()
    data.unlink()
    assert call("reproduce", run, "-o", tmp_path / "never").returncode == 4
    assert call("reproduce", tmp_path).returncode == 2


@pytest.mark.parametrize(
    ("before", "now", "grade"),
    [
        (1, 1, "identical"),
        (1, 2, "differs"),
        (True, 1.0, "identical"),
        (1.0, 1.00001, "within rounding"),
        (1e6, 1e6 + 1, "within rounding"),
        (1e-9, 2e-9, "within rounding"),
        (1.0, 1.01, "differs"),
        (float("nan"), float("nan"), "identical"),
        ([1.0, "a"], [1.00001, "a"], "within rounding"),
        ([1.0, "a"], [1.00001, "b"], "differs"),
        ([1], [1, 2], "differs"),
        ({"a": 1}, {"b": 1}, "differs"),
        (None, 0.0, "differs"),
    ],
)
def test_grades(before: Any, now: Any, grade: str) -> None:
    assert compare_values(before, now) == grade
    assert compare_values(now, before) == grade
