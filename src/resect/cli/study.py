"""The commands of `resect study`: list, init, run, status."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from resect.cli.options import Jobs
from resect.cli.show import finish, note, progress, say, so_far, table

if TYPE_CHECKING:
    from resect.runs.run import Shard
    from resect.studies.cells import Cell
    from resect.studies.design import RunConfig


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
    from resect.runs.metrics import tracking
    from resect.runs.run import measure_all

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
        from resect.runs.launch import Resources, launch_run

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
    from resect.runs.launch import status

    found = status(folder)
    table("studies", found["studies"])
    table("parts", found["parts"])
    if found["parts"]:
        note(f"logs are under {folder}; a cell that two studies share is counted in both")


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
    from resect.runs.recipes import PREFIX, recipe_names, recipe_title
    from resect.studies import STUDIES
    from resect.studies.study import rules_of

    if recipes:
        table("recipes", [{"name": PREFIX + n, "what": recipe_title(n)} for n in recipe_names()])
        note("print one: resect study init NAME; run it: resect study run recipe:NAME -o DIR")
        return
    for name, study in STUDIES.items():
        say(f"{name}: {study.question}")
        for claim, rule in rules_of(name):
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
        typer.echo(template(name), nl=False)
    else:
        raise unknown_name("study or recipe", name, [*STUDIES, *recipe_names()])


@study_app.command("run", epilog="Example: [bold]resect study run my.yaml -o run --resume[/bold]")
def run_study(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A YAML configuration, or recipe:NAME.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the run.")] = Path(
        "resect-run"
    ),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print cells, memory and time; do nothing.")
    ] = False,
    memory: Annotated[float, typer.Option(help="GiB of the device that --dry-run plans for.")] = 80,
    tflops: Annotated[
        float, typer.Option(help="10¹² operations a second that --dry-run plans with; 0 assumes.")
    ] = 0,
    shard: Annotated[
        str | None, typer.Option(help="i/n: measure one part of the cells, and nothing else.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run.")] = False,
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
    from resect.files.locking import Portion, locked
    from resect.report import build_report
    from resect.runs.launch import refuse_busy
    from resect.runs.recipes import read_config
    from resect.runs.run import open_run, parse_shard, plan_run, summarise_run

    start = time.perf_counter()
    config = read_config(file, changes or ())
    cells = plan_run(config)
    if dry_run:
        show_plan(config, memory=memory, tflops=tflops)
        return
    part = None if shard is None else parse_shard(shard)
    open_run(config, output, resume=resume or part is not None)
    refuse_busy(output)
    if part is not None:
        with locked(output, Portion(part.index + 1, part.count)):
            _measure_part((config, output), cells, part)
        return
    asked = Asked(launcher, jobs or 1, parts, wait, partition, minutes, gpus, mem, cpus)
    with locked(output):
        if not measured(config, output, asked, track):
            return
        summarise_run(config, output, seconds=time.perf_counter() - start)
        finish(output, build_report(output), start)


def _measure_part(of: tuple[RunConfig, Path], cells: list[Cell], part: Shard) -> None:
    from resect.runs.measure import run_cells
    from resect.studies.cells import needed_keep

    config, run = of
    own = part.of(cells)
    with progress(f"shard {part.index + 1}/{part.count}") as update:
        run_cells(config, run, own, keep=needed_keep(config, cells), on_progress=update)
    say(f"{len(own)} of {len(cells)} cells are done")
    note(f"when all are: resect study run {run / 'config.yaml'} -o {run} --resume")


def register(app: typer.Typer) -> None:
    """Add the commands of `resect study`."""
    study_app.command("status", epilog="Example: [bold]resect study status run[/bold]")(
        study_status
    )
    app.add_typer(study_app, name="study")
