"""A run that is killed goes on to the same results; studies do not disturb each other."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from resect.cli.show import last_variant
from resect.evaluation.ask import ask
from resect.files.tables import read_parquet, write_parquet
from resect.records import Judgement
from resect.runs.config import RunConfig, dump_config, parse_config
from resect.runs.run import measure_all, open_run, plan_run, summarise_run
from resect.studies.cells import asked_path, is_done, record_path
from tiny_organism import tiny_organism
from tiny_run import tiny_values

# Seconds that a busy machine may take to start a process and measure a few cells.
PATIENCE = 300
FRONTIER = {"fractions": [0.005, 0.01], "protected": [0.01], "scopes": ["tensor"]}
COMPACTNESS = {"fractions": [0.005, 0.02]}


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny_values(tiny_organism(tmp_path_factory), FRONTIER)


def _config(values: dict[str, Any], **studies: Any) -> RunConfig:
    return parse_config(values | {"studies": studies}, "test")


def _measured(config: RunConfig, run: Path) -> dict[str, Any]:
    """Run a configuration undisturbed and return its studies by name."""
    open_run(config, run, resume=False)
    measure_all(config, run, jobs=1)
    return _studies(config, run)


def _studies(config: RunConfig, run: Path) -> dict[str, Any]:
    results = json.loads(summarise_run(config, run).read_text(encoding="utf-8"))
    return {study["study"]: study for study in results["studies"]}


# Measures as `resect study run` does, and writes down the key of every cell that it begins.
CHILD = """
import sys
from pathlib import Path
import resect.runs.measure as running
from resect.cli.show import last_variant
from resect.evaluation.ask import ask
from resect.files.tables import read_parquet, write_parquet
from resect.records import Judgement
from resect.runs.config import load_config
from resect.runs.run import measure_all

run = Path(sys.argv[1])
plain = running.measure

def noted(cell, masks, subjects):
    with open(sys.argv[2], "a") as log:
        log.write("begun " + cell.key + chr(10))
    plain(cell, masks, subjects)
    with open(sys.argv[2], "a") as log:
        log.write("done " + cell.key + chr(10))

running.measure = noted
measure_all(load_config(run / "config.yaml"), run, jobs=1)
"""


def _child(run: Path, log: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(run), str(log)], stderr=subprocess.PIPE
    )


def _lines(log: Path, word: str) -> list[str]:
    text = log.read_text(encoding="utf-8") if log.exists() else ""
    return [line.split()[1] for line in text.splitlines() if line.startswith(word)]


def test_a_killed_run_goes_on_and_computes_no_cell_twice(
    values: dict[str, Any], tmp_path: Path
) -> None:
    config = _config(values, frontier=FRONTIER)
    undisturbed = _measured(config, tmp_path / "whole")
    run, log = tmp_path / "killed", tmp_path / "log"
    open_run(config, run, resume=False)
    cells = [cell.key for cell in plan_run(config)]
    # Killed while some cell is measured, wherever in it that is; the place differs at every run of
    # the test and is part of the message.
    draw = random.Random(seed := time.time_ns())
    begun, delay = draw.randint(1, len(cells) - 1), draw.random() * 0.1
    where = f"seed {seed}: killed {delay:.3f} s after cell {begun} of {len(cells)} had begun"
    child = _child(run, log)
    deadline = time.monotonic() + PATIENCE
    while len(_lines(log, "begun")) < begun and child.poll() is None:
        assert time.monotonic() < deadline, where
        time.sleep(0.005)
    time.sleep(delay)
    assert child.poll() is None or len(_lines(log, "done")) == len(cells), where
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    finished = _lines(log, "done")
    successor = _child(run, log)
    assert successor.wait(timeout=PATIENCE) == 0, where
    # Finished cells are not begun again; the one that was killed may be.
    all_begun = _lines(log, "begun")
    assert all(all_begun.count(key) == 1 for key in finished), where
    assert sorted(set(all_begun)) == sorted(cells), where
    assert len(all_begun) <= len(cells) + 1, where
    assert _studies(config, run) == undisturbed, where


def _unjudged(run: Path, key: str) -> list[dict[str, Any]]:
    """Return a record of a whole run as it was before it was judged."""
    verdict = dict.fromkeys(field.name for field in fields(Judgement))
    return [row | verdict for row in read_parquet(run / "records" / f"{key}.parquet")]


def test_what_was_asked_is_judged_and_not_asked_again(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(values, frontier=FRONTIER)
    run = tmp_path / "run"
    undisturbed = _measured(config, run)
    cells = plan_run(config)
    records = {path.name: path.read_bytes() for path in (run / "records").iterdir()}
    # As version 0.1.0 left a cell whose judge had not answered yet: under its final name.
    old, new, lacking = cells[:3]
    rows = _unjudged(run, old.key)
    write_parquet(record_path(run, old), rows)
    write_parquet(asked_path(run, new), _unjudged(run, new.key))
    record_path(run, new).unlink()
    # And one that was judged, by a version that put one probe less.
    rows = read_parquet(record_path(run, lacking))
    write_parquet(record_path(run, lacking), [r for r in rows if r["probe"] != "utility"])
    begun: list[str] = []

    def noted(*words: Any, **named: Any) -> Any:
        begun.append("asked")
        return ask(*words, **named)

    monkeypatch.setattr("resect.runs.measure.ask", noted)
    open_run(config, run, resume=True)
    assert [is_done(run, cell) for cell in (old, new, lacking)] == [False] * 3
    assert all(asked_path(run, cell).exists() for cell in (old, new, lacking))
    assert last_variant(run)["cut"] in {"intact", "target", "random"}
    measure_all(config, run, jobs=1)
    assert begun == ["asked"]
    assert {path.name: path.read_bytes() for path in (run / "records").iterdir()} == records
    assert _studies(config, run) == undisturbed
    # Opened again, what is done stays so.
    open_run(config, run, resume=True)
    assert all(is_done(run, cell) for cell in cells)


def test_a_study_gives_the_same_with_others_and_without(
    values: dict[str, Any], tmp_path: Path
) -> None:
    alone = _measured(_config(values, frontier=FRONTIER), tmp_path / "alone")
    joined = _measured(
        _config(values, compactness=COMPACTNESS, frontier=FRONTIER), tmp_path / "joined"
    )
    assert joined["frontier"] == alone["frontier"]
    # The order in which they stand in the file changes nothing, not even the order of the cells.
    in_order = _config(values, compactness=COMPACTNESS, frontier=FRONTIER)
    reversed_order = _config(values, frontier=FRONTIER, compactness=COMPACTNESS)
    assert plan_run(in_order) == plan_run(reversed_order)
    assert dump_config(in_order) == dump_config(reversed_order)
