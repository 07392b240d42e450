"""What an audit cannot ask is refused before it has worked for minutes, with a step that it has."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny
from command_line import call, write


def test_an_answer_that_a_prefill_uses_up_is_named_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resect.cli.audit.SECONDS_BETWEEN_NOTES", 0.0)
    model = tiny.save("llama", tmp_path / "model")
    rows = tiny.rows(4, "c", split="calibration") + tiny.rows(4, "ee", split="evaluation")
    rows[-1]["completion"] = "w1 w2"
    data = write(tmp_path / "rows.jsonl", rows)
    done = call("audit", model, model, "--target", data, "--preserve", data, "--skip", "3",
                "-o", tmp_path / "out")  # fmt: skip
    assert done.returncode == 2
    assert rows[-1]["id"] in done.stderr
    assert "next step: give another --skip" in done.stderr
    for stage in ("locating", "drawing matched set"):
        assert stage not in done.stderr
    assert not (tmp_path / "out").exists()
