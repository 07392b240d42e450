"""Options of `resect study run --launcher`, and `resect study status`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import typer

from resect.cli._show import note, progress, say, table
from resect.cli._so_far import so_far
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
Track = Annotated[
    str | None,
    typer.Option(help="Send each cell's numbers to wandb, tensorboard, mlflow, trackio."),
]


class Asked(NamedTuple):
    """What the options say of processes and jobs, and what each job gets."""

    launcher: Literal["slurm", "local"] | None
    jobs: int
    parts: int | None
    wait: bool
    partition: str
    minutes: int
    gpus: int | None
    memory: float
    cpus: int


def measured(config: RunConfig, output: Path, asked: Asked, track: str | None) -> bool:
    """Measure a run's cells here or by a scheduler; return whether all are done."""
    from resect.metrics import tracking
    from resect.run import measure_all

    facts = {"name": config.name, "subject": config.subject, "target": config.target}
    with (
        progress("measuring model variants", so_far=so_far(output)) as update,
        tracking(track, output, facts) as send,
    ):

        def both(done: int, total: int) -> None:
            update(done, total)
            send(done, total)

        if asked.launcher is None:
            measure_all(config, output, jobs=asked.jobs, on_progress=both)
            return True
        from resect.launch import Resources, launch_run

        done = launch_run(
            config,
            output,
            launcher=asked.launcher,
            jobs=asked.jobs,
            parts=asked.parts,
            resources=Resources(
                asked.partition, asked.minutes, asked.gpus, asked.memory, asked.cpus
            ),
            wait=asked.wait,
            on_progress=both,
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
