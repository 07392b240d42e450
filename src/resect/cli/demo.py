"""The command `resect demo`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from resect.cli.options import Jobs, RunFolder, SearchName
from resect.cli.show import measuring, note, pin_organism, progress, show_verdicts


def demo(
    output: RunFolder = Path("resect-demo"),
    seed: Annotated[int, typer.Option(help="First seed.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="One seed instead of five.")] = False,
    jobs: Jobs = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="How many organisms; 5, or 1 with --quick.")
    ] = None,
    study: Annotated[
        list[str] | None, typer.Option(help="A study to run, once or more; all if left out.")
    ] = None,
    search: SearchName = "full",
    portable: Annotated[
        bool,
        typer.Option(
            "--portable/--native",
            help="The same bits on every x86-64 machine, or this processor's own.",
        ),
    ] = True,
) -> None:
    """Run the whole pipeline on the embedded organism; ends with the path of the report."""
    if portable:
        pin_organism()
    from resect.runs.demo import build_organisms, demo_config
    from resect.runs.run import Steps, carry_out

    start = time.perf_counter()
    chosen = range(seed, seed + (seeds or (1 if quick else 5)))
    workers = jobs or os.cpu_count() or 1
    config = demo_config(tuple(chosen), quick=quick, studies=study, search=search)

    def train() -> None:
        with progress("training organisms") as update:
            build_organisms(config, jobs=workers, on_progress=update)
        note(f"organisms ready after {time.perf_counter() - start:.0f} s")

    carry_out(
        config,
        output,
        resume=True,
        jobs=workers,
        started=start,
        watch=measuring(output),
        steps=Steps(prepare=train),
    )
    show_verdicts(output, start)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog="Example: [bold]resect demo --quick -o first-look[/bold]")(demo)
