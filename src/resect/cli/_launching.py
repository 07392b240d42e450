"""Options of `resect study run --launcher`, and `resect study status`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import typer

from resect.cli._show import note, say, table
from resect.config import RunConfig

Launching = Annotated[
    Literal["slurm", "local"] | None,
    typer.Option("--launcher", help="Give the cells to Slurm, or to jobs on this machine."),
]
Parts = Annotated[
    int | None, typer.Option(min=1, help="--launcher: jobs in all, of which -j at a time.")
]
Partition = Annotated[str, typer.Option(help="slurm: the partition.")]
Minutes = Annotated[
    int, typer.Option("--time", min=0, help="slurm: minutes a job; 0 takes the plan's.")
]
Gpus = Annotated[int | None, typer.Option(min=0, help="slurm: GPUs a job; one if left out.")]
Mem = Annotated[float, typer.Option(min=0, help="slurm: GiB of CPU memory; 0 takes the plan's.")]
Cpus = Annotated[int, typer.Option(min=1, help="--launcher: CPU cores a job.")]
Wait = Annotated[
    bool, typer.Option("--wait/--no-wait", help="slurm: wait for the jobs and write the report.")
]


class Asked(NamedTuple):
    """What the options say that each job gets."""

    partition: str
    minutes: int
    gpus: int | None
    memory: float
    cpus: int


def launched(
    config: RunConfig,
    output: Path,
    how: tuple[Literal["slurm", "local"], int, int | None, bool],
    asked: Asked,
    on_progress: Callable[[int, int], None],
) -> bool:
    """Give a run's cells to a scheduler; return whether all are done."""
    from resect.launch import Resources, launch_run

    launcher, jobs, parts, wait = how
    done = launch_run(
        config,
        output,
        launcher=launcher,
        jobs=jobs,
        parts=parts,
        resources=Resources(*asked),
        wait=wait,
        on_progress=on_progress,
    )
    if not done:
        say(f"submitted; look with: resect study status {output}")
        note(f"when all are done: resect study run {output / 'config.yaml'} -o {output} --resume")
    return done


def study_status(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run.")],
) -> None:
    """Say which cells of a run are done, running or failed, and where the jobs' logs are."""
    from resect.launch import status

    found = status(folder)
    table("studies", found["studies"])
    table("parts", found["parts"])
    if found["parts"]:
        note(f"logs are under {folder}; a cell that two studies share is counted in both")
