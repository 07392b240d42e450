"""Submit the parts of a run, watch them, and end them when one fails."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal

from resect.errors import InputError
from resect.files.writing import write_json
from resect.runs.config import RunConfig
from resect.runs.launch.part import Part
from resect.runs.launch.resources import Resources, planned
from resect.runs.launch.slurm import queued
from resect.runs.launch.status import is_dead, launched_in, said_by
from resect.runs.run import plan_run
from resect.runs.workers import OnProgress, Shard
from resect.studies.cells import Cell, is_done

if TYPE_CHECKING:
    import submitit

Launcher = Literal["slurm", "local"]
RETRIES = 2
# Each time a job runs out of time it goes back into the queue with its done cells behind it.
TIMEOUTS = 20
# Seconds before its end at which Slurm tells a job to go back; less for a job of a few minutes,
# which would be told as it begins.
NOTICE = 90
# Slurm gives a job half a minute between asking and killing.
END = 45.0
# Most seconds between two questions to Slurm, which answers all users of a cluster.
MOST_PATIENCE = 60.0


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
        InputError: submitit or Slurm is not there, Slurm refuses the jobs, jobs of this run are
            still at work, one failed, or one was ended more often than `RETRIES`.
    """
    _submitit()
    cells = plan_run(config)
    todo = [cell for cell in cells if not is_done(run, cell)]
    report = on_progress or (lambda _done, _total: None)

    def look() -> None:
        # A cell that is done stays so, and is not read again.
        todo[:] = [cell for cell in todo if not is_done(run, cell)]
        report(len(cells) - len(todo), len(cells))

    report(len(cells) - len(todo), len(cells))
    if not todo:
        return True
    refuse_busy(run)
    count = min(len(todo), parts or jobs)
    resources = planned(config, todo, resources or Resources(), launcher, count)
    work = _Work(run, launcher, resources, jobs, _dealt(run, todo, count, resources.cpus))
    work.submit_waiting()
    if not wait and launcher == "slurm":
        return False
    work.wait(look, poll)
    look()
    if todo:
        lost = [cell.key for cell in todo]
        raise RuntimeError(f"all jobs have ended, and these cells are not done: {lost}")
    return True


def _dealt(run: Path, todo: list[Cell], count: int, cpus: int) -> list[Part]:
    """Deal the cells to parts that have said nothing yet."""
    parts = [
        Part(run.absolute(), index, tuple(cell.key for cell in Shard(index, count).of(todo)), cpus)
        for index in range(count)
    ]
    for task in parts:
        task.state_path.unlink(missing_ok=True)
    return parts


