"""Jobs through submitit's local executor: equal results, killed and failing jobs, status."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from command_line import ok
from resect.errors import InputError
from resect.files.locking import Owner
from resect.files.writing import write_json
from resect.runs.config import RunConfig, dump_config, parse_config
from resect.runs.launch import Part, Resources, launch_run, planned, refuse_busy, status
from resect.runs.metrics import FILE
from resect.runs.run import measure_all, open_run, plan_run, summarise_run
from resect.studies.cells import is_done, record_path
from tiny_organism import tiny_organism
from tiny_run import tiny_values

pytest.importorskip("submitit")

GRID = {"fractions": [0.005, 0.01, 0.02], "protected": [0.01], "scopes": ["tensor"]}


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny_values(tiny_organism(tmp_path_factory), GRID)


@pytest.fixture(scope="module")
def config(values: dict[str, Any]) -> RunConfig:
    return parse_config(values, "test")


@pytest.fixture(scope="module")
def alone(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Any:
    run = tmp_path_factory.mktemp("alone") / "run"
    open_run(config, run, resume=False)
    measure_all(config, run, jobs=1)
    return _studies(config, run)


def _studies(config: RunConfig, run: Path) -> Any:
    return json.loads(summarise_run(config, run).read_text(encoding="utf-8"))["studies"]


def test_shards_and_workers_give_what_one_process_gives(
    config: RunConfig, alone: Any, tmp_path: Path
) -> None:
    run, file = tmp_path / "shards", tmp_path / "tiny.yaml"
    file.write_text(dump_config(config), encoding="utf-8")
    # One is done twice, as a job is that is put back, and the last overlaps with it.
    for shard in ("1/3", "2/3", "2/3", "2/2"):
        ok("study", "run", file, "-o", run, "--shard", shard)
    lines = (run / FILE).read_text(encoding="utf-8").splitlines()
    assert sorted(json.loads(line)["cell"] for line in lines) == sorted(
        cell.key for cell in plan_run(config)
    )
    assert _studies(config, run) == alone
    run = tmp_path / "workers"
    open_run(config, run, resume=False)
    measure_all(config, run, jobs=2)
    assert _studies(config, run) == alone


def test_a_killed_job_is_submitted_again_and_computes_no_cell_twice(
    config: RunConfig, alone: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    open_run(config, run, resume=False)
    cells = plan_run(config)
    whole: dict[Path, int] = {}

    def kill(done: int, _total: int) -> None:
        state_path = Part(run, 0, ()).state_path
        if done and not whole and state_path.exists():
            account = json.loads(state_path.read_text(encoding="utf-8"))
            if account["state"] == "running":
                os.kill(account["pid"], signal.SIGKILL)
                paths = [record_path(run, cell) for cell in cells if is_done(run, cell)]
                whole.update({path: path.stat().st_mtime_ns for path in paths})

    assert launch_run(config, run, launcher="local", jobs=2, parts=2, on_progress=kill, poll=0.01)
    assert whole
    assert {path: path.stat().st_mtime_ns for path in whole} == whole
    assert _studies(config, run) == alone
    status_now = status(run)
    assert status_now["studies"] == [
        {"study": "frontier", "cells": len(cells), "done": len(cells), "running": 0, "failed": 0}
    ]
    assert sum(row["cells"] for row in status_now["parts"]) == len(cells)
    assert all((run / str(row["log"])).exists() for row in status_now["parts"])
    # Nothing is left to do: no job is submitted.
    before = sorted((run / "launch" / "logs").iterdir())
    assert launch_run(config, run, launcher="local", jobs=2)
    assert sorted((run / "launch" / "logs").iterdir()) == before


def _broken(values: dict[str, Any], folder: Path) -> RunConfig:
    """Return a run whose first model is missing, with much to do on the second."""
    (folder / "zoo-1").symlink_to(values["models"]["aligned"])
    grid = {"fractions": [0.001 * number for number in range(1, 60)]}
    changes = {
        "seeds": [0, 1],
        "models": {"aligned": str(folder / "zoo-{seed}")},
        "studies": {"compactness": grid},
    }
    return parse_config(values | changes, "test")


@pytest.mark.parametrize("how", ["workers", "launcher", "launcher in the background"])
def test_the_first_failure_ends_all(
    how: str, values: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    config = _broken(values, tmp_path)
    if how == "launcher in the background":
        # As a shell does that starts a command with `&`.
        request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    run = tmp_path / "run"
    open_run(config, run, resume=False)
    with pytest.raises(InputError, match="zoo-0"):
        if how == "workers":
            measure_all(config, run, jobs=2)
        else:
            launch_run(config, run, launcher="local", jobs=2, poll=0.05)
    cells = plan_run(config)
    unfinished = [cell for cell in cells if cell.seed == 1 and not is_done(run, cell)]
    assert unfinished, "the other workers were not ended"
    assert not multiprocessing.active_children()
    if how == "launcher":
        assert any(row["state"] == "failed" for row in status(run)["parts"])


def test_a_preempted_part_starts_again_with_the_rest(config: RunConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    open_run(config, run, resume=False)
    cells = plan_run(config)
    part = Part(run, 0, tuple(cell.key for cell in cells))
    later = part.checkpoint()
    assert later.function == part
    part()
    stamps = {cell.key: record_path(run, cell).stat().st_mtime_ns for cell in cells}
    later.result()
    assert {c.key: record_path(run, c).stat().st_mtime_ns for c in cells} == stamps
    assert status(run)["parts"] == []


def test_resources_come_from_the_plan_unless_given(config: RunConfig) -> None:
    cells = plan_run(config)
    assert planned(config, cells, Resources(), "local", 2).gpus == 0
    resources = planned(config, cells, Resources(memory=7), "slurm", 2)
    assert (resources.gpus, resources.memory) == (1, 7)
    # A tiny model: the time to start is most of it.
    assert 15 < resources.minutes < 30
    assert planned(config, cells, Resources(minutes=5, gpus=0), "slurm", 2).minutes == 5


SBATCH = """#!/bin/sh
cat "$1" > "$STUB/script.sh"
echo "Submitted batch job 17"
"""
SQUEUE = """#!/bin/sh
if [ "$(cat "$STUB/state")" = gone ]; then
  echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1
