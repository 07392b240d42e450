"""The command `resect report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from resect.cli.show import say
from resect.records import Row


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="DIR...", help="Folder of a run or an audit, or several."),
    ],
    compare: Annotated[
        bool, typer.Option("--compare", help="Put runs, or evaluations, side by side.")
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
    from resect.files.folders import kind_of
    from resect.report import build_comparison, build_report

    kinds = [kind_of(folder) for folder in folders]
    if compare and any(kind in ("evaluation", "sets") for kind in kinds) and not show_replies:
        say(str(_evaluations(folders, output or Path("resect-comparison"))))
        return
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
    if kinds == ["audit"]:
        from resect.report.audit import build_audit_report

        say(str(build_audit_report(folders[0])))
        return
    say(str(build_report(folders[0], show_replies=show_replies)))


def _evaluations(folders: list[Path], output: Path) -> Path:
    """Put evaluations side by side.

    Raises:
        InputError: A folder is no evaluation.
    """
    from resect.errors import InputError
    from resect.evaluation.differences import (
        arms_of,
        differences,
        differing_settings,
        judge_errors_of,
    )
    from resect.files.folders import WORDS, kind_of
    from resect.report.evaluations import build_evaluations

    others = {folder: kind_of(folder) for folder in folders}
    odd = {folder: kind for folder, kind in others.items() if kind not in ("evaluation", "sets")}
    if odd:
        raise InputError(
            "evaluations are put side by side with evaluations alone",
            got=", ".join(f"{folder}: {WORDS[kind]}" for folder, kind in odd.items()),
            allowed="folders that resect eval wrote, or runs alone",
        )
    arms = arms_of(folders)
    rows = [cast("Row", row) for row in differences(arms)]
    errors = [cast("Row", row) for row in judge_errors_of(folders)]
    return build_evaluations(rows, differing_settings(arms), output, errors)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog="Example: [bold]resect report resect-demo[/bold], or [bold]resect report "
        "--compare run-a run-b -o side-by-side[/bold]"
    )(report)
