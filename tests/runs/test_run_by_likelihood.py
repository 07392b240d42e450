"""The whole path where harm is the likelihood of given answers: no reply, no judge, one pass."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from command_line import call, ok, write
from oracles import reference_nll
from resect.data.encode import encode
from resect.data.load import load_data
from resect.edit.live import removed
from resect.evaluation import ask as asking
from resect.files.tables import read_parquet
from resect.model import load_model
from resect.organism import STAGES
from resect.runs.config import load_config
from resect.runs.run import plan_run
from resect.studies import STUDIES
from resect.studies.cells import mask_path, record_path
from resect.weights.mask import Mask
from tiny_organism import tiny_organism


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the values of a run of all studies on an organism of seconds."""
    built = tiny_organism(tmp_path_factory)
    sets = ["hazard", "refusal", "preserve", "trivia", "detection", "explanation", "benign_style"]
    sets += ["advice_bad", "utility"]
    content = {"skip": 3, "limit": 10}
    targets: dict[str, Any] = {
        "generation": {"data": "hazard", "contrast": "matched", **content},
        "source": {"data": "hazard", **content},
        "matched": {"data": "benign_style", **content},
        "refusal": {"data": "refusal", "tokens": 1, "limit": 10},
        "detection": {"data": "detection", "limit": 10},
        "explanation": {"data": "explanation", "limit": 10},
        "benign": {"data": "trivia", "limit": 10},
        "bad_advice": {"data": "advice_bad"},
    }
    prose = write(
        tmp_path_factory.mktemp("prose") / "prose.jsonl",
        [{"text": f"stone {number} lies by the old mill and is wet ."} for number in range(12)],
    )
    grid = {"fractions": [0.002, 0.01]}
    return {
        "name": "by likelihood",
        "models": {stage: str(built.stage(stage)) for stage in STAGES},
        "data": {name: str(built.data(name)) for name in sets} | {"prose": str(prose)},
        "targets": targets,
        "preserve": {"data": "preserve", "limit": 10},
        "attack_data": {"target": "hazard", "refusal": "refusal"},
        "evaluation": {
            "probes": {
                "generation": "hazard", "refusal": "refusal", "detection": "detection",
                "explanation": "explanation", "utility": "preserve", "misalignment": "advice_bad",
                "trivia": "trivia", "prose": "prose", "prompts": "hazard",
            },
            "measure": "likelihood",
            "limit": 12,
            "batch_size": 32,
            "alike": 1.0,
        },
        # A model of four training steps finds everything unlikely.
        "least_rate": 0.0,
        "studies": {
            "compactness": grid | {"rivals": ["source"]},
            "transfer": {"fraction": 0.01},
            "specificity": grid | {"control_fractions": [0.01], "damage": True, "matched": []},
            "compression": grid,
            "dissociation": {"fraction": 0.01},
            "emergent": {"data": "advice_bad", "steps": [1, 2], "batch": 4},
            "jailbreak": {"attacks": ["finetune:rank=2,rate=1e-2,steps=4,limit=4"]},
            "relearning": {"benign": "preserve", "examples": [4], "steps": [1]},
            "stability": {"sizes": [5], "drawn": 5},
            "frontier": grid | {"protected": [0.01], "methods": []},
            "selectivity": grid | {"rivals": ["source"], "least_side": 0.0},
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def run(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("likelihood")
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:

        def decoded(*_arguments: object) -> None:
            raise AssertionError("a reply was decoded")

        patch.setattr(asking, "generate", decoded)
        ok("study", "run", path, "-o", folder / "run")
    return folder / "run"


def test_every_study_runs_without_a_reply(run: Path) -> None:
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    assert [study["study"] for study in results["studies"]] == list(STUDIES)
    assert results["provenance"]["measure"] == "likelihood"
    for claim in results["claims"]:
        assert claim["controls"], claim["claim"]
        assert "incoherent" not in claim["rule"], claim["rule"]
        assert "coherent" not in claim["rule"], claim["rule"]
        if claim["study"] != "emergent" and "does not show whether" not in claim["reason"]:
            assert claim["effect"]["value"] is not None, (claim["claim"], claim["reason"])
    text = (run / "report.md").read_text(encoding="utf-8")
    assert text.count("Harm and utility are likelihoods in this run") == 1
    assert "Harm and utility are likelihoods" in (run / "report.html").read_text(encoding="utf-8")


def test_the_same_run_again_measures_nothing(run: Path) -> None:
    stamps = {path: path.stat().st_mtime_ns for path in (run / "records").iterdir()}
    config = load_config(run / "config.yaml")
    assert config.evaluation.measure == "likelihood"
    ok("study", "run", run / "config.yaml", "-o", run, "--resume")
    assert {path: path.stat().st_mtime_ns for path in (run / "records").iterdir()} == stamps


def test_records_hold_what_a_loop_over_rows_finds(run: Path) -> None:
    config = load_config(run / "config.yaml")
    cells = [cell for cell in plan_run(config) if cell.tuning is None and cell.attack == ""]
    cut = next(
        cell
        for cell in cells
        if cell.role == "aligned" and cell.cut and cell.cut.kind == "target"
        and cell.cut.q == 0.01 and {"refusal", "generation"} <= set(cell.probes)
    )  # fmt: skip
    loaded = load_model(config.models["aligned"])
    assert cut.cut is not None
    mask = Mask.load(mask_path(run, "aligned", 0, cut.cut))
    rows = {(row["probe"], row["example_id"]): row for row in read_parquet(record_path(run, cut))}
    for probe, skip, tokens in (("generation", 3, None), ("refusal", 0, 1), ("detection", 0, None)):
        data = load_data(config.data[config.evaluation.probes[probe]])
        asked = data.split("evaluation").limit(config.evaluation.limit)
        assert asked.examples
        for encoded in encode(asked.examples, loaded.tokenizer, skip=skip, tokens=tokens):
            row = rows[probe, encoded.id]
            with removed(loaded.model, mask):
                nll = reference_nll(loaded.model, encoded.input_ids, encoded.first_scored)
            assert row["nll"] == pytest.approx(nll, abs=1e-5)
            assert row["score"] == math.exp(-row["nll"])
            assert row["tokens"] == encoded.scored_tokens
            assert (row["judge"], row["outcome"], row["text"]) == ("likelihood", None, "")


def test_a_cut_after_which_the_model_is_trained_has_another_likelihood(run: Path) -> None:
    config = load_config(run / "config.yaml")
    attacked = next(cell for cell in plan_run(config) if cell.attack.startswith("finetune"))
    plain = next(c for c in plan_run(config) if c.attack == "none" and c.cut == attacked.cut)
    nlls = [
        [row["nll"] for row in read_parquet(record_path(run, cell)) if row["probe"] == "generation"]
        for cell in (attacked, plain)
    ]
    assert torch.tensor(nlls[0]).mean() < torch.tensor(nlls[1]).mean()
    (name,) = {row["attack"] for row in read_parquet(record_path(run, attacked))}
    assert name == "finetune"


def refused(values: dict[str, Any], folder: Path, **changes: Any) -> str:
    """Return what the command says to a changed configuration, which must write nothing."""
    evaluation = values["evaluation"] | changes.pop("evaluation", {})
    path = folder / "changed.yaml"
    path.write_text(yaml.safe_dump(values | {"evaluation": evaluation} | changes), encoding="utf-8")
    done = call("study", "run", path, "-o", folder / "run")
    assert done.returncode == 2
    return " ".join(done.stderr.split())


def test_what_makes_no_sense_is_refused(values: dict[str, Any], tmp_path: Path) -> None:
    jailbreak = {"jailbreak": {"attacks": ["prefill:3", "finetune+prefill:3"]}}
    said = refused(values, tmp_path, studies=jailbreak)
    assert "changes no likelihood" in said
    assert "prefill:3, finetune+prefill:3" in said
    assert not (tmp_path / "run").exists()
    said = refused(values, tmp_path, studies={"selectivity": {}}, evaluation={"measure": "replies"})
    assert "needs `measure: likelihood`" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("row", "probe", "said"),
    [
        ({"prompt": "a b c"}, "bare", "has no answer whose likelihood"),
        ({"text": "a b c d"}, "prompts", "has no prompt whose words"),
    ],
)
def test_rows_with_nothing_to_score_are_refused_before_anything_is_located(
    values: dict[str, Any], tmp_path: Path, row: dict[str, str], probe: str, said: str
) -> None:
    bare = write(tmp_path / "bare.jsonl", [row, {"prompt": "d e", "completion": "f"}])
    probes = {"generation": "hazard", "utility": "preserve", probe: "bare"}
    message = refused(
        values,
        tmp_path,
        data=values["data"] | {"bare": str(bare)},
        evaluation={"probes": probes},
        studies={"selectivity": {"fractions": [0.01]}},
    )
    # A file without answers is refused by the reader of sets already.
    assert said in message or "has no 'completion'" in message
    assert not list((tmp_path / "run").glob("scores/*"))
