"""The terminal for machines: quiet, one JSON object a line, errors as events, no questions."""

from __future__ import annotations

import builtins
import json
import os
from pathlib import Path
from typing import Any

import pytest

import tiny
from command_line import call, ok, write
from resect.cli import RESUMING, _stopped, show
from resect.cli.show import last_variant
from resect.files.tables import write_parquet


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("terminal")
    tiny.save("llama", folder / "m")
    write(folder / "harm.jsonl", tiny.rows(6, "c"))
    return folder


def events(text: str) -> list[dict[str, Any]]:
    """Read text in which every line is one JSON object."""
    shown = [json.loads(line) for line in text.splitlines()]
    assert all(isinstance(event, dict) and "type" in event for event in shown)
    return shown


def test_json_has_one_object_a_line_and_numbers_as_they_are(bench: Path) -> None:
    score = ["score", bench / "m", "--data", bench / "harm.jsonl", "--keep", 0.5]
    done = call("--json", *score, "-o", bench / "h.scores.safetensors")
    assert done.returncode == 0, done.stderr
    (line,) = events(done.stdout)
    assert line["type"] == "line"
    moves = [event for event in events(done.stderr) if event["type"] == "progress"]
    assert moves[-1]["label"] == "scoring"
    assert moves[-1]["done"] == moves[-1]["total"] == 6
    files = [bench / "h.scores.safetensors"] * 2
    call("select", *files[:1], *files[1:], "--q", 0.3, "--p", 0, "-o", bench / "h.mask.safetensors")
    shown = events(call("--json", "mask", "show", bench / "h.mask.safetensors").stdout)
    assert [event["type"] for event in shown] == ["table", "table"]
    plain = call("mask", "show", bench / "h.mask.safetensors").stdout
    row = shown[0]["rows"][0]
    assert isinstance(row["removed"], int)
    # A person reads four digits; a machine gets all of them.
    assert f"{row['percent']:.4g}" in plain
    # And the next command is for people again.
    assert "{" not in plain.splitlines()[0]


def test_what_json_cannot_hold_is_null(capsys: pytest.CaptureFixture[str]) -> None:
    show.set_mode(show.Mode(machine=True))
    show.table("t", [{"a": float("nan"), "b": [float("inf"), 1.0], "c": Path("p"), "d": "\x1b[2J"}])
    show.set_mode(show.Mode())
    written = capsys.readouterr().out
    assert "\x1b" not in written
    assert events(written)[0]["rows"] == [{"a": None, "b": [None, 1.0], "c": "p", "d": "\x1b[2J"}]


def test_quiet_leaves_results_alone(bench: Path) -> None:
    words = ["prune", bench / "m"]
    call("score", bench / "m", "--data", bench / "harm.jsonl", "-o", bench / "q.scores.safetensors")
    scores = bench / "q.scores.safetensors"
    call("select", scores, scores, "--q", 0.01, "--p", 0, "-o", bench / "q.mask.safetensors")
    loud = call(*words, bench / "q.mask.safetensors", "-o", bench / "loud")
    quiet = call("-q", *words, bench / "q.mask.safetensors", "-o", bench / "quiet")
    assert "resect restore" in loud.stderr
    assert quiet.stderr == ""
    assert quiet.stdout.replace("quiet", "loud") == loud.stdout


@pytest.mark.parametrize("before", [[], ["--json"]])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nope"], "No such command"),
        (["score", "--nope"], "No such option"),
        (["score"], "Missing argument"),
        (["select", "a", "b", "--q", "much", "--p", "0", "-o", "c"], "value for '--q'"),
        (["report", "nowhere"], "has no results.json"),
    ],
)
def test_wrong_use_ends_with_2_and_no_traceback(
    before: list[str], words: list[str], message: str
) -> None:
    done = call(*before, *words)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert message in done.stderr
    if before:
        (event,) = events(done.stderr)
        assert (event["type"], event["exit"]) == ("error", 2)


