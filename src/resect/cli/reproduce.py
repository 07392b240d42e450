"""The command that does a run again: reproduce."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resect.cli.show import note, pin_organism, progress, say, table
from resect.errors import InputError
from resect.files.reading import read_json
from resect.machine.products import CHOICE, ONEDNN, TORCH

if TYPE_CHECKING:
    from resect.runs.reproduce import Compared

CODES = {"identical": 0, "within rounding": 0, "differs": 3, "cannot check": 4}


def reproduce(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="New folder; else RUN-again.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Compare software and data alone; run nothing.")
    ] = False,
    jobs: Annotated[int, typer.Option("-j", "--jobs", min=1, help="Worker processes.")] = 1,
) -> int:
    """Make a run again and grade every difference; exit 0 if the same, 3 if not, 4 if unknown."""
    _take_path_of(run)
    from resect.runs.reproduce import Reproduction, check_inputs
    from resect.runs.reproduce import reproduce as repeat

    if check:
        reproduction = Reproduction(tuple(check_inputs(run)), reran=False)
    else:
        again = output or run.with_name(f"{run.resolve().name}-again")
        with progress("measuring model variants again") as update:
            reproduction = repeat(run, again, jobs=jobs, on_progress=update)
    _show(reproduction.rows)
    if not check and not reproduction.reran:
        note("not run again: a data file is missing or is not the one that the run used")
    counts = {grade: sum(row.grade == grade for row in reproduction.rows) for grade in CODES}
    say(", ".join(f"{count} {grade}" for grade, count in counts.items() if count))
    say(f"{'results' if reproduction.reran else 'inputs'}: {reproduction.grade}")
    return CODES[reproduction.grade]


def _take_path_of(run: Path) -> None:
    """Have products made as the run made them; what is no run is complained of later."""
    try:
        manifest = read_json(run / "manifest.json")
    except (InputError, OSError):
        return
    if isinstance(manifest, dict):
        os.environ[CHOICE] = ONEDNN if manifest.get("products") == ONEDNN else TORCH
        if manifest.get("portable") is True:
            pin_organism()


def _show(rows: tuple[Compared, ...]) -> None:
    kinds = dict.fromkeys(row.kind for row in rows)
    for kind in kinds:
        rows_of_kind = [row for row in rows if row.kind == kind]
        odd = [row for row in rows_of_kind if row.grade != "identical"]
        say(f"{kind}: {len(rows_of_kind) - len(odd)} of {len(rows_of_kind)} identical")
        table("", [{"what": r.name, "grade": r.grade, "then": r.before, "now": r.now} for r in odd])


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog="Example: [bold]resect reproduce resect-demo -o again -j 2[/bold]")(
        reproduce
    )
