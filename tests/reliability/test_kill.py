"""Commands are killed: a few times here, `python tests/reliability/kill.py --kills 200` for all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = os.environ.get("RESECT_KILLS", "10")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_commands_leave_whole_files_and_go_on() -> None:
    # A process of its own: it forks, and this one has threads.
    script = Path(__file__).with_name("kill.py")
    done = subprocess.run(
        [sys.executable, str(script), "--kills", KILLS, "--seed", os.environ.get("SEED", "0")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert "nothing broken, all went on to the same files" in done.stdout
