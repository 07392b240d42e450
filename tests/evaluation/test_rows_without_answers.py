"""Rows that are prompts alone, or prompts with keys, are asked where nobody looks at an answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tiny
from command_line import call, ok, write

PROMPTS = [{"prompt": f"w{number} w2 w{number + 3}"} for number in range(4)]
KEYED = [row | {"key": "w5"} for row in PROMPTS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, prompts, and prompts with answer keys."""
    place = tmp_path_factory.mktemp("bare")
    tiny.save("llama", place / "model")
    write(place / "prompts.jsonl", PROMPTS)
    write(place / "keyed.jsonl", KEYED)
    return place


def asked(folder: Path, output: Path, *words: Any) -> list[Any]:
    short = ["--max-new-tokens", "3", "-o", output]
    ok("eval", folder / "model", *words, *short)
    return list(json.loads((output / "results.json").read_text(encoding="utf-8"))["rates"])


@pytest.mark.parametrize(
    "words",
    [
        ["--probe", "generation", "--judge", "keyword", "--data", "prompts.jsonl"],
        ["--probe", "generation", "--judge", "keyword", "--attack", "prefill=w1",
         "--data", "prompts.jsonl"],
        ["--probe", "refusal", "--judge", "keyword", "--data", "prompts.jsonl"],
        ["--probe", "utility", "--data", "keyed.jsonl"],
        ["--probe", "generation", "--data", "keyed.jsonl"],
    ],
)  # fmt: skip
def test_prompts_are_asked(
    words: list[str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (row,) = asked(folder, tmp_path / "out", *words)
    assert row["scored"] + row["unscored"] == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--probe", "generation", "--data", "prompts.jsonl"], "neither 'completion' nor 'key'"),
        (["--probe", "utility", "--judge", "keyword", "--data", "prompts.jsonl"],
         "neither 'completion' nor 'key'"),
        (["--probe", "likelihood", "--data", "keyed.jsonl"], "has no 'completion'"),
        (["--probe", "generation", "--attack", "prefill:2", "--data", "keyed.jsonl"],
         "has no 'completion'"),
    ],
)  # fmt: skip
def test_what_needs_an_answer_says_so_and_how_to_get_one(
    words: list[str],
    said: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    done = call("eval", folder / "model", *words, "-o", tmp_path / "out")
    assert done.returncode == 2
    text = " ".join(done.stderr.split())
    assert said in text
    assert "resect data collect" in text
    assert not (tmp_path / "out").exists()


def test_rows_without_answers_can_be_judged_again_and_nothing_is_made_up(
    folder: Path, tmp_path: Path
) -> None:
    words = ["--probe", "generation", "--judge", "keyword", "--data", folder / "prompts.jsonl"]
    asked(folder, tmp_path / "out", *words)
    ok("eval", "--rejudge", tmp_path / "out", "--judge", "exact", "-o", tmp_path / "again")
    results = json.loads((tmp_path / "again" / "results.json").read_text(encoding="utf-8"))
    assert [(row["scored"], row["unscored"]) for row in results["rates"]] == [(0, 4)]