class _Work:
    """The jobs of one launch: which part is at which job."""

    def __init__(
        self, run: Path, launcher: Launcher, resources: Resources, jobs: int, parts: list[Part]
    ):
        self.run = run
        self.launcher = launcher
        self.resources = resources
        self.most = jobs
        self.parts = parts
        self.waiting = list(parts)
        self.jobs: dict[int, submitit.Job[None]] = {}
        self.names: dict[int, str] = {}
        self.starts: dict[int, int] = dict.fromkeys(range(len(parts)), 0)
        self.begun = self.asked = time.monotonic()

    def submit_waiting(self) -> None:
        """Submit what waits: on Slurm all as one array, here as many as may run at a time."""
        room = len(self.waiting)
        if self.launcher == "local":
            room = min(room, self.most - len(self.jobs))
        if room < 1:
            return
        now, self.waiting = self.waiting[:room], self.waiting[room:]
        executor = _executor(self.run, self.launcher, self.resources, self.most)
        with _refusals(), _outside_of_a_job(), _interruptible(), executor.batch():
            submitted = [executor.submit(task) for task in now]
        self.begun = self.asked = time.monotonic()
        for task, job in zip(now, submitted, strict=True):
            self.jobs[task.index] = job
            self.names[task.index] = job.job_id
            self.starts[task.index] += 1
        write_json(
            self.run / "launch" / "parts.json",
            {
                "launcher": self.launcher,
                "parts": [
                    {"part": task.index, "job": self.names.get(task.index), "cells": task.keys}
                    for task in self.parts
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
        over = self.over()
        for task in self.parts:
            if task.index not in over:
                continue
            job = self.jobs.pop(task.index)
            state = said_by(self.run, task.index)
            if state["state"] == "done":
                continue
            log = f"what it printed is in {job.paths.stderr}"
            if state["state"] == "failed":
                raise InputError(
                    f"part {task.index + 1} of {len(self.parts)} failed: {state['message']}",
                    fix=f"{log}; go on with --resume",
                )
            if self.starts[task.index] > RETRIES:
                raise InputError(
                    f"part {task.index + 1} of {len(self.parts)} was ended from outside "
                    f"{self.starts[task.index]} times",
                    got=f"job {job.job_id}, last at cell {state.get('cell', 'none')}",
                    fix=f"{log}; ask for more --mem or --time, and go on with --resume",
                )
            self.waiting.append(task)
        self.submit_waiting()
        return not self.jobs and not self.waiting

    def over(self) -> set[int]:
        """Return the parts whose jobs have ended, as they say themselves or as their keeper does.

        What submitit says of Slurm's jobs is not asked for: without accounting it waits for ever
        for one that was killed.
        """
        if self.launcher == "local":
            return {index for index, job in self.jobs.items() if job.done()}
        ended = {
            index for index in self.jobs if said_by(self.run, index)["state"] in ("done", "failed")
        }
        now = time.monotonic()
        # The longer jobs take, the less a minute matters.
        if now - self.asked >= min(MOST_PATIENCE, max(1.0, (now - self.begun) / 20)):
            self.asked = now
            ended |= self.forgotten()
        return ended

    def forgotten(self) -> set[int]:
        """Return the parts whose jobs Slurm has ended; none if it cannot be asked now."""
        queue = queued(job.job_id for job in self.jobs.values()) or {}
        return {
            index
            for index, job in self.jobs.items()
            if job.job_id in queue and queue[job.job_id].is_over
        }

    def cancel(self) -> None:
        """End what is at work, and wait until it has ended."""
        for job in self.jobs.values():
            job.cancel(check=False)
        deadline = time.monotonic() + END
        while time.monotonic() < deadline:
            local = self.launcher == "local"
            if len(self.over() if local else self.forgotten()) == len(self.jobs):
                break
            time.sleep(0.05 if local else 1.0)


def _submitit() -> ModuleType:
    try:
        import submitit
    except ImportError as error:
        raise InputError(
            "launching jobs needs submitit", fix="install it: pip install 'resect[slurm]'"
        ) from error
    return submitit


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Say as a message of one line what a scheduler has against the jobs."""
    errors = _submitit().core.utils
    try:
        yield
    except (errors.FailedJobError, errors.FailedSubmissionError) as error:
        raise InputError(
            "Slurm refuses the jobs",
            got=" ".join(str(error).split()),
            fix="change --partition, --time, --gpus (0 where there are none), --mem or --cpus",
        ) from error


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let processes that start here heed SIGINT, by which submitit ends local jobs.

    What a shell starts in the background (`&`, `nohup`) ignores it, and children inherit that.
    """
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if not ignored or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def _outside_of_a_job() -> Iterator[None]:
    """Hide from `sbatch` that this process is in a job itself.

    A new job would inherit that one's limits, beside its own, and Slurm starts no job of which both
    the memory in all and that of a core are asked for. What users set for `sbatch` (`SBATCH_*`)
    and the place of the configuration stay.
    """
    inside = "SLURM_JOB_ID" in os.environ
    hidden = {
        name: os.environ.pop(name)
        for name in list(os.environ)
        if inside and name.startswith("SLURM_") and name != "SLURM_CONF"
    }
    try:
        yield
    finally:
        os.environ.update(hidden)


def _executor(run: Path, launcher: Launcher, resources: Resources, jobs: int) -> submitit.Executor:
    library = _submitit()
    folder = run.absolute() / "launch" / "logs"
    if launcher == "local":
        gpus = _visible_gpus()
        local: submitit.Executor = library.LocalExecutor(folder)
        local.update_parameters(
            timeout_min=resources.minutes, gpus_per_node=len(gpus), visible_gpus=gpus
        )
        return local
    try:
        executor: submitit.Executor = library.AutoExecutor(
            folder, cluster="slurm", slurm_max_num_timeout=TIMEOUTS
        )
    except RuntimeError as error:
        raise InputError(
            "there is no Slurm on this machine",
            got=str(error),
            fix="submit from a login node, use --launcher local, or --shard i/n elsewhere",
        ) from error
    executor.update_parameters(
        timeout_min=resources.minutes,
        name="resect",
        cpus_per_task=resources.cpus,
        slurm_array_parallelism=jobs,
        slurm_signal_delay_s=min(NOTICE, 15 * resources.minutes),
        slurm_additional_parameters={"requeue": True, **dict(resources.extra)},
        # A cluster without GPUs refuses to hear of them, even of none.
        **({"gpus_per_node": resources.gpus} if resources.gpus else {}),
        **({"mem_gb": resources.memory} if resources.memory else {}),
        **({"slurm_partition": resources.partition} if resources.partition else {}),
    )
    return executor


def _visible_gpus() -> tuple[int, ...]:
    """Return the GPUs that jobs of this machine see; submitit hides all that it is not told of."""
    import torch

    chosen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if all(number.strip().isdigit() for number in chosen):
        return tuple(int(number) for number in chosen)
    return tuple(range(torch.cuda.device_count()))


def refuse_busy(run: Path) -> None:
    """Refuse to work in a run beside its jobs, which hold no claim on its folder.

    A claim of a job whose node is lost could not be taken over by the job that goes on with it.
    Jobs of this machine can outlive the process that started them, if that one is killed.

    Raises:
        InputError: There are such jobs, or Slurm cannot be asked about them.
    """
    path = run / "launch" / "parts.json"
    launched = launched_in(run)
    if launched is None:
        return
    if launched["launcher"] == "local":
        accounts = [said_by(run, row["part"]) for row in launched["parts"]]
        running = [
            account
            for account in accounts
            if account["state"] == "running" and not is_dead(account)
        ]
        if running:
            raise InputError(
                "jobs of this run are still at work",
                got=", ".join(
                    f"process {account['pid']} on {account['host']}" for account in running[:5]
                ),
                fix=f"wait for them (resect study status {run}) or end them; if they are surely "
                f"gone, delete {path}",
            )
        return
    names = [row["job"] for row in launched["parts"] if row["job"] is not None]
    queue = queued(names)
    if queue is None:
        raise InputError(
            "Slurm does not say whether jobs of this run are still at work",
            got=", ".join(names[:5]),
            fix=f"go on where its commands are; if the jobs are surely gone, delete {path}",
        )
    busy = [f"{name} {answer}" for name, answer in queue.items() if not answer.is_over]
    if busy:
        raise InputError(
            "jobs of this run are still at work",
            got=", ".join(busy[:5]),
            fix=f"wait for them (resect study status {run}) or scancel them",
        )
