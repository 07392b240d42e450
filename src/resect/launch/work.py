"""Submit the parts of a run, watch them, and end them when one fails."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from resect.config import RunConfig
from resect.errors import InputError
from resect.launch.part import Part
from resect.launch.plan import Resources, planned
from resect.pipeline import is_done
from resect.run import OnProgress, Shard, plan_run
from resect.store import read_json, write_json

if TYPE_CHECKING:
    import submitit

Launcher = Literal["slurm", "local"]
RETRIES = 2
# Each time a job runs out of time it goes back into the queue with its done cells behind it.
TIMEOUTS = 20


def launch_run(
    config: RunConfig,
    run: Path,
    *,
    launcher: Launcher,
    jobs: int,
    parts: int | None = None,
    resources: Resources | None = None,
    wait: bool = True,
    on_progress: OnProgress | None = None,
    poll: float = 1.0,
) -> bool:
    """Give the cells that are not done to a scheduler, and wait for them.

    Args:
        config: The run's configuration.
        run: Its folder, opened; on a cluster a folder that all nodes see.
        launcher: `slurm`, or `local` for processes of this machine.
        jobs: Most jobs at a time.
        parts: Jobs in all; None for `jobs`, more for shorter ones.
        resources: What each job asks for; what is left open comes from the plan.
        wait: Return when all is done; otherwise when all is submitted (Slurm alone).
        on_progress: Called with cells done and cells in all.
        poll: Seconds between two looks.

    Returns:
        Whether all cells are done.

    Raises:
        InputError: submitit or Slurm is not there, jobs of this run are still at work, a job
            failed, or one was ended more often than `RETRIES`.
    """
    _submitit()
    cells = plan_run(config)
    todo = [cell for cell in cells if not is_done(run, cell)]
    report = on_progress or (lambda _done, _total: None)
    report(len(cells) - len(todo), len(cells))
    if not todo:
        return True
    refuse_busy(run)
    count = min(len(todo), parts or jobs)
    given = planned(config, todo, resources or Resources(), launcher, count)
    dealt = [
        Part(run.absolute(), at, tuple(cell.key for cell in Shard(at, count).of(todo)), given.cpus)
        for at in range(count)
    ]
    for part in dealt:
        part.state_path.unlink(missing_ok=True)
    work = _Work(run, launcher, given, jobs, dealt)
    work.submit_waiting()
    if not wait and launcher == "slurm":
        return False
    work.wait(lambda: report(sum(is_done(run, cell) for cell in cells), len(cells)), poll)
    lost = [cell.key for cell in todo if not is_done(run, cell)]
    if lost:
        raise RuntimeError(f"all jobs have ended, and these cells are not done: {lost}")
    report(len(cells), len(cells))
    return True


class _Work:
    """The jobs of one launch: which part is at which job."""

    def __init__(
        self, run: Path, launcher: Launcher, given: Resources, jobs: int, parts: list[Part]
    ):
        self.run = run
        self.launcher = launcher
        self.given = given
        self.most = jobs
        self.parts = parts
        self.waiting = list(parts)
        self.jobs: dict[int, submitit.Job[None]] = {}
        self.names: dict[int, str] = {}
        self.starts: dict[int, int] = dict.fromkeys(range(len(parts)), 0)

    def submit_waiting(self) -> None:
        """Submit what waits: on Slurm all as one array, here as many as may run at a time."""
        room = len(self.waiting)
        if self.launcher == "local":
            room = min(room, self.most - len(self.jobs))
        if room < 1:
            return
        now, self.waiting = self.waiting[:room], self.waiting[room:]
        executor = _executor(self.run, self.launcher, self.given, self.most)
        with executor.batch():
            submitted = [executor.submit(part) for part in now]
        for part, job in zip(now, submitted, strict=True):
            self.jobs[part.index] = job
            self.names[part.index] = job.job_id
            self.starts[part.index] += 1
        write_json(
            self.run / "launch" / "parts.json",
            {
                "launcher": self.launcher,
                "parts": [
                    {"part": part.index, "job": self.names.get(part.index), "cells": part.keys}
                    for part in self.parts
                ],
            },
        )

    def wait(self, on_look: Callable[[], None], poll: float) -> None:
        """Wait until all parts are done; end the jobs if one fails or the user stops."""
        try:
            while not self.look():
                on_look()
                time.sleep(poll)
        except BaseException:
            self.cancel()
            raise

    def look(self) -> bool:
        """Take note of jobs that have ended; return whether all parts are done."""
        for part in self.parts:
            job = self.jobs.get(part.index)
            if job is None or not job.done():
                continue
            del self.jobs[part.index]
            state = read_json(part.state_path) if part.state_path.exists() else {}
            if state.get("state") == "done":
                continue
            log = f"what it printed is in {job.paths.stderr}"
            if state.get("state") == "failed":
                raise InputError(
                    f"part {part.index + 1} of {len(self.parts)} failed: {state['message']}",
                    fix=f"{log}; go on with --resume",
                )
            if self.starts[part.index] > RETRIES:
                raise InputError(
                    f"part {part.index + 1} of {len(self.parts)} was ended from outside "
                    f"{self.starts[part.index]} times",
                    got=f"job {job.job_id}, last at cell {state.get('cell', 'none')}",
                    fix=f"{log}; ask for more --mem or --time, and go on with --resume",
                )
            self.waiting.append(part)
        self.submit_waiting()
        return not self.jobs and not self.waiting

    def cancel(self) -> None:
        """End what is at work, and wait until it has ended."""
        for job in self.jobs.values():
            job.cancel(check=False)
        deadline = time.monotonic() + 30
        while self.launcher == "local" and time.monotonic() < deadline:
            if all(job.done() for job in self.jobs.values()):
                break
            time.sleep(0.05)


def _submitit() -> Any:
    try:
        import submitit
    except ImportError as error:
        raise InputError(
            "launching jobs needs submitit", fix="install it: pip install 'resect[slurm]'"
        ) from error
    return submitit


def _executor(run: Path, launcher: Launcher, given: Resources, jobs: int) -> Any:
    submitit = _submitit()
    folder = run.absolute() / "launch" / "logs"
    if launcher == "local":
        gpus = _visible_gpus()
        executor = submitit.LocalExecutor(folder)
        executor.update_parameters(
            timeout_min=given.minutes, gpus_per_node=len(gpus), visible_gpus=gpus
        )
        return executor
    try:
        executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=TIMEOUTS)
    except RuntimeError as error:
        raise InputError(
            "there is no Slurm on this machine",
            got=str(error),
            fix="submit from a login node, use --launcher local, or --shard i/n elsewhere",
        ) from error
    executor.update_parameters(
        timeout_min=given.minutes,
        name="resect",
        cpus_per_task=given.cpus,
        slurm_array_parallelism=jobs,
        slurm_additional_parameters={"requeue": True, **dict(given.extra)},
        # A cluster without GPUs refuses to hear of them, even of none.
        **({"gpus_per_node": given.gpus} if given.gpus else {}),
        **({"mem_gb": given.memory} if given.memory else {}),
        **({"slurm_partition": given.partition} if given.partition else {}),
    )
    return executor


def _visible_gpus() -> tuple[int, ...]:
    """Return the GPUs that jobs of this machine see; submitit hides all that it is not told of."""
    import torch

    chosen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if all(one.strip().isdigit() for one in chosen):
        return tuple(int(one) for one in chosen)
    return tuple(range(torch.cuda.device_count()))


def refuse_busy(run: Path) -> None:
    """Refuse to work in a run beside jobs that Slurm still has, which hold no claim on its folder.

    A claim of a job whose node is lost could not be taken over by the job that goes on with it.

    Raises:
        InputError: There are such jobs.
    """
    path = run / "launch" / "parts.json"
    known: dict[str, Any] = read_json(path) if path.exists() else {"launcher": ""}
    if known["launcher"] != "slurm":
        return
    names = [part["job"] for part in known["parts"] if part["job"] is not None]
    folder = run.absolute() / "launch" / "logs"
    kind = _submitit().SlurmJob
    busy = [name for name in names if not kind(folder, name).done(force_check=True)]
    if busy:
        raise InputError(
            "jobs of this run are still at work",
            got=", ".join(busy[:5]),
            fix=f"wait for them (resect study status {run}) or scancel them; if they are surely "
            f"gone, delete {path}",
        )
