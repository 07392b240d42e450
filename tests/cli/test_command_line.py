"""The command line as a user runs it: the whole path on checkpoint folders, and bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tiny
from command_line import call, ok, write

COMMANDS = [
    [], ["demo"], ["coverage"], ["score"], ["select"], ["mask"], ["mask", "show"],
    ["mask", "random"], ["prune"], ["restore"], ["eval"], ["study"], ["study", "list"],
    ["data"], ["data", "list"], ["data", "show"], ["data", "check"], ["data", "collect"],
    ["judge"], ["judge", "fit"], ["judge", "check"], ["judge", "correct"],
    ["study", "init"], ["study", "run"], ["report"], ["organism"], ["organism", "build"],
    ["mask", "union"], ["mask", "intersect"], ["mask", "subtract"], ["mask", "overlap"],
    ["audit"],
    ["locate"], ["bench"], ["bench", "localise"],
    ["sweep"],
    ["mask", "push"], ["mask", "patch"], ["run"], ["reproduce"],
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    rows = tiny.rows(8, "c", split="calibration") + tiny.rows(6, "e", split="evaluation")
    return {
        "harm": write(folder / "harm.jsonl", rows),
        "benign": write(folder / "benign.jsonl", tiny.rows(9, "b")),
    }


def test_help_needs_no_torch_and_has_an_example() -> None:
    code = (
        "import json, sys\nfrom resect.cli import main\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    sys.argv[1:] = [*words, '--help']\n"
        "    try:\n        main()\n"
        "    except SystemExit as end:\n        assert not end.code, words\n"
        "    assert 'torch' not in sys.modules, words\n"
        "    print('end of help')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(COMMANDS)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pages = done.stdout.split("end of help")[:-1]
    assert len(pages) == len(COMMANDS)
    for words, page in zip(COMMANDS, pages, strict=True):
        assert "Usage" in page, words
        # A command that does something shows how it is called.
        assert "Example:" in page or "COMMAND" in page, words


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2"])
def test_score_select_prune_eval_restore(
    architecture: str, data: dict[str, Path], tmp_path: Path
) -> None:
    # Of one of them, what is first and what is last in new processes, as a user has it.
    fresh = architecture == "llama"
    model = tiny.save(architecture, tmp_path / "m")
    ok("coverage", model)
    harm, benign = tmp_path / "h.scores.safetensors", tmp_path / "b.scores.safetensors"
    mask = tmp_path / "a.mask.safetensors"
    ok("score", model, "--data", data["harm"], "--skip", 1, "--keep", 0.1, "-o", harm,
       fresh=fresh)  # fmt: skip
    ok("score", model, "--data", data["benign"], "--reduction", "mean_of_abs", "--keep", 0.1,
       "-o", benign)  # fmt: skip
    ok("select", harm, benign, "--q", 0.05, "--p", 0.05, "-o", mask)
    assert "removed" in ok("mask", "show", mask)
    ok("mask", "random", mask, "--model", model, "-o", tmp_path / "r.mask.safetensors")
    ok("prune", model, mask, "-o", tmp_path / "cut")
    ok("restore", tmp_path / "cut", mask, "-o", tmp_path / "back", fresh=fresh)
    before, cut, back = (
        load_file(tmp_path / name / "model.safetensors") for name in ("m", "cut", "back")
    )
    assert all(torch.equal(tensor, back[name]) for name, tensor in before.items())
    assert any(not torch.equal(tensor, cut[name]) for name, tensor in before.items())
    shown = ok(
        "eval", model, "--mask", mask, "--probe", "generation", "--probe", "likelihood",
        "--attack", "prefill:2", "--data", data["harm"], "--max-new-tokens", 4,
        "-o", tmp_path / "eval",
    )  # fmt: skip
    assert "generation" in shown
    results = json.loads((tmp_path / "eval" / "results.json").read_text(encoding="utf-8"))
    rates = {(row["probe"], row["variant"]): row for row in results["rates"]}
    assert rates["likelihood", "intact"]["kl"] == pytest.approx(0, abs=1e-6)
    assert rates["likelihood", "cut"]["kl"] > 0
    assert rates["generation", "cut"]["scored"] == 6
    # Asking the folder that prune wrote is asking the model that is cut in memory.
    ok("eval", tmp_path / "cut", "--probe", "likelihood", "--data", data["harm"],
       "-o", tmp_path / "eval2")  # fmt: skip
    again = json.loads((tmp_path / "eval2" / "results.json").read_text(encoding="utf-8"))
    assert again["rates"][0]["nll"] == pytest.approx(rates["likelihood", "cut"]["nll"], rel=1e-5)
    # Other judges read the same stored replies; the probes that are not judged stand there once.
    ok("eval", "--rejudge", tmp_path / "eval", "--judge", "exact", "--judge", "keyword:published",
       "-o", tmp_path / "judged")  # fmt: skip
    judged = json.loads((tmp_path / "judged" / "results.json").read_text(encoding="utf-8"))
    judgements = {(row["judge"], row["probe"], row["variant"]): row for row in judged["rates"]}
    assert judgements["exact", "generation", "cut"]["rate"] == rates["generation", "cut"]["rate"]
    assert ("keyword:published", "likelihood", "cut") not in judgements
    assert [row["both_scored"] for row in judged["agreement"]] == [6, 6]
    assert judged["provenance"]["request"] == results["provenance"]["request"]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, data: dict[str, Path]) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    tiny.save("llama", folder / "m")
    tiny.save("llama", folder / "other", seed=1)
    for name, model in (("h", "m"), ("x", "other")):
        ok("score", folder / model, "--data", data["harm"], "-o", folder / f"{name}.safetensors")
    ok("score", folder / "m", "--data", data["benign"], "--reduction", "mean_of_abs",
       "-o", folder / "b.safetensors")  # fmt: skip
    ok("select", folder / "h.safetensors", folder / "b.safetensors", "--q", 0.01, "--p", 0.01,
       "-o", folder / "mask.safetensors")  # fmt: skip
    tokenizer = folder / "tok"
    tiny.save("llama", tokenizer)
    template = tokenizer / "chat_template.jinja"
    template.write_text(template.read_text(encoding="utf-8") + " ", encoding="utf-8")
    ok("score", tokenizer, "--data", data["benign"], "--reduction", "mean_of_abs",
       "-o", folder / "t.safetensors")  # fmt: skip
    write(folder / "no_column.jsonl", [{"prompt": "w1", "answer": "w2"}])
    (folder / "empty.jsonl").write_text("", encoding="utf-8")
    long = " ".join(["w1"] * 80)
    write(folder / "long.jsonl", [{"id": "very-long", "prompt": long, "completion": "w2"}])
    return folder


@pytest.mark.parametrize(("preserve", "said"), [("h", True), ("b", False)])
def test_signed_scores_to_protect_are_named(
    bench: Path, preserve: str, said: bool, tmp_path: Path
) -> None:
    done = call("select", bench / "h.safetensors", bench / f"{preserve}.safetensors", "--q", 0.01,
                "--p", 0.001, "-o", tmp_path / "mask.safetensors")  # fmt: skip
    assert done.returncode == 0
    assert ("has signed scores" in done.stderr) == said


def test_empty_mask_is_named_and_leads_on(bench: Path, tmp_path: Path) -> None:
    mask = tmp_path / "none.mask.safetensors"
    selected = call("select", bench / "h.safetensors", bench / "b.safetensors", "--q", 1e-9,
                "--p", 0.01, "-o", mask)  # fmt: skip
    assert selected.returncode == 0
    assert ": 0 weights" in selected.stdout
    assert "the mask is empty" in selected.stderr
    assert "--q" in selected.stderr
    cut = call("prune", bench / "m", mask, "-o", tmp_path / "cut")
    assert cut.returncode == 0
    assert "the model unchanged" in cut.stderr


def test_missing_model_folder_is_no_hub_id(tmp_path: Path) -> None:
    done = call("coverage", tmp_path / "my-modell", "--plan")
    assert done.returncode == 2
    assert "no such model folder" in done.stderr
    assert "Repo id" not in done.stderr


BAD = {
    "missing folder": ("score {b}/none --data {h} -o {o}", "no such checkpoint folder"),
    "not a checkpoint": ("coverage {b}", "is not a checkpoint folder"),
    "no model to look at": ("coverage", "resect coverage --shape llama-8b"),
    "missing data": ("score {b}/m --data {b}/none.jsonl -o {o}", "no such data file"),
    "no column": ("score {b}/m --data {b}/no_column.jsonl -o {o}", "row 1 has no 'completion'"),
    "empty file": ("score {b}/m --data {b}/empty.jsonl -o {o}", "is empty"),
    "too long": ("score {b}/m --data {b}/long.jsonl -o {o}", "'very-long' is longer than"),
    "too long to ask": (
        "eval {b}/m --probe refusal --data {b}/long.jsonl -o {o}", "leaves no room for a reply",
    ),
    "unknown category": ("score {b}/m --data {h} --category z -o {o}", "unknown category"),
    "q of 0": (
        "select {b}/h.safetensors {b}/b.safetensors --q 0 --p 0.1 -o {o}", "q is out of range",
    ),
    "p above 1": (
        "select {b}/h.safetensors {b}/b.safetensors --q 0.01 --p 1.5 -o {o}", "p is out of range",
    ),
    "q beyond keep": (
        "select {b}/h.safetensors {b}/b.safetensors --q 0.5 --p 0.01 -o {o}", "q reaches beyond",
    ),
    "scores of another model": (
        "select {b}/x.safetensors {b}/b.safetensors --q 0.01 --p 0.01 -o {o}", "different models",
    ),
    "scores of another tokenizer": (
        "select {b}/h.safetensors {b}/t.safetensors --q 0.01 --p 0.01 -o {o}",
        "different tokenizers",
    ),
    "mask of another model": ("prune {b}/other {b}/mask.safetensors -o {o}", "has another value"),
    "mask that is scores": ("prune {b}/m {b}/h.safetensors -o {o}", "not the kind of file"),
    "mask of another model, eval": (
        "eval {b}/other --mask {b}/mask.safetensors --probe refusal --data {h} -o {o}",
        "has another value",
    ),
    "unknown probe": ("eval {b}/m --probe luck --data {h} -o {o}", "unknown probe"),
    "unknown attack": (
        "eval {b}/m --probe refusal --attack nice --data {h} -o {o}", "unknown attack",
    ),
    "skip of everything": ("score {b}/m --data {h} --skip 50 -o {o}", "has no token to score"),
    "batch of none": ("score {b}/m --data {h} --batch-size 0 -o {o}", "cannot read the batch size"),
    "unknown dtype": ("score {b}/m --data {h} --dtype float8 -o {o}", "unknown dtype"),
    "greedy samples": (
        "eval {b}/m --probe refusal --data {h} --samples 2 -o {o}", "greedy replies do not differ",
    ),
    "window of two contexts": (
        "eval {b}/m --probe perplexity --data {h} --window 128 -o {o}", "do not fit",
    ),
    "unknown preset": ("data show luck", "no such data file or preset"),
    "collect under a model attack": (
        "data collect {b}/m --data {h} --attack finetune -o {o}.jsonl", "the model as it is",
    ),
    "collect to no lines": (
        "data collect {b}/m --data {h} --attack none -o {o}.csv", "written as JSON lines",
    ),
    "no run": ("report {b}", "has no results.json"),
    "no config": ("study run {b}/none.yaml -o {o}", "cannot read"),
    "unknown study": ("study init luck", "unknown study"),
    "unknown stage": ("organism build {o} --stage old", "unknown stage"),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(BAD))
def test_bad_input(case: str, bench: Path, data: dict[str, Path], tmp_path: Path) -> None:
    words, message = BAD[case]
    out = tmp_path / "out"
    done = call(*words.format(b=bench, h=data["harm"], o=out).split())
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
