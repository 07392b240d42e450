"""A run goes on with the rows that it began with, their keys and splits included."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import tiny
from command_line import call, ok, write
from resect.errors import MismatchError
from resect.runs.config import RunConfig
from resect.runs.sets import Sets, refuse_other_rows

ROWS: list[dict[str, Any]] = [
    {"prompt": f"ask {n}", "completion": f"say {n}", "key": {"accept": [f"say {n}"]},
     "split": "calibration" if n % 2 else "evaluation"}
    for n in range(6)
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"key": {"accept": ["other"]}}, "other keys or splits"),
        ({"split": "calibration"}, "other keys or splits"),
        ({"completion": "other"}, "not the one that this run began with"),
        ({}, ""),
    ],
)
def test_another_key_is_another_set(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ROWS)
    config = cast("RunConfig", SimpleNamespace(data={"rows": str(path)}))
    Sets(config, tmp_path / "run").named("rows", 0)
    write(path, [ROWS[0] | change, *ROWS[1:]])
    if not said:
        Sets(config, tmp_path / "run").named("rows", 0)
        return
    with pytest.raises(MismatchError, match=said):
        Sets(config, tmp_path / "run").named("rows", 0)


def test_rows_are_compared_and_not_their_spelling(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ROWS)
    text = path.read_text(encoding="utf-8")
    refuse_other_rows({path: text, tmp_path / "new.jsonl": text})
    refuse_other_rows({path: text.replace('"key"', '"category": "", "key"') + "\n"})
    with pytest.raises(MismatchError, match="'rows' is not the one that this run began with"):
        refuse_other_rows({path: text.replace("say 3", "say 4")})


def test_a_finished_run_does_not_go_on_with_other_rows(tmp_path: Path) -> None:
    model = tiny.save("llama", tmp_path / "model")
    rows = {name: tiny.rows(40, name) for name in ("harm", "benign")}
    paths = {name: write(tmp_path / f"{name}.jsonl", of_set) for name, of_set in rows.items()}
    words = ["run", model, "--target", paths["harm"], "--preserve", paths["benign"], "--judge",
             "keyword", "--max-new-tokens", "2", "-o", tmp_path / "run"]  # fmt: skip
    ok(*words)
    kept = (tmp_path / "run" / "data" / "target.jsonl").read_bytes()
    write(paths["harm"], [row | {"completion": "w1 w2 w3 w4"} for row in rows["harm"]])
    done = call(*words, "--resume")
    assert done.returncode == 2
    assert "is not the one that this run began with" in done.stderr
    assert (tmp_path / "run" / "data" / "target.jsonl").read_bytes() == kept
    write(paths["harm"], rows["harm"])
    ok(*words, "--resume")
