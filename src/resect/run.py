"""A run from its configuration to its report, in one process or several.

Workers are separate processes that each take a shard of the cells. They share nothing but the run
folder, so the same shards can be given to any scheduler with `--shard i/n`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from resect.cells import Cell, merge
from resect.config import RunConfig, dump_config, load_config
from resect.errors import InputError, ResectError
from resect.judges import find_judge
from resect.pipeline import is_done, needed_keep, run_cells
from resect.records import StudyResult
from resect.store import hash_file, hash_value, plain, provenance, read_json, write_json, write_text
from resect.studies import STUDIES, Measurements

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Shard:
    """Which part of the cells a process takes: number `index` of `count`, from 0."""

    index: int = 0
    count: int = 1

    def of(self, cells: list[Cell]) -> list[Cell]:
        """Return a contiguous part, so that cells of one model stay together."""
        start, stop = (len(cells) * edge // self.count for edge in (self.index, self.index + 1))
        return cells[start:stop]


def parse_shard(text: str) -> Shard:
    """Read `i/n` with 1 ≤ i ≤ n.

    Raises:
        InputError: The text is something else.
    """
    first, _, second = text.partition("/")
    if first.isdigit() and second.isdigit() and 1 <= int(first) <= int(second):
        return Shard(int(first) - 1, int(second))
    raise InputError("cannot read the shard", got=repr(text), allowed="i/n with 1 ≤ i ≤ n")


def chosen_studies(config: RunConfig) -> list[str]:
    """Return the names of the studies that the configuration asks for.

    Raises:
        InputError: It asks for none.
    """
    names = [name for name in STUDIES if getattr(config.studies, name) is not None]
    if not names:
        raise InputError(
            "no study is configured", allowed=", ".join(STUDIES), fix="add one under `studies`"
        )
    return names


def plan_run(config: RunConfig) -> list[Cell]:
    """Return the merged cells of all studies of the run."""
    return merge(cell for name in chosen_studies(config) for cell in STUDIES[name].plan(config))


def open_run(config: RunConfig, run: Path, *, resume: bool) -> None:
    """Create a run folder, or check that an existing one is of the same configuration.

    Raises:
        InputError: The folder holds something else, or a run and `resume` is off.
    """
    find_judge(config.evaluation.judge)
    path = run / "config.yaml"
    if path.exists():
        if load_config(path) != config:
            raise InputError(
                f"{run} holds a run of another configuration",
                fix="choose a new folder with -o, or remove the old one",
            )
        if not resume:
            raise InputError(
                f"{run} holds a run already", fix="continue it with --resume, or choose a new -o"
            )
        return
    if run.exists() and (run.is_file() or any(run.iterdir())):
        raise InputError(
            "the output folder is not empty and holds no run",
            got=str(run),
            fix="choose a new folder with -o",
        )
    write_text(path, dump_config(config))


def _silent(_done: int, _total: int) -> None:
    """Report progress to nobody."""


def _work(config: RunConfig, run: Path, shard: Shard, threads: int) -> None:
    """Measure one shard; the work of a worker process."""
    import torch

    torch.set_num_threads(threads)
    cells = plan_run(config)
    run_cells(config, run, shard.of(cells), keep=needed_keep(config, cells))


def _worker(says: Connection, config: RunConfig, run: Path, shard: Shard, threads: int) -> None:
    """Measure one shard and say what the user can mend; the body of a worker process."""
    try:
        _work(config, run, shard, threads)
    except ResectError as error:
        says.send(error)
        raise SystemExit(2) from error


def measure_all(
    config: RunConfig, run: Path, *, jobs: int, on_progress: OnProgress | None = None
) -> None:
    """Measure every cell that is not done, with `jobs` worker processes.

    The first worker that fails ends the others; cells that are done stay done.

    Raises:
        InputError: A worker met a problem that the user can fix, which is raised here again; or it
            was ended by a signal.
        RuntimeError: A worker met a bug, whose traceback it has printed.
    """
    cells = plan_run(config)
    todo = [cell for cell in cells if not is_done(run, cell)]
    report = on_progress or _silent
    report(len(cells) - len(todo), len(cells))
    if not todo:
        return
    if jobs <= 1:
        run_cells(config, run, cells, keep=needed_keep(config, cells), on_progress=report)
        return
    threads = max(1, (os.cpu_count() or 1) // jobs)
    context = multiprocessing.get_context("spawn")
    workers: list[tuple[multiprocessing.process.BaseProcess, Connection]] = []
    try:
        for index in range(jobs):
            hears, says = context.Pipe(duplex=False)
            arguments = (says, config, run, Shard(index, jobs), threads)
            worker = context.Process(target=_worker, args=arguments, daemon=True)
            worker.start()
            says.close()
            workers.append((worker, hears))
        pending = workers
        while pending:
            multiprocessing.connection.wait([one.sentinel for one, _ in pending], timeout=1)
            for worker, hears in pending:
                _refuse_failure(worker, hears)
            pending = [(worker, hears) for worker, hears in pending if worker.is_alive()]
            todo = [cell for cell in todo if not is_done(run, cell)]
            report(len(cells) - len(todo), len(cells))
    finally:
        for worker, _ in workers:
            worker.terminate()
        for worker, hears in workers:
            worker.join()
            hears.close()


def _refuse_failure(worker: multiprocessing.process.BaseProcess, hears: Connection) -> None:
    """Raise what a worker has failed of, if it has."""
    code = worker.exitcode
    if not code:
        return
    if hears.poll():
        with contextlib.suppress(EOFError):
            raise hears.recv()
    if code < 0:
        raise InputError(
            "a worker process was ended from outside",
            got=signal.Signals(-code).name,
            fix="if memory ran out, lower -j; go on with --resume",
        )
    raise RuntimeError(f"a worker ended with code {code}; its traceback stands above")


def summarise_run(config: RunConfig, run: Path, *, seconds: float | None = None) -> Path:
    """Write `results.json` and `manifest.json` from the records; needs no model.

    Returns:
        The path of `results.json`.
    """
    measured = Measurements(config, run)
    results = [STUDIES[name].summarise(measured) for name in chosen_studies(config)]
    facts = _facts(config, run, seconds)
    write_json(run / "manifest.json", facts)
    path = run / "results.json"
    write_json(path, _results(config, results, facts))
    return path


def _results(config: RunConfig, results: list[StudyResult], facts: Any) -> dict[str, Any]:
    return {
        "name": config.name,
        "quick": config.quick,
        "claims": [plain(claim) for result in results for claim in result.claims],
        "studies": plain(results),
        "provenance": facts,
    }


def _facts(config: RunConfig, run: Path, seconds: float | None) -> dict[str, Any]:
    places = sorted({place for place in config.data.values() if "{seed}" not in place})
    places += sorted(
        place.replace("{seed}", str(seed))
        for place in config.data.values()
        if "{seed}" in place
        for seed in config.seeds
    )
    models = [read_json(path) for path in sorted((run / "models").glob("*.json"))]
    return {
        **provenance(),
        "config": hash_value(config.model_dump(mode="json")),
        "models": {f"{facts['role']}-{facts['seed']}": facts["fingerprint"] for facts in models},
        "data": {place: hash_file(place) for place in places if Path(place).is_file()},
        "seeds": list(config.seeds),
        "command": shlex.join(["resect", *sys.argv[1:]]),
        "rebuild": f"resect study run {shlex.quote(str(run / 'config.yaml'))} -o NEW_FOLDER",
        "finished": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "seconds": None if seconds is None else round(seconds, 1),
    }
