"""The command that walks the (p, q) frontier of any model: sweep."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from resect.cli._show import note, progress, say, table
from resect.records import Format


def sweep(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Checkpoint folder or Hub id[@rev].")
    ],
    target: Annotated[
        str, typer.Option(metavar="SPEC", help="The behaviour: prompts with its answers.")
    ],
    preserve: Annotated[str, typer.Option(metavar="SPEC", help="What is protected.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the run.")],
    evaluation: Annotated[
        str | None,
        typer.Option("--eval", metavar="SPEC", help="Prompts asked; else the target's own split."),
    ] = None,
    utility: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="Questions with an answer key; else the likelihood of the preserve set.",
        ),
    ] = None,
    contrast: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help="Answers of the same style whose score is subtracted."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Also rank again after so many parts.")] = 1,
    grid: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML with fractions (q), protected (p), scopes."),
    ] = None,
    budget: Annotated[
        float, typer.Option(min=0, max=1, help="Largest relative drop of utility.")
    ] = 0.05,
    attack: Annotated[str, typer.Option(help="none or prefill.")] = "prefill",
    prefill_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of the answer that open a reply.")
    ] = 10,
    phrase: Annotated[str | None, typer.Option(help="Opens replies instead of the answer.")] = None,
    judge: Annotated[str, typer.Option(help="Judge of the replies.")] = "keyword",
    format: Annotated[Format, typer.Option(help="How prompts are put.")] = "chat",
    skip: Annotated[int, typer.Option(min=0, help="Response tokens not scored.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Most examples to score.")] = None,
    prompts: Annotated[int | None, typer.Option(min=1, help="Most prompts a probe.")] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="Seed of the draws; may be given again.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print cells, memory and time; do nothing.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run.")] = False,
) -> None:
    """Measure a grid of cuts, choose one within the utility budget, report it on other prompts."""
    from resect.cli._planning import show_plan
    from resect.report import build_report
    from resect.run import measure_all, open_run, summarise_run
    from resect.sweep import SweepRequest, chosen_rows, sweep_config

    start = time.perf_counter()
    config = sweep_config(
        SweepRequest(
            model=model,
            target=target,
            preserve=preserve,
            evaluation=evaluation,
            utility=utility,
            contrast=contrast,
            rounds=rounds,
            grid=grid,
            attack=attack,
            prefill_tokens=prefill_tokens,
            phrase=phrase,
            judge=judge,
            format=format,
            skip=skip,
            limit=limit,
            prompts=prompts,
            budget=budget,
            seeds=tuple(seed or (0,)),
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
        )
    )
    if dry_run:
        show_plan(config)
        return
    open_run(config, output, resume=resume)
    with progress("measuring model variants") as update:
        measure_all(config, output, jobs=1, on_progress=update)
    results = summarise_run(config, output, seconds=time.perf_counter() - start)
    report = build_report(output)
    _show(chosen_rows(results), budget)
    note(f"done in {time.perf_counter() - start:.0f} s")
    say(str(report))


def _show(rows: list[dict[str, object]], budget: float) -> None:
    if not rows:
        say(f"no cut of the grid lowers the behaviour at a utility drop of at most {budget:g}")
        return
    names = ("split", "scope", "method", "p", "q", "removed_fraction", "harm_drop", "utility_drop")
    table("chosen cut", [{name: row[name] for name in names} for row in rows])
    note("chosen on the selection half; the numbers to quote are those of the test half")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog="Example: [bold]resect sweep ./my-model --target harm.jsonl --preserve "
        "alpaca_cleaned --utility triviaqa --prompts 500 -o frontier[/bold]"
    )(sweep)
