"""Two models of the same bits are untouched, however few prompts there are to measure on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tiny
from command_line import call, write
from resect.audit import AuditRequest
from resect.audit.audit import compare
from resect.audit.effects import Models


def options(folder: Path) -> list[object]:
    paths = {}
    for name in ("insults", "talk"):
        rows = tiny.rows(4, name, split="calibration") + tiny.rows(
            4, name + "e", split="evaluation"
        )
        paths[name] = write(folder / f"{name}.jsonl", rows)
    return ["--target", paths["insults"], "--preserve", paths["talk"], "--q", "0.05", "--p", "0.05",
            "--matched", "2", "--max-new-tokens", "2"]  # fmt: skip


def test_a_copy_is_untouched_and_passes_a_gate(tmp_path: Path) -> None:
    # In another layout on disk it is the same model.
    model = tiny.build("mixtral")
    for name, original in (("base", True), ("copy", False)):
        model.save_pretrained(tmp_path / name, save_original_format=original)
        tiny.tokenizer().save_pretrained(tmp_path / name)
    words = ["audit", tmp_path / "base", tmp_path / "copy", *options(tmp_path)]
    done = call(*words, "--fail-on", "touched", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "verdict: untouched" in done.stdout
    verdict = json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))["verdict"]
    assert verdict["reasons"] == ["every weight of the two models is the same, bit for bit"]


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.0.mlp.up_proj.weight"])
def test_one_value_that_differs_is_no_copy(name: str) -> None:
    model, tuned = tiny.build("llama"), tiny.build("llama")
    tuned.get_parameter(name).data.view(-1)[3] += 1e-3
    request = AuditRequest("", "", controls=2)
    models = Models(model, tuned, tiny.tokenizer())
    verdict = compare(request, models, tiny.cut(model, 0.05), {}).verdict
    assert "bit for bit" not in " ".join(verdict.reasons)
