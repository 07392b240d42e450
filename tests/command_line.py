"""Run commands in this process, as a user would give them."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from resect.cli import main


def call(*words: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line in this process, which is many times faster than in a new one."""
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(sys, "argv", ["resect", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
    return subprocess.CompletedProcess(
        words, int(end.value.code or 0), out.getvalue(), err.getvalue()
    )


def call_fresh(*words: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "resect", *map(str, words)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def ok(*words: Any, fresh: bool = False) -> str:
    done = (call_fresh if fresh else call)(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
