"""What version 0.1.0 wrote still loads, means the same, and can be gone on with."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import resect
from command_line import ok
from resect.files import read_parquet, write_parquet
from resect.model import prunable_tensors

FIXTURES = Path(__file__).parent / "fixtures" / "version-0.1.0"
# The record that `stopped/` holds without verdicts, and one to do without.
UNJUDGED = "b0aae96797d515a8.parquet"
MISSING = "08eed6c3fd63ecc4.parquet"
PASSED = {"probe", "example_id", "text", "judge", "rule", "score", "outcome"}


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the files to work in, with that folder as the current one."""
    shutil.copytree(FIXTURES, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old"


# What the pages of 0.1.0 named, beside the command line and the entry points.
DOCUMENTED = (
    *(f"resect.{name}" for name in resect.__all__),
    "resect.attribution.AttributeSettings",
    "resect.audit.Thresholds",
    "resect.data.load.BehaviourSet",
    "resect.data.load.load_data",
    "resect.edit.removed",
    "resect.integrations.vllm_worker.ResectWorkerExtension",
    "resect.integrations.vllm_worker.switch",
    "resect.model.load.load_model",
    "resect.model.prunable_tensors",
    "resect.records.Example",
    "resect.studies.STUDIES",
)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


# Bounds are by another method since (docs/design/intervals.md), and with them what is said of them.
BOUNDS = ("low", "high", "verdict", "reason", "rule", "by_seed")


def _says(after: Any, before: Any) -> bool:
    """Return whether JSON still has all estimates that it had; they may differ as machines do."""
    if isinstance(before, dict):
        return all(
            key in after and _says(after[key], item)
            for key, item in before.items()
            if not key.endswith(BOUNDS)
        )
    if isinstance(before, (list, tuple)):
        return len(after) == len(before) and all(map(_says, after, before))
    if isinstance(before, float):
        return bool(after == pytest.approx(before, rel=1e-3, abs=1e-6))
    return bool(after == before)


def _tables(studies: Any) -> Any:
    """Return the tables of studies, without the outcome that 0.1.0 did not tell apart.

    No reply has it here. Rules are others since (a choice on half of the prompts, one guard), so
    that claims have other numbers; what was measured has not changed.
    """
    for study in studies:
        for name, rows in study["tables"].items():
            partly = [row for row in rows if row.get("outcome") == "partial"]
            assert not any(row["share"] for row in partly)
            study["tables"][name] = [row for row in rows if row not in partly]
    return [(study["study"], len(study["claims"]), study["tables"]) for study in studies]


def _verdicts(path: Path) -> list[dict[str, Any]]:
    return [{key: row[key] for key in PASSED} for row in read_parquet(path)]


@pytest.mark.parametrize("path", DOCUMENTED)
def test_documented_paths_stay(path: str) -> None:
    module, _, name = path.rpartition(".")
    assert hasattr(importlib.import_module(module), name)


def test_scores_load_and_are_selected_from(old: Path) -> None:
    harm = resect.Scores.load(old / "harm.scores.safetensors")
    benign = resect.Scores.load(old / "benign.scores.safetensors")
    assert (harm.meta.reduction, harm.meta.examples, harm.total) == ("signed", 8, 3840)
    assert benign.meta.reduction == "mean_of_abs"
    mask = resect.select(harm, benign, q=0.05, p=0.05)
    assert mask.hash == resect.load_mask(old / "harm.mask.safetensors").hash
    harm.save(old / "again.scores.safetensors")
    again = resect.Scores.load(old / "again.scores.safetensors")
    assert all(
        torch.equal(again.tensors[name].value, tensor.value)
        and torch.equal(again.tensors[name].index, tensor.index)
        for name, tensor in harm.tensors.items()
    )


def test_a_mask_is_applied_and_leaves_every_bit_behind(old: Path) -> None:
    mask = resect.load_mask(old / "harm.mask.safetensors")
    model, _ = resect.load_model(old / "model", device="cpu")
    before = {name: tensor.clone() for name, tensor in prunable_tensors(model).items()}
    cut, _ = resect.load_model(old / "cut", device="cpu")
    with resect.removed(model, mask):
        during = prunable_tensors(model)
        changed = sum(int((during[name] != before[name]).sum()) for name in before)
        assert changed == mask.count == 140
        # The checkpoint that 0.1.0 cut is what the mask makes today.
        assert all(torch.equal(during[name], t) for name, t in prunable_tensors(cut).items())
    assert all(torch.equal(t, before[name]) for name, t in prunable_tensors(model).items())


def test_a_cut_checkpoint_is_restored(old: Path) -> None:
    ok("restore", "cut", "harm.mask.safetensors", "-o", "mended")
    mended, original = (old / f / "model.safetensors" for f in ("mended", "model"))
    assert mended.read_bytes() == original.read_bytes()
    assert not (old / "mended/resect.json").exists()


def test_an_evaluation_is_judged_again(old: Path) -> None:
    ok("eval", "--rejudge", "eval", "--judge", "exact", "-o", "again")
    for name in ("intact", "cut"):
        path = Path("records") / f"{name}.parquet"
        assert _verdicts(old / "again" / path) == _verdicts(old / "eval" / path)
    first, second = (_read(old / folder / "results.json") for folder in ("eval", "again"))
    assert _says(second["rates"], first["rates"])


def test_the_report_of_a_run_is_built_again(old: Path) -> None:
    ok("report", "run")
    report = _read(old / "run/report.json")
    results = _read(old / "run/results.json")
    assert [study["study"] for study in report["studies"]] == ["compactness", "relearning"]
    page = (old / "run/report.html").read_text(encoding="utf-8")
    for claim in results["claims"]:
        assert claim["claim"] in page


def test_a_finished_run_is_weighed_again(old: Path) -> None:
    """RESUMES: no cell is measured, and the records of 0.1.0 give the claims of 0.1.0."""
    stored = {path.name: path.read_bytes() for path in (old / "run/records").iterdir()}
    results = _read(old / "run/results.json")
    (old / "run/results.json").unlink()
    shutil.rmtree(old / "model")
    ok("study", "run", "run/config.yaml", "-o", "run", "--resume")
    assert {path.name: path.read_bytes() for path in (old / "run/records").iterdir()} == stored
    again = _read(old / "run/results.json")
    assert _says(_tables(again["studies"]), _tables(results["studies"]))


def test_what_was_judged_all_or_nothing_is_graded_in_a_run_that_goes_on(old: Path) -> None:
    """RESUMES: no two kinds of scores in one run; what is not graded keeps its verdict."""
    for name in ("run/results.json", f"run/records/{MISSING}"):
        (old / name).unlink()
    path = old / "run/records" / UNJUDGED
    rows = read_parquet(path)
    exact = [number for number, row in enumerate(rows) if row["judge"] == "exact"]
    graded, ungraded = rows[exact[0]], rows[exact[1]]
    graded |= {"text": "a b x .", "raw": "a b x .", "prefix": "", "probe": "generation"}
    graded |= {"score": 0.0, "rule": "exact/form", "outcome": "wrong"}
    graded["key"] = {"accept": ["a b c d ."], "benign": ["w x y z ."], "form": ".*"}
    ungraded |= {"score": 0.25, "key": {"accept": ["a b c d ."]}}
    write_parquet(path, rows)
    ok("study", "run", "run/config.yaml", "-o", "run", "--resume")
    graded |= {"score": 0.5, "rule": "exact/partial", "outcome": "partial"}
    assert read_parquet(path) == rows


def test_a_stopped_run_goes_on(old: Path) -> None:
    """RESUMES: what was not judged is judged, what is missing is measured, the rest stays."""
    run = old / "run"
    results, verdicts = _read(run / "results.json"), _verdicts(run / "records" / UNJUDGED)
    shutil.copytree(old / "stopped", run, dirs_exist_ok=True)
    assert {row["judge"] for row in read_parquet(run / "records" / UNJUDGED)} == {None}
    for name in ("results.json", "manifest.json", f"records/{MISSING}"):
        (run / name).unlink()
    stored = {path.name: path.read_bytes() for path in (run / "records").iterdir()}
    ok("study", "run", "run/config.yaml", "-o", "run", "--resume")
    after = {path.name: path.read_bytes() for path in (run / "records").iterdir()}
    assert set(after) == {*stored, MISSING}
    assert {name for name in stored if after[name] != stored[name]} == {UNJUDGED}
    assert _verdicts(run / "records" / UNJUDGED) == verdicts
    again = _read(run / "results.json")
    assert _says(_tables(again["studies"]), _tables(results["studies"]))
