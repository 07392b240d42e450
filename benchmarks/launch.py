"""What a launcher costs: a thousand tiny cells in one process, and through submitit.

Each cell is one cut of the organism's smallest form, asked one prompt for one token, so that
everything around the cells weighs as much as it can. The overhead a cell is the time that jobs
spend beyond that of one process, in job-seconds over cells: starting Python and loading the model
once a job is most of it, and does not grow with cells. No cell may be lost or measured twice.

    python benchmarks/launch.py [--cells 1000] [--jobs 2] [--parts 4] [-o launch.json]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from resect.files.reading import read_json
from resect.files.writing import write_json
from resect.organism import Recipe, build
from resect.runs.config import RunConfig, parse_config
from resect.runs.launch import launch_run
from resect.runs.metrics import FILE
from resect.runs.run import measure_all, open_run, plan_run, summarise_run


def configuration(folder: Path, cells: int) -> RunConfig:
    """Return a run of at least so many cells."""
    built = build(seed=0, recipe=Recipe.tiny(), root=folder, stages=("aligned",))
    # Target, random and magnitude cuts of each fraction, and the intact model.
    fractions = [
        round(0.05 * (number + 1) / (cells // 3 + 1), 7) for number in range(cells // 3 + 1)
    ]
    return parse_config(
        {
            "name": "launch",
            "models": {"aligned": str(built.stage("aligned"))},
            "data": {name: str(built.data(name)) for name in ("hazard", "preserve", "utility")},
            "targets": {"generation": {"data": "hazard", "skip": 3, "limit": 8}},
            "preserve": {"data": "preserve", "limit": 8},
            "attack": {"name": "prefill", "tokens": 3},
            "evaluation": {
                "probes": {"generation": "hazard", "utility": "utility"},
                "limit": 1,
                "max_new_tokens": 1,
            },
            "studies": {"compactness": {"fractions": fractions}},
        },
        "launch",
    )


def studies(config: RunConfig, run: Path) -> Any:
    return read_json(summarise_run(config, run))["studies"]


def counted(run: Path) -> Counter[str]:
    """Return how often each cell was measured."""
    lines = (run / FILE).read_text(encoding="utf-8").splitlines()
    return Counter(json.loads(line)["cell"] for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--parts", type=int, default=4)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = configuration(Path(folder) / "zoo", options.cells)
        cells = [cell.key for cell in plan_run(config)]
        alone, launched = Path(folder) / "alone", Path(folder) / "launched"
        open_run(config, alone, resume=False)
        start = time.perf_counter()
        measure_all(config, alone, jobs=1)
        seconds_of_one = time.perf_counter() - start
        open_run(config, launched, resume=False)
        start = time.perf_counter()
        launch_run(config, launched, launcher="local", jobs=options.jobs, parts=options.parts)
        many = time.perf_counter() - start
        seen = counted(launched)
        measured = {
            "cells": len(cells),
            "jobs": options.jobs,
            "parts": options.parts,
            "seconds_alone": round(seconds_of_one, 2),
            "seconds_launched": round(many, 2),
            "seconds_a_cell_alone": seconds_of_one / len(cells),
            "overhead_a_cell": (many * options.jobs - seconds_of_one) / len(cells),
            "lost": sorted(set(cells) - set(seen)),
            "twice": sorted(key for key, count in seen.items() if count > 1),
            "equal_results": studies(config, alone) == studies(config, launched),
        }
    print(json.dumps(measured, indent=1))
    if options.output:
        write_json(options.output, measured)


if __name__ == "__main__":
    main()
