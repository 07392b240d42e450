"""Commands say what a data file was read as, take names of columns, and show what is scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tiny
from command_line import call, ok, write
from resect.cli.eval import _spec_of, _with_columns
from resect.weights.scores import Scores

ANSWERS = [(f"w{n} w2", "w5 w6 w7 w8") for n in range(4)]
OURS = [{"prompt": asked, "completion": answer} for asked, answer in ANSWERS]
SHARED = [
    {"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]}
    for asked, answer in ANSWERS
]
NESTED = [{"question": asked, "answer": {"text": answer}} for asked, answer in ANSWERS]
NAMES = "prompt=question,completion=answer.text"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save("llama", tmp_path_factory.mktemp("models") / "m")


def score(model: Path, output: Path, *words: Any) -> Scores:
    done = call("score", model, *words, "--keep", "0.1", "-o", output)
    assert done.returncode == 0, done.stderr
    return Scores.load(output)


def test_a_set_of_any_layout_scores_as_in_our_own(model: Path, tmp_path: Path) -> None:
    ours = score(model, tmp_path / "a.scores.safetensors",
                 "--data", write(tmp_path / "ours.jsonl", OURS))  # fmt: skip
    shared = score(model, tmp_path / "b.scores.safetensors",
                   "--data", write(tmp_path / "shared.jsonl", SHARED))  # fmt: skip
    named = score(model, tmp_path / "c.scores.safetensors", "--columns", NAMES,
                  "--data", write(tmp_path / "nested.jsonl", NESTED))  # fmt: skip
    assert ours.meta.data_hash == shared.meta.data_hash == named.meta.data_hash


def test_one_line_on_stderr_says_what_was_found(tmp_path: Path) -> None:
    path = write(tmp_path / "shared.jsonl", SHARED)
    done = call("data", "check", path, "--against", path, "--examples", "0")
    assert done.stderr.count("ShareGPT: prompt = all of conversations") == 1
    assert "ShareGPT" not in done.stdout
    assert "ShareGPT" not in call("-q", "data", "check", path).stderr
    (line, *_) = call("--json", "data", "check", path).stderr.splitlines()
    assert json.loads(line)["type"] == "note"
    assert "ShareGPT" in json.loads(line)["text"]


def test_check_shows_what_is_scored(model: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "nested.jsonl", NESTED)
    shown = ok("data", "check", path, "--columns", NAMES)
    assert shown.count("↵⟦w5 w6 w7 w8⟧") == 3
    shown = ok("data", "check", path, "--columns", NAMES, "--model", model, "--skip", "1")
    (line, *_) = [line for line in shown.splitlines() if "⟦" in line]
    assert line.replace(" ", "").endswith("w5⟦w6w7w8⟧")
    assert "<assistant>" in line
    assert "⟦" not in ok("data", "check", path, "--columns", NAMES, "--examples", "0")
    lines = ok("--json", "data", "check", path, "--columns", NAMES).splitlines()
    tables = {event["title"]: event["rows"] for event in map(json.loads, lines) if "rows" in event}
    assert tables["examples"][0]["scored"] == "w5 w6 w7 w8"


def test_names_that_nothing_takes_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "nested.jsonl", NESTED)
    for words in (
        ("data", "check", f"{path}#{NAMES}", "--columns", NAMES),
        ("data", "show", "advbench", "--columns", NAMES),
    ):
        done = call(*words)
        assert done.returncode == 2
        assert "--columns has nothing to name" in done.stderr
    done = call("data", "check", path, "--columns", "reply=question")
    assert done.returncode == 2
    assert "cannot read what the columns mean" in done.stderr


def test_names_reach_the_sets_of_probes_and_roles(tmp_path: Path) -> None:
    assert _spec_of("utility=a.jsonl") == "a.jsonl"
    assert _spec_of("a.jsonl#prompt=question") == "a.jsonl#prompt=question"
    entries = ["utility=a.jsonl", "a.jsonl", "utility=triviaqa"]
    expected = (f"utility=a.jsonl#{NAMES}", f"a.jsonl#{NAMES}", "utility=triviaqa")
    assert _with_columns(entries, NAMES) == expected
    assert _with_columns(None, NAMES) == ()


def test_prompts_a_line_are_asked(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("w1 w2\nw3 w4\n", encoding="utf-8")
    done = call("eval", model, "--probe", "generation", "--data", path, "--judge", "keyword",
                "--max-new-tokens", "2", "-o", tmp_path / "out")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 prompts, one a line" in done.stderr
