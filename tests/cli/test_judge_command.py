"""`resect judge`: fit, check and correct on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_line import call, ok, write
from labelled import rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judge")
    write(folder / "labels.jsonl", rows())
    ok("judge", "fit", folder / "labels.jsonl", "-o", folder / "harm.json")
    return folder


def test_fit_says_what_it_fitted_and_how_it_errs(folder: Path, tmp_path: Path) -> None:
    shown = ok("judge", "fit", folder / "labels.jsonl", "-o", tmp_path / "again.json")
    assert "cross-validated by prompt" in shown
    assert "again.json: reads n-grams, fitted on 120 replies, a hit from" in shown
    assert "looms" in shown
    refused = call("judge", "fit", folder / "labels.jsonl", "-o", tmp_path / "again.json")
    assert refused.returncode == 2
    assert "there already" in refused.stderr
    few = call("judge", "fit", write(tmp_path / "few.jsonl", rows(3)), "-o", tmp_path / "few.json")
    assert (few.returncode, (tmp_path / "few.json").exists()) == (2, False)


def test_check_measures_any_judge(folder: Path, tmp_path: Path) -> None:
    new = write(
        tmp_path / "new.jsonl", [row | {"prompt": f"new{row['prompt']}"} for row in rows(20)]
    )
    lines = [
        json.loads(line)
        for line in ok(
            "--json", "judge", "check", f"fitted:{folder / 'harm.json'}", new
        ).splitlines()
    ]
    (row, *_) = lines[0]["rows"]
    assert row["category"] == "all"
    assert row["sensitivity"] > 0.9
    assert row["auroc_low"] < row["auroc"]
    blind = call("judge", "check", "keyword", new)
    assert blind.returncode == 0
    assert "no better than chance" in blind.stderr
    assert "100.0 %" in blind.stdout
    turned = ok("judge", "check", "keyword", new, "--means", "refuse")
    assert "0.0 %" in turned
    seen = call("judge", "check", f"fitted:{folder / 'harm.json'}", folder / "labels.jsonl")
    assert seen.returncode == 2
    assert "fitted on the prompts of all" in seen.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("check", "oracle", "labels.jsonl"),
        ("check", "keyword", "none.jsonl"),
        ("check", "fitted:none.json", "labels.jsonl"),
        ("check", "fitted", "labels.jsonl"),
        ("correct", "none"),
        ("correct", "."),
    ],
)
def test_bad_input_is_one_message(
    words: tuple[str, ...], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    done = call("judge", *words)
    assert done.returncode == 2, done.stderr
    assert "error:" in done.stderr
    assert "Traceback" not in done.stderr
