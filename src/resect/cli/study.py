"""The commands of `resect study`: list, init, run, status."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from resect.cli.options import DryRun, Jobs, Resume, RunFolder
from resect.cli.show import (
    OnProgress,
    measuring,
    note,
    progress,
    say,
    show_verdicts,
    table,
)

if TYPE_CHECKING:
    from resect.runs.config import RunConfig
    from resect.runs.run import Steps
    from resect.runs.workers import Shard
    from resect.studies.cells import Cell


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
Memory = Annotated[
    float, typer.Option(help="GiB of the device that --dry-run plans for; 0 assumes.")
]
Tflops = Annotated[
    float, typer.Option(help="10¹² operations a second that --dry-run plans with; 0 assumes.")
]
Mem = Annotated[float, typer.Option(min=0, help="slurm: GiB of CPU memory; 0 takes the plan's.")]
Cpus = Annotated[int, typer.Option(min=1, help="--launcher: CPU cores a job.")]
Wait = Annotated[
    bool, typer.Option("--wait/--no-wait", help="slurm: wait for the jobs and write the report.")
]
Track = Annotated[
    str | None,
    typer.Option(help="Send each cell's numbers to wandb, tensorboard, mlflow, trackio."),
]


class Launch(NamedTuple):
    """What the options say of a scheduler, and what each job gets."""

    launcher: Literal["slurm", "local"]
    jobs: int
    parts: int | None
    wait: bool
    partition: str
    minutes: int
    gpus: int | None
    memory: float
    cpus: int


def _launched(config: RunConfig, output: Path, launch: Launch, update: OnProgress) -> bool:
    """Give a run's cells to a scheduler; return whether all are done."""
    from resect.runs.launch import Resources, launch_run

    return launch_run(
        config,
        output,
        launcher=launch.launcher,
        jobs=launch.jobs,
        parts=launch.parts,
        resources=Resources(
            launch.partition, launch.minutes, launch.gpus, launch.memory, launch.cpus
        ),
        wait=launch.wait,
        on_progress=update,
    )


@contextlib.contextmanager
def _tracked(config: RunConfig, output: Path, tracker: str | None) -> Iterator[OnProgress]:
    """Show progress, and send each cell's numbers to a tracker if one is named."""
    from resect.runs.metrics import tracking

    description = {"name": config.name, "subject": config.subject, "target": config.target}
    with measuring(output)() as update, tracking(tracker, output, description) as send:

        def both(done: int, total: int) -> None:
            update(done, total)
            send(done, total)

        yield both


def study_status(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run.")],
) -> None:
    """Say which cells of a run are done, running or failed, and where the jobs' logs are."""
    from resect.runs.launch import status

    tables = status(folder)
    table("studies", tables["studies"])
    table("parts", tables["parts"])
    if tables["parts"]:
        note(f"logs are under {folder}; a cell that two studies share is counted in both")
    if tables["missing"]:
        note(
            f"{tables['missing']} of {tables['cells']} cells are not done; when no process is at "
            f"them: {_going_on(folder)}"
        )


study_app = typer.Typer(no_args_is_help=True, help="Studies: a claim, its controls, its verdict.")
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change the configuration: models.aligned=./my-model"
    ),
]


@study_app.command(
    "list",
    epilog="Example: [bold]resect study list[/bold], [bold]resect study list --recipes[/bold]",
)
def list_studies(
    recipes: Annotated[
        bool, typer.Option("--recipes", help="List the recipes for published models instead.")
    ] = False,
) -> None:
    """List the studies, their claims and the rules of the verdicts."""
    if recipes:
        from resect.runs.recipes import PREFIX, recipe_names, recipe_title

        table("recipes", [{"name": PREFIX + n, "what": recipe_title(n)} for n in recipe_names()])
        note("print one: resect study init NAME; run it: resect study run recipe:NAME -o DIR")
        return
    from resect.studies import STUDIES

    for name, study in STUDIES.items():
        say(f"{name}: {study.question}")
        for claim, rule in study.rules():
            say(f"    {claim}")
            say(f"        {rule}")
    note(
        "rules with the default thresholds; a lower or upper bound of an interval has to meet them"
    )


@study_app.command("init", epilog="Example: [bold]resect study init compactness > my.yaml[/bold]")
def init_study(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a study or of a recipe.")],
) -> None:
    """Print a commented configuration: one study on your own model, or a recipe to start from."""
    from resect.errors import unknown_name
    from resect.runs.recipes import PREFIX, recipe_names, recipe_text
    from resect.studies import STUDIES
    from resect.studies.template import template

    bare = name.removeprefix(PREFIX)
    if bare in recipe_names():
        typer.echo(recipe_text(bare), nl=False)
    elif name in STUDIES:
        typer.echo(template(STUDIES[name]), nl=False)
    else:
        raise unknown_name("study or recipe", name, [*STUDIES, *recipe_names()])


