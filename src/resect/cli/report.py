"""The command `resect report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from resect.cli.show import say


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
    """Add the command."""
    app.command(
        epilog="Example: [bold]resect report resect-demo[/bold], or [bold]resect report "
        "--compare run-a run-b -o side-by-side[/bold]"
    )(report)
