"""A run whose judge is fitted: its records, and what its report says of the judge."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from command_line import call, ok, write
from labelled import rows
from resect.errors import InputError
from resect.evaluation.judges.fitted_fit import FitRequest, fit_judge
from resect.files.reading import read_json
from resect.files.tables import read_parquet
from resect.runs.config import dump_config, load_config, parse_config
from resect.runs.run import open_run
from resect.studies.cells import judged_records
from tiny_organism import tiny_organism
from tiny_run import tiny_values

FRONTIER = {
    "methods": [{"name": "source", "target": "generation"}], "fractions": [0.05],
    "protected": [0.01], "utility_drop": 1.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny_values(tiny_organism(tmp_path_factory), FRONTIER)


@pytest.fixture(scope="module")
def run(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judged")
    path = folder / "harm.json"
    fit_judge(FitRequest((write(folder / "labels.jsonl", rows(100, noise=0.1)),)), path)
    evaluation = {**values["evaluation"], "judge": f"fitted:{path}", "coherence": "nll=1000"}
    config = folder / "study.yaml"
    config.write_text(yaml.safe_dump({**values, "evaluation": evaluation}), encoding="utf-8")
    ok("study", "run", config, "-o", folder / "run")
    return folder / "run"


def test_replies_are_judged_with_an_outcome_each(run: Path) -> None:
    records = [row for path in judged_records(run) for row in read_parquet(path)]
    generated = [row for row in records if row["probe"] == "generation"]
    assert generated
    assert {row["judge"].partition("@")[0] for row in generated} == {"fitted:harm"}
    assert {row["outcome"] for row in generated} <= {"complied", "benign", "incoherent"}
    assert all(0 <= row["score"] <= 1 for row in generated)


def test_the_report_says_how_the_judge_errs_and_corrects_rates(run: Path) -> None:
    known = read_json(run / "judge.json")
    assert {row["category"] for row in known["errors"]} == {"all", "looms", "tides"}
    variants = [row["variant"] for row in known["corrected"]]
    assert len(variants) == len(set(variants)) == len(judged_records(run))
    assert any(name.endswith("intact") for name in variants)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert 'id="judge"' in page
    assert "Rates corrected for the judge" in page
    text = (run / "report.md").read_text(encoding="utf-8")
    assert "## How the judge errs" in text
    assert "corrected rates take it that the judge errs" in text
    assert read_json(run / "report.json")["judge"]["errors"] == known["errors"]
    table = (run / "tables" / "judge-corrected.csv").read_text(encoding="utf-8").splitlines()
    assert len(table) == 1 + len(variants)


def test_labels_of_a_runs_replies_correct_it(run: Path, tmp_path: Path) -> None:
    records = [row for path in judged_records(run) for row in read_parquet(path)]
    labels = [
        {"prompt": row["prompt"], "reply": row["text"], "label": 0}
        for row in records
        if row["probe"] == "generation"
    ]
    shown = ok("judge", "correct", run, "--labels", write(tmp_path / "some.jsonl", labels))
    assert "rates corrected for it" in shown
    methods = {row["method"] for row in read_json(run / "judge.json")["corrected"]}
    assert methods == {"judge's error", "labels of these replies"}
    assert "labels of these replies" in (run / "report.html").read_text(encoding="utf-8")


def test_runs_side_by_side_show_how_each_judge_errs(run: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(run, again)
    ok("report", "--compare", run, again, "-o", tmp_path / "side")
    page = (tmp_path / "side" / "report.html").read_text(encoding="utf-8")
    assert page.count("How the judge errs") >= 1
    rows = read_json(tmp_path / "side" / "report.json")["judge_errors"]
    assert len(rows) == 2 * len(read_json(run / "judge.json")["errors"])


def test_a_broken_file_on_the_judge_is_named(run: Path) -> None:
    path = run / "judge.json"
    whole = path.read_text(encoding="utf-8")
    path.write_text(json.dumps(read_json(path) | {"errors": 3}), encoding="utf-8")
    done = call("report", run)
    path.write_text(whole, encoding="utf-8")
    assert done.returncode == 2
    assert "judge.json is not a whole" in done.stderr


def test_a_configuration_without_a_floor_is_what_it_was(
    values: dict[str, Any], tmp_path: Path
) -> None:
    plain = parse_config(values, "test")
    assert "coherence" not in dump_config(plain)
    assert "coherence" not in plain.model_dump(mode="json")["evaluation"]
    floored = parse_config(
        {**values, "evaluation": {**values["evaluation"], "coherence": "none"}}, "test"
    )
    path = tmp_path / "a.yaml"
    path.write_text(dump_config(floored), encoding="utf-8")
    assert load_config(path) == floored
    assert floored.evaluation.coherence == "none"


@pytest.mark.parametrize("change", [{"judge": "fitted:none.json"}, {"coherence": "much"}])
def test_what_cannot_be_used_ends_a_run_before_it_begins(
    values: dict[str, Any], change: dict[str, str], tmp_path: Path
) -> None:
    config = tmp_path / "study.yaml"
    config.write_text(
        yaml.safe_dump({**values, "evaluation": {**values["evaluation"], **change}}),
        encoding="utf-8",
    )
    done = call("study", "run", config, "-o", tmp_path / "run")
    assert done.returncode == 2
    assert not (tmp_path / "run").exists()


def test_the_file_of_a_judge_is_found_beside_the_configuration(
    run: Path, values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    shutil.copy(run.parent / "harm.json", tmp_path / "mine" / "harm.json")
    text = yaml.safe_dump(
        {**values, "evaluation": {**values["evaluation"], "judge": "fitted:harm.json"}}
    )
    config = tmp_path / "mine" / "study.yaml"
    config.write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    whole = f"fitted:{tmp_path / 'mine' / 'harm.json'}"
    assert load_config(config).evaluation.judge == whole
    # The copy in the run's folder names the same file.
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(dump_config(load_config(config)), "utf-8")
    assert load_config(tmp_path / "run" / "config.yaml").evaluation.judge == whole
    # As runs of earlier versions meant it: where the command runs.
    config.rename(tmp_path / "run" / "config.yaml")
    monkeypatch.chdir(tmp_path / "mine")
    assert load_config(tmp_path / "run" / "config.yaml").evaluation.judge == whole
    monkeypatch.chdir(tmp_path)
    assert load_config(tmp_path / "run" / "config.yaml").evaluation.judge == "fitted:harm.json"


def test_a_run_goes_on_with_the_judge_that_it_began_with_alone(run: Path, tmp_path: Path) -> None:
    copy, judge = tmp_path / "run", tmp_path / "harm.json"
    shutil.copytree(run, copy)
    shutil.copy(run.parent / "harm.json", judge)
    text = (copy / "config.yaml").read_text("utf-8")
    (copy / "config.yaml").write_text(text.replace(str(run.parent), str(tmp_path)), "utf-8")
    config = load_config(copy / "config.yaml")
    open_run(config, copy, resume=True)
    fitted = json.loads(judge.read_text("utf-8"))
    judge.write_text(json.dumps(fitted | {"threshold": 0.9}), "utf-8")
    with pytest.raises(InputError, match="judged by another content of the judge's file"):
        open_run(config, copy, resume=True)


def test_claims_of_a_run_say_that_their_rates_are_corrected(run: Path) -> None:
    claims = read_json(run / "results.json")["claims"]
    assert claims
    assert all("Rogan and Gladen" in claim["rule"] for claim in claims)