PlannedMemory = Annotated[
    float, typer.Option(help="GiB of the device that --dry-run plans for; 0 assumes.")
]


@study_app.command("run", epilog="Example: [bold]resect study run my.yaml -o run --resume[/bold]")
def run_study(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A YAML configuration, or recipe:NAME.")
    ],
    output: RunFolder = Path("resect-run"),
    dry_run: DryRun = False,
    memory: PlannedMemory = 0,
    tflops: Annotated[
        float, typer.Option(help="10¹² operations a second that --dry-run plans with; 0 assumes.")
    ] = 0,
    shard: Annotated[
        str | None, typer.Option(help="i/n: measure one part of the cells, and nothing else.")
    ] = None,
    resume: Resume = False,
    changes: Changes = None,
    jobs: Jobs = None,
    launcher: Launching = None,
    parts: Parts = None,
    partition: Partition = "",
    minutes: Minutes = 0,
    gpus: Gpus = None,
    mem: Mem = 0,
    cpus: Cpus = 1,
    wait: Wait = True,
    track: Track = None,
) -> None:
    """Measure what the studies of a configuration need, weigh it and write the report."""
    from resect.cli.plan import show_plan
    from resect.runs.recipes import read_config
    from resect.runs.run import carry_out, parse_shard, plan_run
    from resect.runs.searching import refuse_shared_search

    start = time.perf_counter()
    part = None if shard is None else parse_shard(shard)
    config = read_config(file, changes or ())
    cells = plan_run(config)
    if dry_run:
        show_plan(config, memory=memory, tflops=tflops, jobs=jobs or 1)
        return
    if part is not None:
        refuse_shared_search(config, "--shard")
        _measure_part(config, output, cells, part)
        return
    launch = None
    if launcher is not None:
        launch = Launch(launcher, jobs or 1, parts, wait, partition, minutes, gpus, mem, cpus)
    results = carry_out(
        config,
        output,
        resume=resume,
        jobs=jobs or 1,
        started=start,
        watch=lambda: _tracked(config, output, track),
        steps=_steps(config, output, launch),
    )
    if results is None:
        _say_submitted(output)
    else:
        show_verdicts(output, start)


def _say_submitted(output: Path) -> None:
    say(f"submitted; look with: resect study status {output}")
    note(f"when all are done: {_going_on(output)}")


def _going_on(run: Path) -> str:
    """Return the command that measures what a run lacks, weighs it and writes the report."""
    return f"resect study run {run / 'config.yaml'} -o {run} --resume"


def _steps(config: RunConfig, output: Path, launch: Launch | None) -> Steps:
    """Return what `study run` adds to a run: jobs are not worked beside, and may be launched."""
    from resect.runs.launch import refuse_busy
    from resect.runs.run import Steps

    measure = None if launch is None else partial(_launched, config, output, launch)
    return Steps(check=lambda: refuse_busy(output), measure=measure)


def _measure_part(config: RunConfig, output: Path, cells: list[Cell], shard: Shard) -> None:
    """Measure one part of the cells; other processes may measure the others meanwhile."""
    from resect.files.locking import Portion, locked
    from resect.runs.launch import refuse_busy
    from resect.runs.measure import run_cells
    from resect.runs.run import open_run
    from resect.studies.cells import is_done, needed_keep

    open_run(config, output, resume=True)
    refuse_busy(output)
    taken = shard.of(cells)
    label = f"shard {shard.index + 1}/{shard.count}"
    with locked(output, Portion(shard.index + 1, shard.count)), progress(label) as update:
        run_cells(config, output, taken, keep=needed_keep(config, cells), on_progress=update)
    say(f"{label}: its {len(taken)} cells are done, of {len(cells)} in the run")
    missing = sum(not is_done(output, cell) for cell in cells)
    if missing:
        note(
            f"{missing} cells are not done, of other shards; when those have ended, this measures "
            f"what they left and writes the report: {_going_on(output)}"
        )
    else:
        note(f"all cells are done; the report: {_going_on(output)}")


def register(app: typer.Typer) -> None:
    """Add the commands of `resect study`."""
    study_app.command("status", epilog="Example: [bold]resect study status run[/bold]")(
        study_status
    )
    app.add_typer(study_app, name="study")
