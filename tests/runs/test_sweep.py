"""The frontier of any model: the configuration, and the command on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tiny
from command_line import call, ok, write
from resect.errors import InputError
from resect.runs.config import load_config
from resect.runs.run import chosen_studies, plan_run
from resect.runs.sweep import SweepRequest, chosen_rows, sweep_config


def test_options_become_a_configuration(tmp_path: Path) -> None:
    plain = sweep_config(SweepRequest("m", "harm.jsonl", "benign.jsonl"))
    assert chosen_studies(plain) == ["frontier"]
    assert plain.evaluation.probes == {"generation": "target", "likelihood": "preserve"}
    assert plain.studies.frontier is not None
    assert plain.studies.frontier.methods == ()
    assert plain.selection.p == plain.studies.frontier.protected[0]
    grid = tmp_path / "grid.yaml"
    grid.write_text("fractions: [1e-3, 1e-2]\nprotected: [0.01]\nscopes: [model]\n", "utf-8")
    request = SweepRequest(
        "m", "harm.jsonl", "benign.jsonl", contrast="style.jsonl", rounds=3, grid=grid,
        utility="triviaqa", evaluation="harmbench", phrase="Sure", budget=0.1, seeds=(0, 1),
    )  # fmt: skip
    full = sweep_config(request)
    assert full.evaluation.probes == {"generation": "evaluation", "utility": "utility"}
    assert full.targets["generation"].contrast == "contrast"
    assert full.targets["plain"].contrast is None
    frontier = full.studies.frontier
    assert frontier is not None
    assert (frontier.fractions, frontier.scopes) == ((1e-3, 1e-2), ("model",))
    assert (frontier.utility_drop, full.attack.phrase) == (0.1, "Sure")
    assert [(method.target, method.rounds) for method in frontier.methods] == [
        ("plain", 1),
        ("generation", 3),
    ]
    cuts = {cell.cut for cell in plan_run(full) if cell.cut and cell.cut.kind == "target"}
    assert len(cuts) == 6
    for text in ("fractions: 3\n", "q: [1]\n", "[]\n", "3\n", "{}\n", "fractions: []\n"):
        grid.write_text(text, "utf-8")
        with pytest.raises(InputError, match="grid"):
            sweep_config(request)
    grid.write_text("fractions: [2.0]\n", "utf-8")
    with pytest.raises(InputError, match="less than or equal to 1"):
        sweep_config(request)


def test_sweep_from_the_command_line(tmp_path: Path) -> None:
    model = tiny.save("llama", tmp_path / "model")
    rows = tiny.rows(8, "c", split="calibration") + tiny.rows(8, "ee", split="evaluation")
    harm = write(tmp_path / "harm.jsonl", rows)
    benign = write(
        tmp_path / "benign.jsonl",
        tiny.rows(7, "bbb", split="calibration") + tiny.rows(5, "dddd", split="evaluation"),
    )
    grid = tmp_path / "grid.yaml"
    grid.write_text("fractions: [0.01, 0.1]\nprotected: [0.01]\nscopes: [tensor]\n", "utf-8")
    words = ["sweep", model, "--target", harm, "--preserve", benign, "--grid", grid]
    words += ["--prefill-tokens", 2, "--max-new-tokens", 2, "--budget", 1, "-o", tmp_path / "run"]
    planned = ok(*words, "--dry-run")
    assert "5 cells" in planned
    assert "scored sets" in planned
    assert not (tmp_path / "run").exists()
    shown = ok(*words)
    assert str(tmp_path / "run" / "report.html") in shown
    assert (tmp_path / "run" / "report.html").is_file()
    results = tmp_path / "run" / "results.json"
    rows = chosen_rows(results)
    # A random model may have no cut that lowers anything; what is printed must say which it is.
    assert ("chosen cut" in shown) == bool(rows)
    assert ("no cut of the grid" in shown) == (not rows)
    studies = json.loads(results.read_text("utf-8"))["studies"]
    assert [study["study"] for study in studies] == ["frontier"]
    assert len(studies[0]["tables"]["grid"]) == 4
    assert chosen_studies(load_config(tmp_path / "run" / "config.yaml")) == ["frontier"]
    again = call(*words)
    assert again.returncode == 2
    assert "--resume" in again.stderr
    assert call(*words, "--resume").returncode == 0
