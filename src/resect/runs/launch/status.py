"""How far a run is, read from its folder, and from Slurm's queue where there is one."""

from __future__ import annotations

import time
from dataclasses import fields
from pathlib import Path
from typing import Any

from resect.files.locking import Owner
from resect.files.reading import expecting, read_json, refuse_links_out
from resect.runs.config import load_config
from resect.runs.launch.part import Part
from resect.runs.launch.slurm import Queued, queued
from resect.runs.run import chosen_studies, plan_run
from resect.studies import STUDIES
from resect.studies.cells import is_done


def status(run: Path) -> dict[str, list[dict[str, Any]]]:
    """Return how far a run is, as rows for tables: `studies`, and `parts` if it was launched.

    Raises:
        InputError: The folder holds no run.
    """
    refuse_links_out(run)
    config = load_config(run / "config.yaml")
    done = {cell.key for cell in plan_run(config) if is_done(run, cell)}
    launched = run / "launch" / "parts.json"
    with expecting(launched, "list of jobs"):
        nothing: dict[str, Any] = {"launcher": "", "parts": []}
        known = read_json(launched) if launched.exists() else nothing
        jobs = [part["job"] for part in known["parts"] if part["job"] is not None]
    # None for a folder that is looked at where its Slurm is not.
    queue = (queued(jobs) if known["launcher"] == "slurm" else None) or {}
    with expecting(run / "launch", "account of jobs"):
        parts = [_part_row(run, part, done, queue.get(part["job"])) for part in known["parts"]]
    running = {row["cell"] for row in parts if row["state"] == "running"}
    failed = {row["cell"] for row in parts if row["state"] == "failed"}
    studies = []
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
    return {"studies": studies, "parts": parts}


def _part_row(
    run: Path, part: dict[str, Any], done: set[str], queue: Queued | None
) -> dict[str, Any]:
    said = said_by(run, part["part"])
    seen = said.get("seen")
    return {
        "part": part["part"] + 1,
        "job": part["job"],
        "state": _state(said, queue),
        "queue": None if queue is None else str(queue),
        "cells": len(part["cells"]),
        "done": len(done & set(part["cells"])),
        "cell": said.get("cell"),
        "host": said.get("host"),
        "seconds since": None if seen is None else int(time.time() - seen),
        "message": said.get("message") or None,
        "log": f"launch/logs/{part['job']}_0_log.err" if part["job"] else None,
    }


def said_by(run: Path, part: int) -> dict[str, Any]:
    """Return what the job of a part has written of itself."""
    path = Part(run, part, ()).state_path
    said: dict[str, Any] = read_json(path) if path.exists() else {"state": "waiting"}
    return said


def is_dead(said: dict[str, Any]) -> bool:
    """Whether the process that wrote this was of this machine and has surely ended."""
    names = [field.name for field in fields(Owner)]
    return all(name in said for name in names) and Owner(**{n: said[n] for n in names}).is_dead


def _state(said: dict[str, Any], queue: Queued | None) -> str:
    """Return what a part is at: a job that was killed cannot say so itself."""
    state = str(said["state"])
    if state in ("done", "failed"):
        return state
    if queue is not None:
        if queue.is_over:
            return "ended"
        return "waiting" if queue.state == "PENDING" else state
    return "ended" if state == "running" and is_dead(said) else state
