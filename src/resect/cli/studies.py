"""Commands that run studies and build reports: demo, study, report."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resect.cli._launching import (
    Asked,
    Cpus,
    Gpus,
    Launching,
    Mem,
    Minutes,
    Partition,
    Parts,
    Track,
    Wait,
    measured,
    study_status,
)
from resect.cli._show import note, progress, say, table
from resect.cli._so_far import so_far

if TYPE_CHECKING:
    from resect.cells import Cell
    from resect.config import RunConfig
    from resect.run import Shard

study_app = typer.Typer(no_args_is_help=True, help="Studies: a claim, its controls, its verdict.")
Jobs = Annotated[int | None, typer.Option("-j", "--jobs", min=1, help="Worker processes.")]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change the configuration: models.aligned=./my-model"
    ),
]


def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the run.")] = Path(
        "resect-demo"
    ),
    seed: Annotated[int, typer.Option(help="First seed.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="One seed instead of three.")] = False,
    jobs: Jobs = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="How many organisms; 3, or 1 with --quick.")
    ] = None,
    study: Annotated[
        list[str] | None, typer.Option(help="A study to run, once or more; all if left out.")
    ] = None,
) -> None:
    """Run the whole pipeline on the embedded organism; ends with the path of the report."""
    from resect.claims import claimed
    from resect.demo import build_organisms, demo_config
    from resect.report import build_report
    from resect.run import measure_all, open_run, summarise_run

    start = time.perf_counter()
    chosen = range(seed, seed + (seeds or (1 if quick else 3)))
    workers = jobs or os.cpu_count() or 1
    config = demo_config(tuple(chosen), quick=quick, studies=study)
    open_run(config, output, resume=True)
    with claimed(output):
        with progress("training organisms") as update:
            build_organisms(chosen, quick=quick, jobs=workers, on_progress=update)
        note(f"organisms ready after {time.perf_counter() - start:.0f} s")
        with progress("measuring model variants", so_far=so_far(output)) as update:
            measure_all(config, output, jobs=workers, on_progress=update)
        summarise_run(config, output, seconds=time.perf_counter() - start)
        _finish(output, build_report(output), start)


def _finish(run: Path, report: Path, start: float) -> None:
    from resect.store import read_json

    claims = read_json(run / "results.json")["claims"]
    table(
        "verdicts",
        [
            {"study": claim["study"], "claim": claim["claim"], "verdict": claim["verdict"]}
            | {"effect": _interval(claim["effect"])}
            for claim in claims
        ],
    )
    note(f"done in {time.perf_counter() - start:.0f} s")
    say(str(report))


def _interval(effect: dict[str, Any]) -> str:
    value, low, high = effect["value"], effect["low"], effect["high"]
    if value is None:
        return "–"
    if effect["name"].endswith("(×)"):
        bounds = "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"
        return f"{value:.2f} ×{bounds}"
    bounds = "" if low is None or high is None else f" [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{100 * value:.1f} %{bounds}"


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
    from resect.recipes import PREFIX, recipe_names, recipe_title
    from resect.studies import STUDIES
    from resect.studies._claims import rules_of

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
    from resect.recipes import PREFIX, recipe_names, recipe_text
    from resect.studies import STUDIES
    from resect.studies._template import template

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
    from resect.claims import claimed
    from resect.cli._planning import show_plan
    from resect.launch import refuse_busy
    from resect.recipes import read_config
    from resect.report import build_report
    from resect.run import open_run, parse_shard, plan_run, summarise_run

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
        with claimed(output, (part.index + 1, part.count)):
            _measure_part((config, output), cells, part)
        return
    asked = Asked(launcher, jobs or 1, parts, wait, partition, minutes, gpus, mem, cpus)
    with claimed(output):
        if not measured(config, output, asked, track):
            return
        summarise_run(config, output, seconds=time.perf_counter() - start)
        _finish(output, build_report(output), start)


def _measure_part(of: tuple[RunConfig, Path], cells: list[Cell], part: Shard) -> None:
    from resect.pipeline import needed_keep, run_cells

    config, run = of
    own = part.of(cells)
    with progress(f"shard {part.index + 1}/{part.count}") as update:
        run_cells(config, run, own, keep=needed_keep(config, cells), on_progress=update)
    say(f"{len(own)} of {len(cells)} cells are done")
    note(f"when all are: resect study run {run / 'config.yaml'} -o {run} --resume")


def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Folder of a run, or of several.")
    ],
    compare: Annotated[
        bool, typer.Option("--compare", help="Put two runs or more side by side.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder of the comparison.")
    ] = None,
    show_replies: Annotated[
        bool, typer.Option("--show-replies", help="Show what the models answered.")
    ] = False,
) -> None:
    """Build report.html, .json and .md again from the records; needs no torch."""
    from resect.errors import InputError
    from resect.report import build_comparison, build_report

    if compare:
        if show_replies:
            raise InputError(
                "a comparison shows no replies", fix="leave out --show-replies, or report one run"
            )
        say(str(build_comparison(folders, output or Path("resect-comparison"))))
        return
    if len(folders) != 1 or output is not None:
        raise InputError(
            "a report stands in the folder of its run, and is of one run",
            got=" ".join(str(folder) for folder in folders),
            fix="give one folder without -o, or add --compare",
        )
    say(str(build_report(folders[0], show_replies=show_replies)))


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="Example: [bold]resect demo --quick -o first-look[/bold]")(demo)
    app.command(
        epilog="Example: [bold]resect report resect-demo[/bold], or [bold]resect report "
        "--compare run-a run-b -o side-by-side[/bold]"
    )(report)
    study_app.command("status", epilog="Example: [bold]resect study status run[/bold]")(
        study_status
    )
    app.add_typer(study_app, name="study")
