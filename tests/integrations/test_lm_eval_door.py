"""The lm-eval door: the cut counts, items are kept, and the numbers are those of resect eval."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from resect.edit.live import removed
from resect.errors import InputError, MismatchError
from resect.evaluation.evaluate import EvalRequest, evaluate_model
from resect.files.reading import read_json
from resect.files.tables import read_parquet
from resect.integrations import lm_eval as door
from resect.model import load_model

GENERATED = """
task: tiny_generated
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{completion}}}}"
generation_kwargs: {{until: [], max_gen_toks: 6, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""
CHOSEN = """
task: tiny_chosen
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: [" w1", " w2", " w3"]
doc_to_target: 1
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""
PERPLEXITY = """
task: tiny_perplexity
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{prompt}}}}"
metric_list: [{{metric: word_perplexity}}]
metadata: {{version: 1.0}}
"""
# lm-eval's command line reads the index of its own 14,000 tasks first, 12 s of CPU time that say
# nothing about the door; only this index is left out, by the default of an argument.
SHELL = """
from lm_eval.tasks import TaskManager
TaskManager.__init__.__defaults__ = (None, None, False, None)
from resect.cli import main; main()
"""
NAMES = ("tiny_generated", "tiny_chosen", "tiny_perplexity")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, a mask, items and three local tasks; half the items have the cut's answer."""
    folder = tmp_path_factory.mktemp("lm-eval")
    os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
    tiny.save("llama", folder / "m")
    tiny.save("llama", folder / "other", seed=1)
    mask = tiny.cut(tiny.build("llama"))
    mask.save(folder / "a.safetensors")
    rows = tiny.rows(8, "q")
    tiny.answer_half(rows, tiny.build("llama"), mask)
    data = folder / "items.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "tasks").mkdir()
    for name, text in zip(NAMES, (GENERATED, CHOSEN, PERPLEXITY), strict=True):
        (folder / "tasks" / f"{name}.yaml").write_text(text.format(data=data), encoding="utf-8")
    return folder


def settings(folder: Path, **changes: Any) -> door.TaskSettings:
    return door.TaskSettings(include_path=folder / "tasks", **changes)


def test_items_are_kept_and_their_mean_is_lm_evals_number(folder: Path) -> None:
    loaded = load_model(folder / "m")
    model, tokenizer = loaded
    pad, before = tokenizer.pad_token, [p.clone() for p in model.parameters()]
    mask = tiny.cut(model)
    run = door.run_tasks(loaded, NAMES, mask=mask, settings=settings(folder, chat=True))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert tokenizer.pad_token == pad
    scores = run.scores()
    for name, metric in (("tiny_generated", "exact_match,none"), ("tiny_chosen", "acc,none")):
        values = [score for score in scores[door.Measure(name, metric)] if score is not None]
        assert len(values) == 8
        assert sum(values) / 8 == pytest.approx(run.aggregated[name][metric])
    # A perplexity is no rate of one item: unscored with its reason, and not a zero.
    verdicts = [v for v in run.verdicts if v.rule.startswith("word_perplexity")]
    assert len(verdicts) == 8
    assert {v.score for v in verdicts} == {None}
    assert all(v.reason for v in verdicts)
    with removed(model, mask):
        same = door.run_tasks(loaded, NAMES, settings=settings(folder, chat=True))
    assert same.rows == run.rows
    whole = door.run_tasks(loaded, NAMES, settings=settings(folder, chat=True))
    assert [row["text"] for row in whole.rows] != [row["text"] for row in run.rows]


def test_answers_that_lm_eval_takes_apart_are_unscored(folder: Path) -> None:
    rows = [{"prompt": "w1", "completion": "['w1']"}, {"prompt": "w2", "completion": "w3 w4"}]
    data = folder / "apart.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    text = GENERATED.format(data=data).replace("tiny_generated", "apart")
    (folder / "tasks" / "apart.yaml").write_text(text, encoding="utf-8")
    run = door.run_tasks(load_model(folder / "m"), ("apart",), settings=settings(folder))
    assert [verdict.score for verdict in run.verdicts] == [None, None]
    assert all("character by character" in verdict.reason for verdict in run.verdicts)


def test_both_arms_are_compared_in_pairs(folder: Path, tmp_path: Path) -> None:
    request = door.TasksRequest(
        str(folder / "m"), NAMES, folder / "a.safetensors", settings(folder, chat=True)
    )
    rows = {row["task"]: row for row in door.measure_tasks(request, tmp_path / "out")}
    compared: Any = rows["tiny_generated"]
    assert compared["cut"] - compared["intact"] == pytest.approx(compared["difference"])
    assert compared["difference_low"] <= compared["difference"] <= compared["difference_high"]
    assert compared["higher_is_better"] is True
    assert rows["tiny_perplexity"]["unscored"] == 8
    assert rows["tiny_perplexity"]["cut"] is None
    cut = read_parquet(tmp_path / "out" / "records" / "cut.parquet")
    scores = [row["score"] for row in cut if row["category"] == "tiny_generated"]
    assert sum(scores) / 8 == compared["cut"]
    provenance = read_json(tmp_path / "out" / "results.json")["provenance"]
    assert provenance["mask_hash"] == tiny.cut(tiny.build("llama")).hash
    assert provenance["task_versions"]["tiny_chosen"] == 1.0


