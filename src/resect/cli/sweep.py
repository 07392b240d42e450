"""The command that walks the (p, q) frontier of any model: sweep."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resect.cli.options import (
    BatchSize,
    Budget,
    CheckedCuts,
    Columns,
    DecodingName,
    DryRun,
    ExampleLimit,
    IncludePath,
    MaxNewTokens,
    Model,
    PromptFormat,
    PromptLimit,
    Questions,
    Resume,
    Rounds,
    RunFolder,
    SearchName,
    Skip,
    TogetherCuts,
    asking_with,
    refuse_idle_columns,
    sets_with,
    with_columns,
    with_task,
)
from resect.cli.show import measuring, note, say, table

if TYPE_CHECKING:
    from resect.runs.config import RunConfig


Target = Annotated[
    str, typer.Option(metavar="SPEC", help="The behaviour: prompts with its answers.")
]
Preserve = Annotated[str, typer.Option(metavar="SPEC", help="What is protected.")]
Evaluation = Annotated[
    str | None,
    typer.Option("--eval", metavar="SPEC", help="Prompts asked; else the target's own split."),
]
Utility = Annotated[
    str | None,
    typer.Option(
        metavar="SPEC",
        help="Questions with an answer key, or lm-eval:TASK; else the preserve set's likelihood.",
    ),
]
Contrast = Annotated[
    str | None,
    typer.Option(metavar="SPEC", help="Answers of the same style whose score is subtracted."),
]
Grid = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="YAML with fractions (q), protected (p), scopes, unit."),
]
Attack = Annotated[str, typer.Option(help="none or prefill.")]
PrefillTokens = Annotated[int, typer.Option(min=1, help="Tokens of the answer that open a reply.")]
Phrase = Annotated[str | None, typer.Option(help="Opens replies instead of the answer.")]
Judge = Annotated[str, typer.Option(help="Judge of the replies; as eval --judge.")]
Seeds = Annotated[list[int] | None, typer.Option(help="Seed of the draws; may be given again.")]


def sweep(
    model: Model,
    *,
    target: Target,
    preserve: Preserve,
    output: RunFolder,
    evaluation: Evaluation = None,
    utility: Utility = None,
    questions: Questions = None,
    include_path: IncludePath = None,
    contrast: Contrast = None,
    rounds: Rounds = 1,
    grid: Grid = None,
    budget: Budget = 0.05,
    attack: Attack = "prefill",
    prefill_tokens: PrefillTokens = 10,
    phrase: Phrase = None,
    judge: Judge = "keyword",
    format: PromptFormat = "chat",
    skip: Skip = 0,
    limit: ExampleLimit = None,
    prompts: PromptLimit = None,
    seed: Seeds = None,
    max_new_tokens: MaxNewTokens = 256,
    batch_size: BatchSize = 16,
    together: TogetherCuts = 1,
    check_together: CheckedCuts = 0,
    search: SearchName = "full",
    decoding: DecodingName = "fast",
    columns: Columns = None,
    dry_run: DryRun = False,
    resume: Resume = False,
) -> None:
    """Measure a grid of cuts, choose one within the utility budget, report it on other prompts."""
    from resect.runs.sweep import SweepRequest, sweep_config

    refuse_idle_columns(columns, target, preserve, evaluation, utility, contrast)
    request = SweepRequest(
        model=model,
        **sets_with(columns, target=target, preserve=preserve, evaluation=evaluation),
        utility=with_task(with_columns(utility, columns), questions, include_path),
        contrast=with_columns(contrast, columns),
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
        **asking_with(batch_size, together, check_together, search, decoding),
    )
    _run(sweep_config(request), output, resume=resume, dry_run=dry_run)


def _run(config: RunConfig, output: Path, *, resume: bool, dry_run: bool) -> None:
    from resect.cli.plan import show_plan
    from resect.runs.run import carry_out
    from resect.runs.sweep import chosen_rows

    if dry_run:
        show_plan(config)
        return
    start = time.perf_counter()
    results = carry_out(config, output, resume=resume, started=start, watch=measuring(output))
    if results is not None:
        _show(chosen_rows(results))
        note(f"done in {time.perf_counter() - start:.0f} s")
        say(str(output / "report.html"))


def _show(rows: list[dict[str, object]]) -> None:
    if not rows:
        say("no cut of the grid lowers the behaviour within the utility budget")
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