def test_nothing_asks_a_question(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # transformers asks whether to run a tokenizer's own code, unless it was told.
    folder = tiny.save("llama", bench / "custom")
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    file.write_text(json.dumps(config), encoding="utf-8")

    def asked(*_: Any) -> str:
        raise RuntimeError("a question")

    monkeypatch.setattr(builtins, "input", asked)
    done = call("data", "check", bench / "harm.jsonl", "--model", folder)
    assert "a question" not in done.stderr
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_events_come_at_most_once_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    show.set_mode(show.Mode(machine=True))
    with show.progress("work", so_far=lambda: {"harm": 0.5}) as update:
        for done in range(101):
            update(done, 100)
    show.set_mode(show.Mode())
    shown = events(capsys.readouterr().err)
    assert [event["done"] for event in shown] == [0, 100]
    assert shown[-1]["harm"] == 0.5


@pytest.mark.parametrize("pace", [1.0, 45.0])
def test_without_a_terminal_progress_is_a_line_now_and_then(
    pace: float, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("resect.cli.show.time.perf_counter", lambda: clock[0])
    show.set_mode(show.Mode())
    with show.progress("measuring", so_far=lambda: {"harm": 0.5}) as update:
        for done in range(11):
            update(done, 10)
            clock[0] += pace
    lines = capsys.readouterr().err.splitlines()
    if pace == 1.0:  # ten seconds of work need no log
        assert lines == []
    else:
        assert len(lines) == 10
        assert lines[0] == "measuring: 1 of 10 in 45 s, about 7 min left (harm 0.5)"
        assert lines[-1] == "measuring: 10 of 10 in 8 min (harm 0.5)"
        show.set_mode(show.Mode(quiet=True))
        with show.progress("measuring") as update:
            update(1, 10)
        assert capsys.readouterr().err == ""
    show.set_mode(show.Mode())


def test_the_rest_is_told_by_what_was_done_and_not_by_what_came_before(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("resect.cli.show.time.perf_counter", lambda: clock[0])
    show.set_mode(show.Mode())
    with show.progress("measuring") as update:
        # Ten of a run that goes on are there; locating takes ten minutes, each cell 40 seconds.
        for done, now in ((10, 0.0), (10, 600.0), (11, 640.0), (12, 680.0)):
            clock[0] = now
            update(done, 30)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "measuring: 10 of 30 in 10 min",
        "measuring: 11 of 30 in 11 min, about 13 min left",
        "measuring: 12 of 30 in 11 min, about 12 min left",
    ]


def test_progress_knows_the_variant_that_was_judged_last(tmp_path: Path) -> None:
    assert last_variant(tmp_path) == {}

    def rows(cut: str, scores: list[float | None], judge: str | None) -> list[dict[str, Any]]:
        common = {"probe": "generation", "judge": judge, "cut_kind": cut, "q": 0.25}
        return [common | {"score": score} for score in scores]

    for number, cut in enumerate(("intact", "random")):
        path = tmp_path / "records" / f"{cut}.parquet"
        write_parquet(path, rows(cut, [1.0, 0.0, None], "exact"))
        os.utime(path, (number, number))
    assert last_variant(tmp_path) == {"cut": "random", "q": 0.25, "harm": 0.5}
    # Replies that nobody judged yet are no zeros.
    write_parquet(tmp_path / "records" / "new.parquet", rows("target", [None, None], None))
    assert last_variant(tmp_path) == {}


@pytest.mark.parametrize(
    ("words", "says", "lacks"),
    [
        (["audit", "a", "b"], "begin anew", "--resume"),
        (["--quiet", "eval", "m"], "begin anew", "--resume"),
        (["run", "m"], "--resume", "anew"),
        (["study", "run", "f.yaml"], "--resume", "anew"),
        (["demo"], "it goes on", "--resume"),
    ],
)
def test_a_stopped_command_names_what_it_has(words: list[str], says: str, lacks: str) -> None:
    message = _stopped(words)
    assert "nothing is half-written" in message
    assert says in message
    assert lacks not in message
    # `--resume` is an option of the commands that are told to use it, and of no others.
    for command in RESUMING:
        options = ["study", "run"] if command == "study" else [command]
        assert "--resume" in ok(*options, "--help")
