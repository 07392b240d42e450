"""How far a run is, read from its folder, and from Slurm's queue where there is one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TypedDict

from resect.files.locking import Owner
from resect.files.reading import expecting, read_json, refuse_links_out
from resect.runs.config import load_config
from resect.runs.launch.part import Account, Part
from resect.runs.launch.slurm import Queued, queued
from resect.runs.run import chosen_studies, plan_run
from resect.studies import STUDIES
from resect.studies.cells import is_done


class PartOfLaunch(TypedDict):
    """A part as `launch/parts.json` holds it: its number, its job, and the keys of its cells."""

    part: int
    job: str | None
    cells: list[str]


class Launched(TypedDict):
    """What `launch/parts.json` holds."""

    launcher: str
    parts: list[PartOfLaunch]


class StudyRow(TypedDict):
    """How many cells of a study are done, running and failed."""

    study: str
    cells: int
    done: int
    running: int
    failed: int


PartRow = TypedDict(
    "PartRow",
    {
        "part": int,
        "job": str | None,
        "state": str,
        "queue": str | None,
        "cells": int,
        "done": int,
        "cell": str | None,
        "host": str | None,
        "seconds since": int | None,
        "message": str | None,
        "log": str | None,
    },
)


class Status(TypedDict):
    """How far a run is: rows of tables, its cells, each once, and how many of them are not done."""

    studies: list[StudyRow]
    parts: list[PartRow]
    cells: int
    missing: int


def launched_in(run: Path) -> Launched | None:
    """Return what was launched in a run; None if nothing was."""
    path = run / "launch" / "parts.json"
    launched: Launched | None = read_json(path) if path.exists() else None
    return launched


def status(run: Path) -> Status:
    """Return how far a run is, as rows for tables: `studies`, and `parts` if it was launched.

    Raises:
        InputError: The folder holds no run.
    """
    refuse_links_out(run)
    config = load_config(run / "config.yaml")
    cells = plan_run(config)
    done = {cell.key for cell in cells if is_done(run, cell)}
    with expecting(run / "launch" / "parts.json", "list of jobs"):
        launched = launched_in(run)
        launch = Launched(launcher="", parts=[]) if launched is None else launched
        jobs = [row["job"] for row in launch["parts"] if row["job"] is not None]
    # None for a folder that is looked at where its Slurm is not.
    queue = (queued(jobs) if launch["launcher"] == "slurm" else None) or {}
    with expecting(run / "launch", "account of jobs"):
        parts = [_part_row(run, row, done, queue.get(row["job"] or "")) for row in launch["parts"]]
    running = {row["cell"] for row in parts if row["state"] == "running"}
    failed = {row["cell"] for row in parts if row["state"] == "failed"}
    studies: list[StudyRow] = []
    for name in chosen_studies(config):
        study = STUDIES[name]
        keys = {cell.key for cell in study.plan(config, config.section(study))}
        studies.append(
            {
                "study": name,
                "cells": len(keys),
                "done": len(keys & done),
                "running": len(keys & running - done),
                "failed": len(keys & failed - done),
            }
        )
    missing = len(cells) - len(done)
    return {"studies": studies, "parts": parts, "cells": len(cells), "missing": missing}


def _part_row(run: Path, row: PartOfLaunch, done: set[str], queue: Queued | None) -> PartRow:
    account = said_by(run, row["part"])
    seen = account.get("seen")
    return {
        "part": row["part"] + 1,
        "job": row["job"],
        "state": _state(account, queue),
        "queue": None if queue is None else str(queue),
        "cells": len(row["cells"]),
        "done": len(done & set(row["cells"])),
        "cell": account.get("cell"),
        "host": account.get("host"),
        "seconds since": None if seen is None else int(time.time() - seen),
        "message": account.get("message") or None,
        "log": f"launch/logs/{row['job']}_0_log.err" if row["job"] else None,
    }


def said_by(run: Path, index: int) -> Account:
    """Return what the job of a part has written of itself."""
    path = Part(run, index, ()).state_path
    account: Account = read_json(path) if path.exists() else {"state": "waiting"}
    return account


def is_dead(account: Account) -> bool:
    """Whether the process that wrote this was of this machine and has surely ended."""
    try:
        owner = Owner(
            account["pid"], account["host"], account["space"], account["started"], account["since"]
        )
    except KeyError:
        return False
    return owner.is_dead


def _state(account: Account, queue: Queued | None) -> str:
    """Return what a part is at: a job that was killed cannot say so itself."""
    state = str(account["state"])
    if state in ("done", "failed"):
        return state
    if queue is not None:
        if queue.is_over:
            return "ended"
        return "waiting" if queue.state == "PENDING" else state
    return "ended" if state == "running" and is_dead(account) else state
