"""The work of one job."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from resect.errors import ResectError
from resect.files.locking import Owner
from resect.files.reading import read_json
from resect.files.writing import write_json
from resect.runs.config import load_config
from resect.runs.measure import run_cells
from resect.runs.run import plan_run
from resect.studies.cells import is_done, needed_keep

if TYPE_CHECKING:
    import submitit


class Account(TypedDict, total=False):
    """What a job writes of itself: who it is (as `Owner`), what it does, and since when.

    Attributes:
        state: `running`, `done`, `failed` or `waiting`.
        message: Why it failed.
        seen: When it wrote this, seconds since 1970.
        cell: Key of the cell that it is at.
    """

    pid: int
    host: str
    space: str
    started: float
    since: str
    state: str
    message: str
    seen: float
    cell: str


@dataclass(frozen=True)
class Part:
    """The work of one job; submitit calls it, and asks it for its rest when it is preempted.

    Attributes:
        run: The run folder.
        index: Number of the part, from 0.
        keys: Keys of its cells.
        threads: CPU threads of the job.
    """

    run: Path
    index: int
    keys: tuple[str, ...]
    threads: int = 1

    @property
    def state_path(self) -> Path:
        """Where the job says what it is doing."""
        return self.run / "launch" / f"part-{self.index:04d}.json"

    def __call__(self) -> None:
        """Measure the cells of the part that are not done."""
        owner: dict[str, object] = asdict(Owner.this())
        self._say(owner, "running")
        state, message = "failed", ""
        try:
            self._measure(owner)
            state = "done"
        except ResectError as error:
            message = str(error)
        except SystemExit:
            # How submitit leaves after it has put a preempted job back into the queue.
            state = "waiting"
            raise
        finally:
            if state == "failed" and not message:
                message = f"{type(sys.exception()).__name__}: {sys.exception()}"
            self._say(owner | self._cell(), state, message)

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Return what a preempted job does when it starts again: the same, less what is done."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)

    def _measure(self, owner: dict[str, object]) -> None:
        import torch

        torch.set_num_threads(self.threads)
        if torch.cuda.is_available():
            # Slurm shows a job its own GPU; jobs of one machine see all, and take turns.
            torch.cuda.set_device(self.index % torch.cuda.device_count())
        config = load_config(self.run / "config.yaml")
        cells = plan_run(config)
        keys = set(self.keys)
        todo = [cell for cell in cells if cell.key in keys and not is_done(self.run, cell)]

        def on_progress(done: int, _total: int) -> None:
            if done < len(todo):
                self._say(owner | {"cell": todo[done].key}, "running")

        run_cells(config, self.run, todo, keep=needed_keep(config, cells), on_progress=on_progress)

    def _cell(self) -> dict[str, object]:
        key = read_json(self.state_path).get("cell")
        return {} if key is None else {"cell": key}

    def _say(self, owner: dict[str, object], state: str, message: str = "") -> None:
        status = {"state": state, "message": message, "seen": time.time()}
        write_json(self.state_path, {**owner, **status})
