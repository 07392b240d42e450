"""lm-eval tasks as utility: the real library asks and marks, and the budget rests on its marks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from command_line import call, write
from resect.data.load import load_data
from resect.edit.many import NotTogether, Routes
from resect.errors import InputError
from resect.evaluation.ask import EvaluationSettings, ask_together
from resect.evaluation.lm_eval_tasks import load_tasks, taken_apart
from resect.files.reading import read_json
from resect.files.tables import read_parquet
from resect.integrations import lm_eval as door
from resect.model import load_model
from resect.records import Row
from resect.report.shared import by_tasks
from resect.runs.auto import AutoRequest, plan_auto, run_auto
from resect.runs.config import parse_config
from resect.runs.run import carry_out, plan_run
from resect.runs.sweep import SweepRequest, chosen_rows, sweep_config
from resect.studies.cells import Cell, mask_path, record_path
from resect.studies.measurements import Measurements
from resect.weights.mask import Mask

CHOSEN = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
WRITTEN = """
task: written
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: [], max_gen_toks: 2, do_sample: {sampled}}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""
ROLLING = """
task: rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list: [{{metric: word_perplexity}}]
metadata: {{version: 1.0}}
"""
GROUP = "group: both\ntask: [one, two]\n"
CHOICES = ["w1", "w2", "w3"]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model, its sets, and tasks of invented words; what it answers now is right in all."""
    folder = tmp_path_factory.mktemp("steers")
    os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
    paths = {"model": tiny.save("llama", folder / "model"), "tasks": folder / "tasks"}
    model = load_model(paths["model"]).model
    rows = tiny.rows(24, "c", split="calibration") + tiny.rows(32, "ee", split="evaluation")
    tiny.answer_half(rows, model, tiny.cut(model, 0.0))
    rows = [row for row in rows if len(row["completion"].split()) > 1]
    keyed = [row | {"key": {"accept": [" ".join(row["completion"].split()[1:])]}} for row in rows]
    paths["target"] = write(folder / "harm.jsonl", keyed)
    benign = tiny.rows(16, "b", split="calibration") + tiny.rows(12, "ccc", split="evaluation")
    paths["preserve"] = write(folder / "benign.jsonl", benign)
    paths["tasks"].mkdir()
    for name, prefix in (("one", "dddd"), ("two", "eeeee")):
        data = write(folder / f"{name}.jsonl", questions(model, prefix))
        task(paths, name, CHOSEN.format(name=name, data=data))
    task(paths, "written", WRITTEN.format(data=data, sampled="false"))
    task(paths, "rolling", ROLLING.format(data=data))
    task(paths, "both", GROUP)
    return paths


def task(paths: dict[str, Path], name: str, text: str) -> None:
    (paths["tasks"] / f"{name}.yaml").write_text(text, encoding="utf-8")


def questions(model: Any, prefix: str) -> list[dict[str, Any]]:
    """Return questions whose right answers are the likeliest words, and what would be written."""
    tokenizer, rows = tiny.tokenizer(), []
    ids = [tokenizer.convert_tokens_to_ids(word) for word in CHOICES]
    for row in tiny.rows(30, prefix):
        prompt = torch.tensor([tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            logits = model(prompt).logits[0, -1]
            answer = model.generate(input_ids=prompt, max_new_tokens=2, do_sample=False)
        rows.append(
            {
                "question": row["prompt"],
                "choices": CHOICES,
                "gold": int(logits[ids].argmax()),
                "answer": tokenizer.decode(
                    answer[0, prompt.shape[1] :].tolist(), skip_special_tokens=True
                ),
            }
        )
    return rows


def spec(places: dict[str, Path], names: str, *settings: str) -> str:
    return f"lm-eval:{names}#" + ",".join([f"include_path={places['tasks']}", *settings])


def swept(places: dict[str, Path], run: Path, utility: str, budget: float) -> Any:
    """Walk a small frontier; return its configuration."""
    grid = run.parent / "grid.yaml"
    grid.write_text("fractions: [0.003, 0.03, 0.2]\nprotected: [0.01]\nscopes: [tensor]\n", "utf-8")
    config = sweep_config(
        SweepRequest(
            str(places["model"]), str(places["target"]), str(places["preserve"]), utility=utility,
            grid=grid, prefill_tokens=1, judge="exact", max_new_tokens=5, budget=budget,
        )
    )  # fmt: skip
    carry_out(config, run, resume=False, report=False)
    return config


@pytest.fixture(scope="module")
def sweep(places: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    run = tmp_path_factory.mktemp("sweep") / "run"
    return run, swept(places, run, spec(places, "both", "questions=24"), 0.2)


def utility_rows(run: Path, cell: Cell) -> list[Any]:
    return [row for row in read_parquet(record_path(run, cell)) if row["probe"] == "utility"]


def test_any_lm_eval_task_steers_the_search(
    places: dict[str, Path], sweep: tuple[Path, Any]
) -> None:
    run, config = sweep
    loaded = load_model(places["model"])
    cells = [cell for cell in plan_run(config) if cell.cut is None or cell.cut.kind == "target"]
    assert len(cells) == 4
    means: dict[float, float] = {}
    for cell in cells:
        rows = utility_rows(run, cell)
        assert {(row["category"], row["judge"], row["rule"]) for row in rows} == {
            ("one", "lm-eval", "acc,none"),
            ("two", "lm-eval", "acc,none"),
        }
        assert len(rows) == len({row["example_id"] for row in rows}) == 48
        means[0.0 if cell.cut is None else cell.cut.q] = sum(r["score"] for r in rows) / 48
        if cell.cut is not None and cell.cut.q < 0.2:
            continue
        # Question by question what lm-eval reports of a model with the same weights cut.
        mask = None if cell.cut is None else Mask.load(mask_path(run, cell.role, 0, cell.cut))
        theirs = door.run_tasks(
            loaded, ("one", "two"), mask=mask, settings=door.TaskSettings(places["tasks"])
        )
        marks = {
            reply.example_id: verdict.score
            for reply, verdict in zip(theirs.replies, theirs.verdicts, strict=True)
            if verdict.rule == "acc,none"
        }
        assert {row["example_id"]: row["score"] for row in rows}.items() <= marks.items()
    assert means[0.0] == 1
    assert means[0.2] < 0.8 < means[0.003]
    drops = {row["q"]: row["utility_drop"] for row in table(run) if row["split"] == "test"}
    assert drops[0.2] > drops[0.003]
    # The same grid chooses another cut where only the budget on lm-eval's marks differs.
    within = [row["q"] for row in chosen_rows(run / "results.json")]
    assert within
    assert max(within) < 0.2
    wide = config.model_copy(
        update={"studies": config.studies.model_copy(update={"frontier": free(config)})}
    )
    assert {row["q"] for row in chosen_by(wide, run)} != set(within)


def table(run: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_json(run / "results.json")["studies"][0]["tables"]["grid"]
    return [row for row in rows if row["seed"] is None and row["method"] == "configured"]


def free(config: Any) -> Any:
    return config.studies.frontier.model_copy(update={"utility_drop": 1.0})


def chosen_by(config: Any, run: Path) -> list[Row]:
    from resect.studies import frontier

    result = frontier.STUDY.summarise(Measurements(config, run), config.studies.frontier)
    return [row for row in result.tables["grid"] if row["chosen"] and row["seed"] is None]


def test_report_and_records_name_the_tasks(sweep: tuple[Path, Any]) -> None:
    run, _ = sweep
    provenance = read_json(run / "results.json")["provenance"]
    said = "one (acc,none; 24 of 30 questions, each after 0 solved ones), two (acc,none; 24 of"
    assert said in provenance["utility_tasks"]
    assert ", both: one (" in provenance["utility_tasks"]
    assert by_tasks(provenance).startswith("Utility is asked and marked by lm-eval 0.4")
    note = next(n for n in map(read_json, (run / "data").glob("*.json")) if n["name"] == "utility")
    assert note["asked"]["tasks"]["one"]["version"] == "1.0"
    # Records of other cells look as they did before there were marks.
    assert "mark" in utility_rows(run, Cell("aligned", 0, None, ()))[0]


def test_a_run_goes_on_with_the_same_questions_alone(
    places: dict[str, Path], sweep: tuple[Path, Any]
) -> None:
    run, config = sweep
    carry_out(config, run, resume=True, report=False)
    path = next(path for path in (run / "data").glob("*.json") if "utility" in path.read_text())
    assert read_json(path)["hash"] == load_tasks(config.data["utility"]).hash
    for other in ("questions=23", "questions=24,few_shot=1", "questions=24,metric=acc_norm"):
        assert load_tasks(spec(places, "both", other)).hash != read_json(path)["hash"]


def test_a_run_by_likelihood_rests_on_the_task_too(places: dict[str, Path], tmp_path: Path) -> None:
    request = AutoRequest(
        str(places["model"]), str(places["target"]), str(places["preserve"]),
        utility=spec(places, "one"), measure="likelihood", prompts=8, limit=16,
    )  # fmt: skip
    planned = plan_auto(request, tmp_path / "run")
    assert "utility: 30 for evaluation from lm-eval:one" in "\n".join(planned.reasons)
    run_auto(planned, tmp_path / "run")
    results = read_json(tmp_path / "run" / "results.json")
    sight = read_json(tmp_path / "run" / "instrument.json")["seeds"]["0"]["utility"]
    assert sight["intact"]["value"] == 1
    # What a destroyed model guesses right is no sight: the drop is that of what is above guessing.
    above = (sight["destroyed"]["value"] - 1 / 3) / (1 - 1 / 3)
    assert sight["drop"]["value"] == pytest.approx(1 - above)
    chosen = next(study for study in results["studies"] if study["study"] == "selectivity")
    assert "utility" not in {row["set"] for row in chosen["tables"]["rises"]}
    rows = utility_rows(tmp_path / "run", Cell("aligned", 0, None, ()))
    assert {row["rule"] for row in rows} == {"acc,none"}
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "Harm is a likelihood in this run" in page
    assert "Utility is asked and marked by lm-eval" in page
    assert "one (acc,none; 30 of 30 questions" in page


def test_a_model_that_guesses_has_no_utility_to_lose(
    sweep: tuple[Path, Any], tmp_path: Path
) -> None:
    from resect.files.tables import write_parquet

    run, config = sweep
    cell = Cell("aligned", 0, None, ())
    assert Measurements(config, run).silent([cell], "utility") == ""
    rows = read_parquet(record_path(run, cell))
    for number, row in enumerate(rows):
        row["score"] = float(number % 3 == 0)
    write_parquet(record_path(tmp_path, cell), rows)
    said = Measurements(config, tmp_path).silent([cell], "utility")
    assert "guessing answers 33.3 %" in said


def test_what_is_written_is_marked_as_lm_eval_marks_it(places: dict[str, Path]) -> None:
    loaded = load_model(places["model"])
    pad = loaded.tokenizer.pad_token
    plain = load_tasks(spec(places, "written")).answers(loaded, "utility", "none", 4)
    assert [reply.mark for reply in plain] == [1.0] * 30
    shown = load_tasks(spec(places, "written", "chat=yes", "few_shot=2"))
    replies = shown.answers(loaded, "utility", "none", 4)
    settings = door.TaskSettings(places["tasks"], num_fewshot=2, chat=True)
    theirs = door.run_tasks(loaded, ("written",), settings=settings)
    assert [reply.text for reply in replies] == [reply.text for reply in theirs.replies]
    assert [reply.mark for reply in replies] == [verdict.score for verdict in theirs.verdicts]
    assert [reply.text for reply in replies] != [reply.text for reply in plain]
    # The prompt of a question is the question, not the examples before it.
    assert [reply.prompt for reply in replies] == [reply.prompt for reply in plain]
    assert (loaded.tokenizer.pad_token, loaded.model.training) == (pad, False)
    with pytest.raises(NotTogether, match="lm-eval asks one variant at a time"):
        ask_together(loaded, {"utility": shown}, EvaluationSettings(), [None, None], Routes({}))


def test_what_lm_eval_cannot_mark_question_by_question_is_refused(
    places: dict[str, Path],
) -> None:
    data = places["tasks"].parent / "one.jsonl"
    sampled = WRITTEN.format(data=data, sampled="true").replace("task: written", "task: sampled")
    task(places, "sampled", sampled)
    for name, settings, said in (
        ("rolling", (), "it asks for loglikelihood_rolling"),
        ("sampled", (), "it samples its answers"),
        ("one", ("metric=bleu",), "no such metric"),
        ("one", ("filter=strict",), "no such filter"),
    ):
        with pytest.raises(InputError, match=said):
            load_tasks(spec(places, name, *settings))
    with pytest.raises(InputError, match=r"got: writen\n.*\n  next step: did you mean 'written'"):
        load_tasks(spec(places, "writen"))
    with pytest.raises(InputError, match="tasks of your own with --include-path"):
        load_tasks("lm-eval:qqqqqqqqq")
    for broken in ("lm-eval:", "lm-eval:one,one", "lm-eval:one#limit=3", "lm-eval:one#questions=0"):
        with pytest.raises(InputError, match="cannot read"):
            load_tasks(broken)
    with pytest.raises(InputError, match="an lm-eval task is no set of examples"):
        load_data("lm-eval:one#questions=3")
    config = sweep_config(SweepRequest("m", "a.jsonl", "b.jsonl", utility="lm-eval:one"))
    values = config.model_dump(mode="json")
    values["evaluation"]["probes"]["generation"] = "utility"
    values["data"]["utility"] = "lm-eval:one#questions=none"
    with pytest.raises(InputError) as error:
        parse_config(values, "it")
    assert "evaluation.probes.generation: 'utility' is an lm-eval task" in str(error.value)
    assert "data.utility: cannot read a setting" in str(error.value)


@pytest.mark.parametrize(
    ("targets", "apart"),
    [([], False), (["a", ["b"]], False), ([["a"], ["b"]], False), ([["a"], "b"], True)],
)
def test_the_first_answer_decides(targets: list[object], apart: bool) -> None:
    assert taken_apart(targets) == apart


def test_answers_that_lm_eval_takes_apart_are_refused(places: dict[str, Path]) -> None:
    # It reads the first answer as a list, and the second as a list of its characters.
    rows = [{"question": "w1", "answer": "['w1']"}, {"question": "w2", "answer": "w1 w2"}]
    for name, target in (("apart", "{{answer}}"), ("by_column", "answer")):
        data = write(places["tasks"].parent / f"{name}.jsonl", rows)
        text = WRITTEN.format(data=data, sampled="false").replace("task: written", f"task: {name}")
        task(places, name, text.replace('"{{answer}}"', f'"{target}"'))
    with pytest.raises(InputError, match=r"character by character[\s\S]*without braces"):
        load_tasks(spec(places, "apart"))
    assert len(load_tasks(spec(places, "by_column")).examples) == 2


UNFIT = {
    "rolls": (ROLLING.replace("rolling\n", "rolls\n", 1), "it asks for loglikelihood_rolling"),
    "programs": (
        WRITTEN.replace("exact_match", "!function grading.passes").replace("written", "programs", 1)
        + "unsafe_code: true\n",
        "it runs the code that a model writes",
    ),
    "shown": (
        WRITTEN.replace("written", "shown", 1) + "doc_to_image: picture\n",
        "it shows pictures or sounds",
    ),
    "tries": (WRITTEN.replace("written", "tries", 1) + "repeats: 4\n", "it samples its answers"),
}


@pytest.mark.parametrize("name", UNFIT)
@pytest.mark.parametrize("through", ["", "a group", "a group in a group", "a tag"])
def test_what_cannot_be_asked_is_refused_before_anything_is_fetched(
    name: str, through: str, tmp_path: Path
) -> None:
    # What a task is marked by may fetch something itself, as that of humaneval does.
    (tmp_path / "grading.py").write_text("raise ConnectionError('asked for')\n", encoding="utf-8")
    text, reason = UNFIT[name]
    text = text.format(data=tmp_path / "nowhere.jsonl", sampled="false")
    files = {name: text}
    if through == "a tag":
        files[name] += "tag: many\n"
    elif through:
        files["outer"] = f"group: many\ntask: [{name}]\n"
    if through == "a group in a group":
        files["outer"] = f"group: many\ntask:\n- group: inner\n  task: [{{task: {name}}}]\n"
    for file, content in files.items():
        (tmp_path / f"{file}.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as error:
        load_tasks(f"lm-eval:{'many' if through else name}#include_path={tmp_path}")
    assert f"the lm-eval task {name} cannot be asked question by question" in str(error.value)
    assert reason in str(error.value)


def test_a_group_that_has_its_tasks_sample_is_refused_before_anything_is_fetched(
    tmp_path: Path,
) -> None:
    text = WRITTEN.format(data=tmp_path / "nowhere.jsonl", sampled="false")
    group = "group: many\ntask: [{task: written, repeats: 3}]\n"
    for file, content in (("written", text), ("many", group)):
        (tmp_path / f"{file}.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match="it samples its answers"):
        load_tasks(f"lm-eval:many#include_path={tmp_path}")
    with pytest.raises(InputError, match="cannot be had"):
        load_tasks(f"lm-eval:written#include_path={tmp_path}")


def test_options_are_part_of_the_task(places: dict[str, Path], tmp_path: Path) -> None:
    words = ["sweep", places["model"], "--target", places["target"], "--preserve",
             places["preserve"], "-o", tmp_path / "run"]  # fmt: skip
    done = call(*words, "--questions", 3)
    assert done.returncode == 2
    assert "are for lm-eval tasks" in done.stderr
    shown = call("run", *words[1:], "--utility", "lm-eval:both", "--questions", 9,
                 "--include-path", places["tasks"], "--prompts", 8, "--dry-run")  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert "utility: 18 for evaluation from lm-eval:both#questions=9" in shown.stderr
    assert not (tmp_path / "run").exists()
