"""The command `resect organism build`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from resect.cli.show import pin_organism, progress, say

organism = typer.Typer(no_args_is_help=True, help="The embedded model organism.")


@organism.command(
    "build", epilog="Example: [bold]resect organism build zoo --stage all --seed 1[/bold]"
)
def build_organism(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for stages and data.")],
    stage: Annotated[
        list[str] | None, typer.Option(help="base, aligned, benign_tuned, misaligned or all.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of world, training and data.")] = 0,
    share: Annotated[
        float,
        typer.Option(
            help="Share of modifiers, 0 to 1, whose hazardous words all hazardous domains share."
        ),
    ] = 1.0,
    joint: Annotated[
        bool,
        typer.Option(
            "--hazard-in-benign-tables",
            help="Make hazardous recipes those of benign things: no weights hold hazards alone.",
        ),
    ] = False,
) -> None:
    """Train the organism's stages into ordinary checkpoint folders."""
    pin_organism()
    from resect.organism import STAGES, Recipe, build

    recipe = Recipe(share=share, apart=not joint)
    stages = list(STAGES) if not stage or "all" in stage else stage
    with progress("training") as update:
        built = build(
            seed=seed,
            stages=tuple(stages),
            recipe=recipe,
            root=folder,
            on_progress=lambda _label, done, total: update(done, total),
        )
    for name in stages:
        say(str(built.stage(name)))


def register(app: typer.Typer) -> None:
    """Add the commands of `resect organism`."""
    app.add_typer(organism, name="organism")
