"""Processes that measure cells of one run beside each other.

They share nothing but the run folder. Each keeps the model that it has loaded from one part of the
cells to the next.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from resect.runs.config import RunConfig
from resect.runs.measure import Measuring
from resect.studies.cells import Cell, is_done

OnProgress = Callable[[int, int], None]
T = TypeVar("T")
# So many parts for each process, that none waits long for the last of another, each of some cells.
PARTS = 6
LEAST = 4


def silent(_done: int, _total: int) -> None:
    """Report progress to nobody."""


@dataclass(frozen=True)
class Shard:
    """Which part of the cells a process takes: number `index` of `count`, from 0."""

    index: int = 0
    count: int = 1

    def of(self, cells: list[Cell]) -> list[Cell]:
        """Return a contiguous part, so that cells of one model stay together."""
        start, stop = (len(cells) * edge // self.count for edge in (self.index, self.index + 1))
        return cells[start:stop]


def measure_cells(
    config: RunConfig,
    run: Path,
    cells: list[Cell],
    *,
    keep: float,
    jobs: int,
    report: OnProgress = silent,
) -> None:
    """Measure some cells of a run as far as they are not done, in contiguous parts.

    Args:
        config: The run's configuration.
        run: Its folder.
        cells: Each variant once.
        keep: From `needed_keep` over all cells of the run, so that they share their scores.
        jobs: Worker processes.
        report: Called with cells done and cells in all.

    Raises:
        InputError: A worker met a problem that the user can fix; it is raised here again.
    """
    todo = [cell for cell in cells if not is_done(run, cell)]
    report(len(cells) - len(todo), len(cells))
    if not todo:
        return
    if jobs <= 1:
        Measuring(config, run, keep).measure(cells, report)
        return
    # Cells that may share passes stay together.
    smallest = max(LEAST, 2 * config.evaluation.together)
    count = max(jobs, min(PARTS * jobs, len(cells) // smallest))
    parts = [(Shard(index, count).of(cells),) for index in range(count)]
    undone = {cell.key: cell for cell in todo}

    def tell() -> None:
        for key in [key for key, cell in undone.items() if is_done(run, cell)]:
            del undone[key]
        report(len(cells) - len(undone), len(cells))

    Workers(config, run, keep, jobs).each(measure_part, parts, tell)


@dataclass(frozen=True)
class Workers:
    """Worker processes of a run.

    Attributes:
        config: The run's configuration.
        run: Its folder.
        keep: As for `measure_cells`.
        jobs: How many; each has an equal share of the threads.
    """

    config: RunConfig
    run: Path
    keep: float
    jobs: int

    def each(
        self,
        work: Callable[..., T],
        parts: Sequence[tuple[Any, ...]],
        tell: Callable[[], None],
    ) -> list[T]:
        """Call a function with each part of the work, as many at a time as there are processes.

        Args:
            work: A function of a module; before the arguments it gets what it measures with.
            parts: Its other arguments, in the order in which they are begun.
            tell: Called about once a second, and at the end.

        Returns:
            What it returned for each part.

        Raises:
            InputError: A worker met a problem that the user can fix; it is raised here again.
        """
        threads = max(1, (os.cpu_count() or 1) // self.jobs)
        context = multiprocessing.get_context("spawn")
        # A process that is ended by a signal breaks a ProcessPoolExecutor with a clear error, where
        # a multiprocessing.Pool would wait for ever.
        with ProcessPoolExecutor(
            self.jobs, mp_context=context, initializer=_start, initargs=(self, threads)
        ) as pool:
            futures = [pool.submit(_call, work, arguments) for arguments in parts]
            pending: set[Future[T]] = set(futures)
            try:
                while pending:
                    done, pending = wait(pending, timeout=1, return_when=FIRST_EXCEPTION)
                    for future in done:
                        future.result()
                    tell()
            except BaseException:
                # The pool would wait for all parts. Without its workers it gives them up; they go
                # on with --resume.
                for worker in multiprocessing.active_children():
                    worker.terminate()
                raise
        return [future.result() for future in futures]


def measure_part(measuring: Measuring, cells: list[Cell]) -> None:
    """Measure a part of the cells; the body of a worker."""
    measuring.measure(cells)


# Whose worker this process is; empty where it is none.
_workers: list[Workers] = []


def _start(workers: Workers, threads: int) -> None:
    """Make this process a worker."""
    import torch

    exit_with_parent()
    torch.set_num_threads(threads)
    _workers.append(workers)


@functools.cache
def _measuring() -> Measuring:
    """Return what this worker measures with, which has its model at hand from part to part."""
    (workers,) = _workers
    return Measuring(workers.config, workers.run, workers.keep)


def _call(work: Callable[..., T], arguments: tuple[Any, ...]) -> T:
    return work(_measuring(), *arguments)


def exit_with_parent() -> None:
    """End this worker when the process that started it ends, however that happens.

    Otherwise the worker of a killed run would go on beside the next process that takes the run up.
    """
    import threading
    from multiprocessing.connection import wait as wait_for

    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait_for([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
