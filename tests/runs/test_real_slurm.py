"""Cells as jobs of a real Slurm: put back, killed and refused ones, and what its queue says.

The Slurm is one node that the test starts, without accounting. Jobs stop at a gate before their
third cell, so that what happens to them happens midway.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from command_line import ok
from resect.errors import InputError
from resect.files.reading import read_json
from resect.runs.config import RunConfig, dump_config, parse_config
from resect.runs.launch import Resources, launch_run, planned, status
from resect.runs.run import measure_all, open_run, plan_run, summarise_run
from resect.studies.cells import is_done, record_path
from slurm_cluster import PATH, cluster, missing
from tiny_organism import tiny_organism
from tiny_run import tiny_values

pytest.importorskip("submitit")
pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

GRID = {"fractions": [0.001 * at for at in range(1, 8)], "protected": [0.01], "scopes": ["tensor"]}
PATIENCE = 180.0
# Python reads this file as it starts: it writes down the cells that a job begins, and waits before
# the third one until the gate is open.
GATE = """
import os, time
from pathlib import Path

folder = Path(os.environ["RESECT_TEST_GATE"])
if "SUBMITIT_EXECUTOR" in os.environ:
    import resect.runs.measure as running

    plain, begun = running.measure, []

    def gated(cell, masks, subjects):
        begun.append(cell.key)
        with open(folder / "begun", "a") as log:
            log.write(cell.key + chr(10))
        while len(begun) == 3 and not (folder / "open").exists():
            time.sleep(0.02)
        plain(cell, masks, subjects)

    running.measure = gated
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Start a Slurm, and be in one of its jobs, as people are who ask for an interactive one."""
    gate = tmp_path_factory.mktemp("gate")
    (gate / "sitecustomize.py").write_text(GATE, encoding="utf-8")
    with cluster() as configuration, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(configuration))
        patch.setenv("SLURM_JOB_ID", "1")
        patch.setenv("SLURM_MEM_PER_CPU", "100")
        patch.setenv("PATH", PATH)
        patch.setenv("PYTHONPATH", f"{gate}:{os.environ.get('PYTHONPATH', '')}")
        patch.setenv("RESECT_TEST_GATE", str(gate))
        yield gate


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    values = tiny_values(tiny_organism(tmp_path_factory), GRID)
    return parse_config(values, "test")


def asked(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def until(ready: Callable[[], bool], event: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not ready():
        assert time.monotonic() < deadline, event
        time.sleep(0.1)


def studies(config: RunConfig, run: Path) -> Any:
    return read_json(summarise_run(config, run))["studies"]


def begun(gate: Path) -> Counter[str]:
    with contextlib.suppress(FileNotFoundError):
        return Counter((gate / "begun").read_text(encoding="utf-8").split())
    return Counter()


def test_jobs_that_are_put_back_or_killed_midway_end_with_equal_results(
    slurm: Path, config: RunConfig, tmp_path: Path
) -> None:
    alone, run, file = tmp_path / "alone", tmp_path / "run", tmp_path / "tiny.yaml"
    open_run(config, alone, resume=False)
    measure_all(config, alone, jobs=1)
    file.write_text(dump_config(config), encoding="utf-8")
    cells = plan_run(config)
    assert len(cells) == 15
    options = ("--launcher", "slurm", "--gpus", 0, "-j", 3, "--parts", 3, "--no-wait")
    ok("study", "run", file, "-o", run, *options)

    # One array, each job with what the plan says and the command leaves open.
    jobs = [str(part["job"]) for part in status(run)["parts"]]
    whole = jobs[0].split("_")[0]
    assert jobs == [f"{whole}_{at}" for at in range(3)]
    facts = dict(re.findall(r"(\w+)=(\S+)", asked("scontrol", "show", "job", jobs[0])))
    needs = planned(config, cells, Resources(), "slurm", 3)
    assert facts["TimeLimit"] == f"00:{needs.minutes}:00"
    assert facts["MinMemoryNode"] == f"{needs.memory:.0f}G"
    assert (facts["NumCPUs"], facts["Requeue"], facts["ArrayTaskThrottle"]) == ("1", "1", "3")
    assert status(run)["parts"][0]["queue"] in ("PENDING (None)", "PENDING", "RUNNING")

    # All wait at the gate, two cells done.
    until(lambda: begun(slurm).total() == 9, "three jobs do not begin three cells each")
    assert [(part["state"], part["queue"], part["done"]) for part in status(run)["parts"]] == [
        ("running", "RUNNING", 2)
    ] * 3
    with pytest.raises(InputError, match="still at work"):
        launch_run(config, run, launcher="slurm", jobs=1)
    before = stamps(run, config)
    # A job with a better claim takes the node's place, or time is over; the node is lost.
    asked("scontrol", "requeue", jobs[0])
    asked("scancel", "--signal=USR2", jobs[1])
    asked("scancel", "--signal=KILL", jobs[2])
    until(
        lambda: [part["state"] for part in status(run)["parts"]] == ["waiting", "waiting", "ended"],
        "the queue does not have two jobs again",
    )
    (slurm / "open").touch()
    until(
        lambda: [part["state"] for part in status(run)["parts"]] == ["done", "done", "ended"],
        "jobs that were put back do not end",
    )

    # The rest is one job; it is killed, and the process that waits for it submits it again.
    (slurm / "open").unlink()
    seen = begun(slurm).total()
    killed: list[str] = []

    def kill(_done: int, _total: int) -> None:
        if not killed and begun(slurm).total() == seen + 3:
            killed.append(str(status(run)["parts"][0]["job"]))
            asked("scancel", "--signal=KILL", killed[0])
        elif killed and killed[0] not in asked("squeue", "-h", "-o", "%i").split():
            (slurm / "open").touch()

    until(lambda: not asked("squeue", "-h"), "jobs that are done stay in the queue")
    needs = Resources(gpus=0, minutes=5)
    assert launch_run(
        config, run, launcher="slurm", jobs=1, resources=needs, on_progress=kill, poll=0.1
    )
    assert killed
    assert status(run)["parts"][0]["job"] != killed[0]
    assert status(run)["parts"][0]["state"] == "done"
    # Four jobs were stopped within a cell, and that cell alone was begun again.
    assert sorted(begun(slurm).values()) == [1] * (len(cells) - 4) + [2] * 4
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert studies(config, run) == studies(config, alone)


def stamps(run: Path, config: RunConfig) -> dict[Path, int]:
    paths = [record_path(run, cell) for cell in plan_run(config) if is_done(run, cell)]
    return {path: path.stat().st_mtime_ns for path in paths}


@pytest.mark.usefixtures("slurm")
def test_what_slurm_refuses_is_one_message(config: RunConfig, tmp_path: Path) -> None:
    open_run(config, tmp_path / "run", resume=False)
    for asking in (Resources(partition="nowhere", gpus=0), Resources(gpus=1)):
        with pytest.raises(InputError, match="Slurm refuses the jobs") as caught:
            launch_run(
                config, tmp_path / "run", launcher="slurm", jobs=1, resources=asking, wait=False
            )
        assert "sbatch: error:" in str(caught.value)
