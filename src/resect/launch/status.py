"""How far a run is, read from its folder alone."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from resect.bounded import refuse_links_out
from resect.config import load_config
from resect.launch.part import Part
from resect.pipeline import is_done
from resect.run import chosen_studies, plan_run
from resect.store import read_json, whole
from resect.studies import STUDIES


def status(run: Path) -> dict[str, list[dict[str, Any]]]:
    """Return how far a run is, as rows for tables: `studies`, and `parts` if it was launched.

    Raises:
        InputError: The folder holds no run.
    """
    refuse_links_out(run)
    config = load_config(run / "config.yaml")
    done = {cell.key for cell in plan_run(config) if is_done(run, cell)}
    launched = run / "launch" / "parts.json"
    with whole(launched, "list of jobs"):
        known = read_json(launched)["parts"] if launched.exists() else []
    with whole(run / "launch", "account of jobs"):
        parts = [_part_row(run, part, done) for part in known]
    running = {row["cell"] for row in parts if row["state"] == "running"}
    failed = {row["cell"] for row in parts if row["state"] == "failed"}
    studies = []
    for name in chosen_studies(config):
        keys = {cell.key for cell in STUDIES[name].plan(config)}
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


def _part_row(run: Path, part: dict[str, Any], done: set[str]) -> dict[str, Any]:
    path = Part(run, part["part"], ()).state_path
    state: dict[str, Any] = read_json(path) if path.exists() else {"state": "waiting"}
    seen = state.get("seen")
    return {
        "part": part["part"] + 1,
        "job": part["job"],
        "state": state["state"],
        "cells": len(part["cells"]),
        "done": len(done & set(part["cells"])),
        "cell": state.get("cell"),
        "host": state.get("host"),
        "seconds since": None if seen is None else int(time.time() - seen),
        "message": state.get("message") or None,
        "log": f"launch/logs/{part['job']}_0_log.err" if part["job"] else None,
    }
