"""Scratch folders: the living keep theirs, and what the dead left goes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import tiny
from command_line import write
from resect.files.locking import Owner
from resect.files.scratch import PREFIX, scratch_folder

HOLD = """
import sys, time
from pathlib import Path
from resect.files.scratch import scratch_folder
with scratch_folder(Path(sys.argv[1])) as folder:
    (folder / "states").write_bytes(b"1")
    print(folder, flush=True)
    time.sleep(60)
"""


def test_a_folder_goes_when_its_process_was_killed_and_not_before(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    left = Path(process.stdout.readline().strip())
    try:
        with scratch_folder(tmp_path) as mine:
            assert (left / "states").exists()
            assert mine != left
            # A process of many threads may have several.
            with scratch_folder(tmp_path):
                assert mine.exists()
    finally:
        process.kill()
        process.wait()
    assert (left / "states").exists()
    with scratch_folder(tmp_path):
        assert not left.exists()
    assert list(tmp_path.iterdir()) == []


def test_what_nobody_can_tell_the_owner_of_stays(tmp_path: Path) -> None:
    ended = replace(Owner.this(), started=1.0)
    facts = {
        "elsewhere": asdict(replace(ended, host="another")),
        "unknown": asdict(replace(ended, space="")),
        "broken": {"pid": 1},
        "ended": asdict(ended),
    }
    for name, owner in facts.items():
        folder = tmp_path / f"{PREFIX}{name}"
        folder.mkdir()
        (folder / "owner.json").write_text(json.dumps(owner), encoding="utf-8")
    (tmp_path / f"{PREFIX}silent").mkdir()
    (tmp_path / "resect-other").mkdir()
    # A link in a folder that all can write to, and one inside.
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "owner.json").write_text(json.dumps(asdict(ended)), encoding="utf-8")
    (tmp_path / f"{PREFIX}link").symlink_to(outside)
    (tmp_path / f"{PREFIX}ended" / "inner").symlink_to(outside)
    before = {path.name for path in tmp_path.iterdir()}
    with scratch_folder(tmp_path):
        pass
    assert {path.name for path in tmp_path.iterdir()} == before - {f"{PREFIX}ended"}
    assert (outside / "owner.json").exists()


STREAM = """
import os, signal, sys
from resect.attribution import offloaded
if sys.argv.pop(1) == "kill":
    offloaded._Store.drop = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
from resect.cli import main; main()
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="signals of POSIX")
def test_a_killed_stream_leaves_nothing_to_the_next_one(tmp_path: Path) -> None:
    model, scratch = tiny.save("llama", tmp_path / "m"), tmp_path / "scratch"
    scratch.mkdir()
    data = write(tmp_path / "rows.jsonl", tiny.rows(4, "r", split="calibration"))
    words = ["score", model, "--data", data, "--stream", "-o", tmp_path / "a.safetensors"]

    def run(word: str) -> int:
        command = [sys.executable, "-c", STREAM, word, *map(str, words)]
        environment = os.environ | {"TMPDIR": str(scratch)}
        return subprocess.run(command, env=environment, check=False, capture_output=True).returncode

    assert run("kill") == -signal.SIGKILL
    (left,) = scratch.glob(f"{PREFIX}*")
    assert list(left.glob("*.safetensors"))
    assert run("finish") == 0
    assert list(scratch.iterdir()) == []