fi
if [ "$(cat "$STUB/state")" = silent ]; then
  echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1
fi
echo "17_0|$(cat "$STUB/state")|Resources"
echo "17_1|COMPLETED|None"
"""


def test_slurm_gets_one_array_with_what_each_job_needs(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Stubs of Slurm's commands: they take note of the script and run nothing.
    for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE), ("srun", "#!/bin/sh\n")):
        (tmp_path / name).write_text(text, encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    state = tmp_path / "state"
    state.write_text("PENDING", encoding="utf-8")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("STUB", str(tmp_path))
    run = tmp_path / "run"
    open_run(config, run, resume=False)
    resources = Resources("gpu", minutes=30, gpus=1, memory=8, cpus=3, extra=(("account", "lab"),))

    def launch() -> bool:
        return launch_run(
            config, run, launcher="slurm", jobs=1, parts=2, resources=resources, wait=False
        )

    assert launch() is False
    script = (tmp_path / "script.sh").read_text(encoding="utf-8")
    for line in (
        "--array=0-1%1", "--partition=gpu", "--time=30", "--gpus-per-node=1", "--mem=8GB",
        "--cpus-per-task=3", "--account=lab", "--requeue", "--signal=USR2@90",
    ):  # fmt: skip
        assert f"#SBATCH {line}" in script, line
    parts = status(run)["parts"]
    assert [(row["job"], row["state"], row["queue"]) for row in parts] == [
        ("17_0", "waiting", "PENDING (Resources)"),
        # It has ended and did not say that it is done.
        ("17_1", "ended", "COMPLETED"),
    ]
    # While Slurm has them, nothing is submitted twice; when it has not, what is left goes out.
    for word, message in (("PENDING", "still at work"), ("silent", "does not say")):
        state.write_text(word, encoding="utf-8")
        with pytest.raises(InputError, match=message):
            launch()
    assert [row["queue"] for row in status(run)["parts"]] == [None, None]
    for word in ("CANCELLED", "gone"):
        state.write_text(word, encoding="utf-8")
        assert launch() is False


def test_without_slurm_there_is_one_message(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_run(config, tmp_path / "run", resume=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="no Slurm on this machine"):
        launch_run(config, tmp_path / "run", launcher="slurm", jobs=1)


def test_jobs_that_outlive_a_killed_launcher_are_not_worked_beside(
    config: RunConfig, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    open_run(config, run, resume=False)
    part = Part(run, 0, ())
    write_json(
        run / "launch" / "parts.json",
        {"launcher": "local", "parts": [{"part": 0, "job": "7", "cells": []}]},
    )
    alive = asdict(Owner.this()) | {"state": "running", "seen": 0.0}
    write_json(part.state_path, alive)
    with pytest.raises(InputError, match=f"process {os.getpid()} "):
        launch_run(config, run, launcher="local", jobs=1)
    write_json(part.state_path, alive | {"started": 1.0})
    assert [row["state"] for row in status(run)["parts"]] == ["ended"]
    refuse_busy(run)
