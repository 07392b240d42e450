"""Benchmarks of the method itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from resect.cli.options import NewFolder
from resect.cli.show import note, progress, say, table

bench = typer.Typer(no_args_is_help=True, help="Benchmarks of the method itself.")


@bench.command(
    "localise",
    epilog="Example: [bold]resect bench localise --quick -o bench[/bold]",
)
def localise(
    output: NewFolder,
    methods: Annotated[
        str, typer.Option(help="Score methods with commas between; all by default.")
    ] = "",
    plants: Annotated[str, typer.Option(help="Plants with commas between; all by default.")] = "",
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds.")] = 3,
    quick: Annotated[bool, typer.Option("--quick", help="One plant and one seed.")] = False,
    jobs: Annotated[int, typer.Option(min=0, help="Processes; 0 for one a core.")] = 0,
) -> None:
    """Ask every method for weights that are known to carry a behaviour.

    Selectivity is the harm that a cut along the method's ranking takes away minus what it takes
    from a benign craft and from utility, on average over cuts of |S|/64 to |S| weights.
    """
    from resect.planted.benchmark import Request, localise

    request = Request(_words(methods), _words(plants), seeds, quick, jobs)
    with progress("planting and cutting") as update:
        outcome = localise(request, output, update)
    shown = [
        "selectivity", "gain", "hazard_area", "craft_area", "utility_area",
        "average_precision", "precision_tenth", "decoy_share_tenth",
    ]  # fmt: skip
    rows = [
        {"method": row["variant"]} | {name: row[name] for name in shown} for row in outcome.summary
    ]
    table("planted truth, by selectivity", rows)
    say(f"{output}/leaderboard.md")
    note("intervals over seeds and every cut are in results.json and records/")


@bench.command(
    "verdicts",
    epilog="Example: [bold]resect bench verdicts --quick --studies transfer -o bench[/bold]",
)
def verdicts(
    output: NewFolder,
    *,
    studies: Annotated[str, typer.Option(help="Studies with commas between; all by default.")] = "",
    draws: Annotated[int, typer.Option(min=1, help="Simulated runs of each world.")] = 200,
    quick: Annotated[
        bool, typer.Option("--quick", help="Ten runs of each world, with plain answers alone.")
    ] = False,
    boundary: Annotated[
        int,
        typer.Option(
            min=0, help="Runs of each claim at its boundary, without the look at each model alone."
        ),
    ] = 0,
    jobs: Annotated[int, typer.Option(min=0, help="Processes; 0 for one a core.")] = 0,
    page: Annotated[
        Path | None, typer.Option(help="A page whose marked place is to hold the table too.")
    ] = None,
) -> None:
    """Count how often each claim is supported when it is true, when it is not, and in between.

    Runs are simulated from worlds of which the truth is known, and weighed as real ones are.
    """
    from resect.planted.verdicts.benchmark import Request, verdicts
    from resect.studies.models import over_models

    request = Request(_words(studies), draws, quick, jobs, boundary)
    with progress("simulating runs") as update:
        outcome = verdicts(request, output, over_models, update, page=page)
    rows = [
        {
            "study": total.study, "claim": total.stated + 1, "of": total.statement,
            "truth": total.truth,
            "worlds": total.worlds, "supported": total.supported / total.draws,
            "at worst": total.worst_share, "where": total.worst,
        }
        for total in outcome.totals
    ]  # fmt: skip
    table("how often claims are supported, by what is true", rows)
    say(f"{output}/verdicts.md")
    note("every world, with its intervals, is in results.json")


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(bench, name="bench")
