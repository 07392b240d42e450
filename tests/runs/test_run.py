"""The whole path on a tiny organism: run, resume, shards, report."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import tiny
from command_line import call, write
from resect.errors import InputError
from resect.files.tables import read_parquet
from resect.organism import STAGES
from resect.report import build_report
from resect.runs.config import RunConfig, dump_config, load_config, parse_config
from resect.runs.measure import run_cells
from resect.runs.run import (
    chosen_studies,
    measure_all,
    open_run,
    parse_shard,
    plan_run,
    summarise_run,
)
from resect.runs.workers import Shard
from resect.studies import STUDIES
from resect.studies.cells import is_done, needed_keep, record_path
from resect.studies.emergent import EXPLAINED
from resect.studies.template import template
from tiny_organism import tiny_organism

# Those that read replies; `test_run_by_likelihood.py` runs all of them.
OF_REPLIES = [name for name, study in STUDIES.items() if study.measure is None]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    built = tiny_organism(tmp_path_factory)
    names = {"hazard", "refusal", "preserve", "utility", "trivia", "detection", "explanation"}
    names |= {"benign_style", "advice_bad", "hazard_reworded"}
    targets: dict[str, Any] = {
        "generation": {"data": "hazard", "skip": 3, "limit": 10},
        "refusal": {"data": "refusal", "limit": 10},
        "detection": {"data": "detection", "limit": 10},
        "explanation": {"data": "explanation", "limit": 10},
        "benign": {"data": "trivia", "limit": 10},
        "matched": {"data": "benign_style", "skip": 3, "limit": 10},
        "contrast": {"data": "hazard", "skip": 3, "limit": 10, "contrast": "matched"},
        "reworded": {"data": "hazard_reworded", "skip": 3, "limit": 10},
        "bad_advice": {"data": "advice_bad"},
    }
    best = {"name": "best", "target": "contrast", "rounds": 2}
    grid = {"fractions": [0.002, 0.01]}
    return parse_config(
        {
            "name": "tiny <b>organism</b>",
            "seeds": [0],
            "models": {stage: str(built.stage(stage)) for stage in STAGES},
            "data": {name: str(built.data(name)) for name in names},
            "targets": targets,
            "preserve": {"data": "preserve", "limit": 10},
            "attack": {"name": "prefill", "tokens": 3},
            "attack_data": {"target": "hazard", "refusal": "refusal"},
            "evaluation": {
                "probes": {
                    "generation": "hazard", "refusal": "refusal", "detection": "detection",
                    "explanation": "explanation", "utility": "utility", "likelihood": "preserve",
                    "misalignment": "advice_bad",
                },
                "limit": 10,
                "max_new_tokens": 4,
                "batch_size": 32,
            },
            "studies": {
                "compactness": grid | {"rivals": ["contrast"]},
                "transfer": {"fraction": 0.01},
                "specificity": grid | {"control_fractions": [0.01]},
                "compression": grid | {"second": best, "second_fractions": [0.01]},
                "dissociation": {"fraction": 0.01},
                "emergent": {"data": "advice_bad", "steps": [1, 2], "batch": 4},
                "jailbreak": {
                    "attacks": ["prefill:3", "finetune:rank=2,steps=1,limit=4", "ablate_refusal"]
                },
                "relearning": {"benign": "preserve", "examples": [4], "steps": [1, 2]},
                "stability": {
                    "sizes": [5], "drawn": 5, "paraphrases": ["reworded"], "roles": ["dpo"],
                },
                "frontier": grid | {"protected": [0.01], "methods": [best]},
            },
        },
        "test",
    )  # fmt: skip


def test_whole_path_resumes_and_repeats(config: RunConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    open_run(config, run, resume=False)
    cells = plan_run(config)
    assert len({cell.key for cell in cells}) == len(cells)
    keep = needed_keep(config, cells)
    shards = [Shard(index, 3).of(cells) for index in range(3)]
    assert [cell for shard in shards for cell in shard] == cells
    run_cells(config, run, shards[1], keep=keep)
    stamps = {cell.key: record_path(run, cell).stat().st_mtime_ns for cell in shards[1]}
    measure_all(config, run, jobs=1)
    assert all(is_done(run, cell) for cell in cells)
    assert stamps == {cell.key: record_path(run, cell).stat().st_mtime_ns for cell in shards[1]}
    text = summarise_run(config, run).read_text(encoding="utf-8")
    results = json.loads(text)
    assert [study["study"] for study in results["studies"]] == OF_REPLIES
    assert {claim["study"] for claim in results["claims"]} == set(OF_REPLIES)
    assert all(claim["controls"] and claim["rule"] for claim in results["claims"])
    _check_listed(config, results["claims"])
    # An organism of four training steps does no harm that a cut could lower. One claim needs none:
    # whether narrow training moves some weights more than others.
    verdicts = {claim["claim"]: claim["verdict"] for claim in results["claims"]}
    assert verdicts.pop(EXPLAINED.claim) == "not measurable"  # one seed has no interval
    assert set(verdicts.values()) == {"not measurable"}, verdicts
    again, some = tmp_path / "again", cells[::7]
    open_run(config, again, resume=False)
    run_cells(config, again, some, keep=keep)
    for cell in some:
        assert read_parquet(record_path(again, cell)) == read_parquet(record_path(run, cell))
    assert load_config(run / "config.yaml") == config
    _check_report(run)


def _check_listed(config: RunConfig, claims: list[dict[str, Any]]) -> None:
    """Hold the claims and rules that `resect study list` shows against those of a run."""
    for name in OF_REPLIES:
        listed = STUDIES[name].rules(getattr(config.studies, name))
        rules = {claim["claim"]: claim["rule"] for claim in claims if claim["study"] == name}
        for claim, _ in listed:
            assert any(text.startswith(claim) for text in rules), claim
        for claim, rule in rules.items():
            short = next((rule for text, rule in listed if claim.startswith(text)), None)
            assert short is not None, claim
            assert set(re.findall(r"[\d.]+ %", short)) <= set(re.findall(r"[\d.]+ %", rule)), claim


def _check_report(run: Path) -> None:
    text = build_report(run).read_text(encoding="utf-8")
    assert len(text) < 500_000
    assert text == build_report(run).read_text(encoding="utf-8")
    assert "<b>organism</b>" not in text
    assert "&lt;b&gt;organism" in text
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text
    # One script, ours, which the policy names by its hash.
    assert text.count("<script>") == text.count("<script") == 1
    for word in (" src=", "@import", "url(", "unsafe-inline"):
        assert word not in text
    assert len(list((run / "figures").glob("*.svg"))) >= 6
    # The attack `finetune` says how far it reached, and where its numbers stand it is shown.
    facts = [json.loads(path.read_text(encoding="utf-8")) for path in run.glob("attacks/*.json")]
    assert {fact["cell_attack"].partition(":")[0] for fact in facts} == {
        "finetune", "ablate_refusal",
    }  # fmt: skip
    assert "adapters on 100 % of the prunable weights" in text
    hidden = json.loads((run / "results.json").read_text(encoding="utf-8"))
    assert "→" not in text
    assert "→" in build_report(run, show_replies=True).read_text(encoding="utf-8")
    hidden["claims"][0]["claim"] = "<script>alert(1)</script>\x1b[31m\u202e"
    (run / "results.json").write_text(json.dumps(hidden), encoding="utf-8")
    text = build_report(run).read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_a_run_folder_keeps_its_configuration(config: RunConfig, tmp_path: Path) -> None:
    open_run(config, tmp_path / "run", resume=False)
    with pytest.raises(InputError, match="--resume"):
        open_run(config, tmp_path / "run", resume=False)
    renamed = config.model_copy(update={"name": "other"})
    with pytest.raises(InputError, match="another configuration"):
        open_run(renamed, tmp_path / "run", resume=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="holds no run"):
        open_run(config, tmp_path / "full", resume=True)


EXTRA: dict[str, dict[str, set[str]]] = {
    "transfer": {"targets": {"benign"}},
    "specificity": {"targets": {"benign", "matched"}},
    "compression": {"models": {"base", "benign_tuned"}},
    "dissociation": {"targets": {"refusal", "detection", "explanation"}},
    "emergent": {"models": {"misaligned"}, "data": {"advice"}, "targets": {"bad_advice"}},
    "jailbreak": {"attack_data": {"target", "refusal", "preserve"}},
    "stability": {"targets": {"reworded"}},
    "frontier": {"targets": {"contrasted"}},
    "selectivity": {"targets": {"contrast"}, "data": {"trivia", "same_style", "prose"}},
}


@pytest.mark.parametrize("name", sorted(STUDIES))
def test_templates_parse(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(template(STUDIES[name]), encoding="utf-8")
    config = load_config(path)
    assert chosen_studies(config) == [name]
    # What the study needs beside the minimum is in its sections, with a word on each.
    if name != "transfer":
        assert STUDIES[name].plan(config, config.section(STUDIES[name]))
    for section, words in EXTRA.get(name, {}).items():
        assert words <= set(getattr(config, section)), section


def test_all_problems_of_a_config_are_listed_at_once() -> None:
    with pytest.raises(InputError) as caught:
        parse_config({"name": 3, "models": {}, "seed": 1, "studies": {"luck": {}}}, "my.yaml")
    for field in ("name:", "seed:", "data:", "targets:", "studies.luck:"):
        assert field in str(caught.value)


def test_shards_are_read() -> None:
    assert parse_shard("2/3") == Shard(1, 3)
    for text in ("0/3", "4/3", "x", "1/", "1/0", "²/3"):
        with pytest.raises(InputError, match="cannot read the shard"):
            parse_shard(text)


@pytest.mark.parametrize("text", ["0/16", "17/16", "/16"])
def test_a_shard_out_of_range_says_how_an_array_writes_it(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_shard(text)
    message = str(caught.value)
    assert "from 0: --shard $((SLURM_ARRAY_TASK_ID + 1))/16" in message
    assert "from 1: --shard $SLURM_ARRAY_TASK_ID/16" in message
    assert ("outside of an array" in message) == (text == "/16")


def test_a_run_that_lacks_cells_names_the_command_that_goes_on(tmp_path: Path) -> None:
    model = tiny.save("llama", tmp_path / "model")
    rows = tiny.rows(6, "c", split="calibration") + tiny.rows(6, "ee", split="evaluation")
    sets = ("hazard", "preserve", "utility")
    data = {name: str(write(tmp_path / f"{name}.jsonl", rows)) for name in sets}
    values = {
        "name": "halves",
        "models": {"aligned": str(model)},
        "data": data,
        "targets": {"generation": {"data": "hazard"}},
        "preserve": {"data": "preserve"},
        "attack": {"name": "prefill", "tokens": 1},
        "evaluation": {
            "probes": {"generation": "hazard", "utility": "utility", "likelihood": "preserve"},
            "judge": "keyword",
            "max_new_tokens": 2,
        },
        "studies": {"frontier": {"fractions": [0.01], "protected": [0.01], "scopes": ["tensor"]}},
    }
    file, run = tmp_path / "my.yaml", tmp_path / "run"
    file.write_text(dump_config(parse_config(values, "test")), encoding="utf-8")
    total = len(plan_run(load_config(file)))
    command = f"resect study run {run / 'config.yaml'} -o {run} --resume"
    second = call("study", "run", file, "-o", run, "--shard", "2/2")
    assert second.returncode == 0, second.stderr
    here, missing = total - total // 2, total // 2
    assert f"shard 2/2: its {here} cells are done, of {total} in the run" in flat(second.stdout)
    assert f"{missing} cells are not done" in flat(second.stderr)
    assert command in flat(second.stderr)
    shown = call("study", "status", run)
    assert f"{missing} of {total} cells are not done" in flat(shown.stderr)
    assert command in flat(shown.stderr)
    first = call("study", "run", file, "-o", run, "--shard", "1/2")
    assert "all cells are done" in flat(first.stderr)
    assert command in flat(first.stderr)


def flat(text: str) -> str:
    return " ".join(text.split())
