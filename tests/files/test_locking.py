"""Two processes on one run folder: shards side by side, never the same part twice."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import filelock
import pytest

from resect import files
from resect.errors import InputError
from resect.files import locking
from resect.files.locking import Owner, Portion, locked

HOLD = """
import sys, time
from resect.files.locking import Portion, locked
with locked(sys.argv[1], Portion(int(sys.argv[2]), int(sys.argv[3]))):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(run: Path, portion: Portion) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", HOLD, str(run), *map(str, portion)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_same_part_is_refused_and_taken_over_after_a_kill(tmp_path: Path) -> None:
    process = holder(tmp_path, Portion(1, 2))
    half_written = tmp_path / "records" / ".a.parquet.12345678.part"
    files.write_text(tmp_path / "records" / "a.parquet", "whole")
    half_written.write_text("half", encoding="utf-8")
    try:
        for portion in ((1, 2), (1, 1), (1, 4), (2, 4)):
            with (
                pytest.raises(InputError, match=f"process {process.pid} on .* holds part 1/2"),
                locked(tmp_path, Portion(*portion)),
            ):
                pass
        with locked(tmp_path, Portion(2, 2)):
            # It may be that other process's.
            assert half_written.exists()
    finally:
        process.kill()
        process.wait()
    with locked(tmp_path, Portion(1, 2)):
        assert not half_written.exists()
        assert [path.name for path in (tmp_path / "claims").iterdir()] == ["1-of-2.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["records"]
    assert [path.name for path in (tmp_path / "records").iterdir()] == ["a.parquet"]


@pytest.mark.parametrize(
    ("change", "dead"),
    [
        ({}, False),
        ({"pid": 2**22 + 1}, True),  # beyond what Linux gives
        ({"started": 1.0}, True),  # the number was given again
        ({"pid": 2**22 + 1, "host": "elsewhere"}, False),
        ({"pid": 2**22 + 1, "space": "another boot or container"}, False),
        ({"pid": 2**22 + 1, "space": ""}, False),
    ],
)
def test_a_claim_is_taken_over_only_if_its_owner_is_surely_dead(
    change: dict[str, Any], dead: bool, tmp_path: Path
) -> None:
    path = tmp_path / "claims" / "1-of-1.json"
    owner = replace(Owner.this(), **change)
    files.write_json(path, owner)
    assert owner.is_dead == dead
    if dead:
        with locked(tmp_path):
            assert files.read_json(path)["pid"] == os.getpid()
        return
    with pytest.raises(InputError) as caught, locked(tmp_path):
        pass
    assert f"process {owner.pid} on {owner.host}, since {owner.since}" in str(caught.value)
    assert f"look on {owner.host}), delete {path} and try again" in str(caught.value)
    assert files.read_json(path)["pid"] == owner.pid


def test_a_claim_that_does_not_say_whose_it_is_stands(tmp_path: Path) -> None:
    files.write_text(tmp_path / "claims" / "1-of-3.json", "")
    with pytest.raises(InputError, match="does not say who"), locked(tmp_path):
        pass
    with locked(tmp_path, Portion(3, 3)):
        pass


def test_parts_overlap_as_their_cells_do() -> None:
    cells = range(60)  # divisible by every count, so that no part is empty or rounded
    portions = [Portion(i, n) for n in (1, 2, 3, 4, 5, 6) for i in range(1, n + 1)]

    def of(portion: Portion) -> set[int]:
        size = 60 // portion.total
        return set(cells[size * (portion.number - 1) : size * portion.number])

    for portion, beside in product(portions, portions):
        assert portion.overlaps(beside) == bool(of(portion) & of(beside)), (portion, beside)


RACE = """
import sys, time
from pathlib import Path
from resect.files.locking import locked
from resect.errors import InputError
run, number = Path(sys.argv[1]), sys.argv[2]
Path(run.parent / f"ready-{number}").touch()
while not (run.parent / "go").exists():
    pass
for _ in range(25):
    try:
        with locked(run):
            inside = run.parent / "inside"
            inside.touch(exist_ok=False)  # fails if another one is inside
            time.sleep(0.002)
            inside.unlink()
            print("in", flush=True)
    except InputError:
        time.sleep(0.001)
"""


def test_of_many_at_once_one_is_inside(tmp_path: Path) -> None:
    run = tmp_path / "run"
    # A stale claim to begin with: all see it at the same time.
    files.write_json(run / "claims" / "1-of-1.json", replace(Owner.this(), started=1.0))
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(run), str(number)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    while not all((tmp_path / f"ready-{number}").exists() for number in range(3)):
        assert all(racer.poll() is None for racer in racers)
        time.sleep(0.01)
    (tmp_path / "go").touch()
    entered = 0
    for racer in racers:
        out, errors = racer.communicate(timeout=60)
        assert racer.returncode == 0, errors
        entered += out.count("in")
    assert entered > 0
    assert not (run / "claims").exists()


def test_lock_files_of_many_folders_are_few_and_old_ones_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESECT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(locking, "_LOCKS", 4)
    locks = tmp_path / "cache" / "claims"
    locks.mkdir(parents=True)
    old, busy = (locks / f"{digit * 16}.lock" for digit in "ab")
    old.touch()
    with filelock.FileLock(busy):
        for number in range(12):
            with locked(tmp_path / f"run-{number}"):
                pass
        assert busy.exists()
    assert not old.exists()
    assert len(list(locks.glob("??.lock"))) == len(list(locks.iterdir())) - 1 <= 4
    # A held bucket keeps out the folders that share it, and no others.
    with locked(tmp_path / "run-0"), locked(tmp_path / "run-1"):
        pass
    assert not busy.exists()


WORKER = """
import multiprocessing, sys, time
def work():
    from resect.runs.workers import exit_with_parent
    exit_with_parent()
    import os
    print(os.getpid(), flush=True)
    time.sleep(60)
if __name__ == "__main__":
    child = multiprocessing.get_context("spawn").Process(target=work)
    child.start()
    child.join()
"""


def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(WORKER, encoding="utf-8")
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    # The pipe ends when the last process that holds it does.
    start = time.monotonic()
    assert parent.stdout.read() == ""
    assert time.monotonic() - start < 10
    assert worker > 0
