"""The work of one job."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from resect.errors import ResectError
from resect.files.locking import Owner
from resect.files.reading import read_json
from resect.files.writing import write_json
from resect.runs.config import load_config
from resect.runs.measure import run_cells
from resect.runs.run import plan_run
from resect.studies.cells import is_done, needed_keep


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
        facts = asdict(Owner.this())
        self._say(facts, "running")
        state, message = "failed", ""
        try:
            self._measure(facts)
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
            self._say(facts | self._cell(), state, message)

    def checkpoint(self) -> Any:
        """Return what a preempted job does when it starts again: the same, less what is done."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)

    def _measure(self, facts: dict[str, Any]) -> None:
        import torch

        torch.set_num_threads(self.threads)
        if torch.cuda.is_available():
            # Slurm shows a job its own GPU; jobs of one machine see all, and take turns.
            torch.cuda.set_device(self.index % torch.cuda.device_count())
        config = load_config(self.run / "config.yaml")
        cells = plan_run(config)
        wanted = set(self.keys)
        own = [cell for cell in cells if cell.key in wanted and not is_done(self.run, cell)]

        def on_progress(done: int, _total: int) -> None:
            if done < len(own):
                self._say(facts | {"cell": own[done].key}, "running")

        run_cells(config, self.run, own, keep=needed_keep(config, cells), on_progress=on_progress)

    def _cell(self) -> dict[str, Any]:
        known = read_json(self.state_path).get("cell")
        return {} if known is None else {"cell": known}

    def _say(self, facts: dict[str, Any], state: str, message: str = "") -> None:
        more = {"state": state, "message": message, "seen": time.time()}
        write_json(self.state_path, facts | more)
