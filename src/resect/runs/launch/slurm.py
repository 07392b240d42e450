"""What Slurm's queue says of jobs.

The queue is asked, and not the accounting (`sacct`, which submitit asks): many small clusters keep
none, and where they do it lags behind. A job that the queue does not list has ended, because the
queue forgets jobs only some time after their end.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from typing import NamedTuple

PATIENCE = 60.0
# Over for good: what Slurm puts back into the queue, it lists as pending, or as on the way there.
OVER = frozenset(
    {
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "REVOKED",
        "TIMEOUT",
    }
)


class Queued(NamedTuple):
    """What the queue says of a job.

    Attributes:
        state: Slurm's word, such as `PENDING`; "" for a job that the queue does not list.
        reason: Why it waits, in Slurm's words; "" if it does not.
    """

    state: str
    reason: str = ""

    @property
    def is_over(self) -> bool:
        """Whether the job has ended and will not start again."""
        return not self.state or self.state in OVER

    def __str__(self) -> str:
        """Return state and reason, for people."""
        return f"{self.state} ({self.reason})" if self.reason else self.state or "not in the queue"


def queued(jobs: Iterable[str]) -> dict[str, Queued] | None:
    """Return what the queue says of each job; None if it cannot be asked now.

    Args:
        jobs: Names such as `17`, or `17_3` for a task of an array.
    """
    names = list(jobs)
    if not names:
        return {}
    whole = ",".join(sorted({name.split("_")[0] for name in names}))
    options = ("--noheader", "--array", "--states=all", "--format=%i|%T|%r", f"--jobs={whole}")
    try:
        answer = subprocess.run(
            ["squeue", *options], capture_output=True, text=True, check=False, timeout=PATIENCE
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    # What it says of a list of which it knows none.
    if answer.returncode and "Invalid job id" not in answer.stderr:
        return None
    answers: dict[str, Queued] = {}
    for line in answer.stdout.splitlines():
        name, state, reason = line.split("|", 2)
        waits = state == "PENDING" and reason not in ("", "None")
        answers[name] = Queued(state, reason if waits else "")
    return {name: answers.get(name, Queued("")) for name in names}