def test_shell_door_equals_resect_eval(folder: Path, tmp_path: Path) -> None:
    mask = folder / "a.safetensors"
    words = [
        "lm-eval", "run", "--model", "resect", "--tasks", "tiny_generated",
        "--model_args", f"pretrained={folder / 'm'},mask={mask}",
        "--include_path", folder / "tasks",
        "--apply_chat_template", "--log_samples", "--batch_size", 3, "-o", tmp_path / "out",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", SHELL, *map(str, words)],
        capture_output=True, text=True, check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads(next((tmp_path / "out").rglob("results_*.json")).read_text())
    assert results["config"]["mask_hash"] == tiny.cut(tiny.build("llama")).hash
    lines = next((tmp_path / "out").rglob("samples_*.jsonl")).read_text().splitlines()
    theirs = {row["doc_id"]: row for row in map(json.loads, lines)}

    request = EvalRequest(
        model=str(folder / "m"), mask=mask, probes=("utility",),
        data=(str(folder / "items.jsonl"),), max_new_tokens=6,
    )  # fmt: skip
    rates = {row["variant"]: row for row in evaluate_model(request, tmp_path / "eval").rates}
    assert rates["intact"]["rate"] != rates["cut"]["rate"] == 0.5
    assert results["results"]["tiny_generated"]["exact_match,none"] == rates["cut"]["rate"]
    ours = read_parquet(tmp_path / "eval" / "records" / "cut.parquet")
    assert [row["text"] for row in ours] == [theirs[n]["filtered_resps"][0] for n in range(8)]
    assert [row["score"] for row in ours] == [theirs[n]["exact_match"] for n in range(8)]


def test_what_does_not_fit_is_refused(folder: Path) -> None:
    other = load_model(folder / "other")
    with pytest.raises(MismatchError, match="has another value"):
        door.run_tasks(
            other, NAMES[:1], mask=tiny.cut(tiny.build("llama")),
            settings=settings(folder),
        )  # fmt: skip
    with pytest.raises(InputError, match="no such folder"):
        door.run_tasks(other, NAMES, settings=door.TaskSettings(include_path=folder / "none"))


def test_a_task_that_runs_code_is_refused_before_anything_is_fetched(
    folder: Path, tmp_path: Path
) -> None:
    text = GENERATED.format(data=tmp_path / "nowhere.jsonl") + "unsafe_code: true\n"
    (tmp_path / "programs.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"runs the code[\s\S]*--confirm_run_unsafe_code"):
        door.run_tasks(
            load_model(folder / "other"),
            ("tiny_generated",),
            settings=door.TaskSettings(include_path=tmp_path),
        )


def test_both_ways_into_lm_eval() -> None:
    from lm_eval.api.registry import get_model

    door.register()
    door.register()
    assert get_model("resect") is door.ResectLM


def test_the_local_task_that_the_docs_show_runs(folder: Path, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    shown = page.partition("```yaml\ntask: ")[2].partition("```")[0]
    text = "task: " + shown.replace("items.jsonl", str(folder / "items.jsonl"))
    (tmp_path / "my_questions.yaml").write_text(text, encoding="utf-8")
    settings = door.TaskSettings(include_path=tmp_path, limit=4)
    request = door.TasksRequest(str(folder / "m"), ("my_questions",), None, settings, None)
    (row,) = door.measure_tasks(request, tmp_path / "out")
    assert (row["task"], row["items"]) == ("my_questions", 4)


MISSING = "there/is-none.jsonl"


@pytest.mark.parametrize(
    ("task", "changes", "said"),
    [
        ("nowhere", {}, "unknown task"),
        ("tiny_generated", {"dtype": "float8"}, "unknown dtype"),
        ("tiny_generated", {"mask": Path("none.safetensors")}, "none.safetensors"),
        ("tiny_generated", {"model": "./none"}, "no such checkpoint folder"),
        ("lost", {}, "the data of a task cannot be had"),
        ("broken", {}, "lm-eval cannot build broken"),
        ("programs", {}, "runs the code"),
    ],
)
def test_what_cannot_be_run_is_refused_before_the_model_is_loaded(
    task: str,
    changes: dict[str, Any],
    said: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(door, "load_model", lambda *_args, **_options: pytest.fail("it was loaded"))
    for name, place, addition in (
        ("tiny_generated", folder / "items.jsonl", ""),
        ("lost", tmp_path / MISSING, ""),
        ("programs", folder / "items.jsonl", "unsafe_code: true\n"),
        ("broken", folder / "items.jsonl", "filter_list: [{name: a, filter: [{function: no}]}]\n"),
    ):
        text = GENERATED.format(data=place).replace("tiny_generated", name) + addition
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    request = replace(
        door.TasksRequest(
            str(folder / "m"), (task,), None, door.TaskSettings(include_path=tmp_path)
        ),
        **changes,
    )
    with pytest.raises(InputError, match=said):
        door.measure_tasks(request, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_chat_without_a_template_is_refused_before_the_model_is_loaded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "load_model", lambda *_args, **_options: pytest.fail("it was loaded"))
    shutil.copytree(folder / "m", tmp_path / "m")
    (tmp_path / "m" / "chat_template.jinja").unlink()
    request = door.TasksRequest(str(tmp_path / "m"), NAMES, None, settings(folder, chat=True))
    with pytest.raises(InputError, match="has no chat template"):
        door.measure_tasks(request, tmp_path / "out")
