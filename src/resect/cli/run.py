"""The command that needs no configuration: run."""

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
    IncludePath,
    ModelId,
    Questions,
    Resume,
    Rounds,
    RunFolder,
    SearchName,
    TogetherCuts,
    asking_with,
    refuse_idle_columns,
    with_columns,
    with_task,
)
from resect.cli.show import measuring, note, say, table
from resect.records import Measure

if TYPE_CHECKING:
    from resect.runs.auto import Planned
    from resect.runs.config import RunConfig
    from resect.weights.mask import Mask

SHOWN = (
    "split", "scope", "method", "p", "q", "removed_fraction", "harm_drop", "harm_drop_low",
    "utility_drop", "utility_drop_high",
)  # fmt: skip


Target = Annotated[
    str | None, typer.Option(metavar="SPEC", help="The behaviour; else a built-in set.")
]
Preserve = Annotated[
    str | None, typer.Option(metavar="SPEC", help="What is protected; else a built-in set.")
]
Contrast = Annotated[
    str | None, typer.Option(metavar="SPEC", help="Harmless answers in the same style.")
]
Utility = Annotated[
    str | None,
    typer.Option(
        metavar="SPEC",
        help="Questions with a key, all asked, or lm-eval:TASK; else the preserve set's loss.",
    ),
]
Limit = Annotated[int, typer.Option(min=1, help="Most examples to score.")]
Prompts = Annotated[int, typer.Option(min=1, help="Most prompts a set; not of --utility.")]
Seed = Annotated[int, typer.Option(help="Seed of the draws.")]
Judge = Annotated[str | None, typer.Option(help="exact, keyword or fitted:FILE; else by the data.")]
MeasureName = Annotated[
    Measure | None,
    typer.Option(
        "--measure",
        help="What harm is read from; else what a first look shows to see a cut of this model.",
    ),
]
MaxNewTokens = Annotated[int | None, typer.Option(min=1)]
DataDir = Annotated[Path | None, typer.Option(help="Folder with local copies of public sets.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what is chosen and why; do nothing.")]


def run(
    model: ModelId,
    *,
    output: RunFolder = Path("resect-run"),
    target: Target = None,
    preserve: Preserve = None,
    contrast: Contrast = None,
    utility: Utility = None,
    questions: Questions = None,
    include_path: IncludePath = None,
    budget: Budget = 0.05,
    rounds: Rounds = 1,
    limit: Limit = 256,
    prompts: Prompts = 200,
    seed: Seed = 0,
    judge: Judge = None,
    measure: MeasureName = None,
    max_new_tokens: MaxNewTokens = None,
    batch_size: BatchSize = 16,
    together: TogetherCuts = 1,
    check_together: CheckedCuts = 0,
    search: SearchName = "full",
    decoding: DecodingName = "fast",
    data_dir: DataDir = None,
    columns: Columns = None,
    dry_run: DryRun = False,
    resume: Resume = False,
) -> None:
    """Find, choose, cut and measure with nothing to configure; ends with the report's path."""
    from resect.runs import auto

    start = time.perf_counter()
    refuse_idle_columns(columns, target, preserve, contrast, utility)
    request = auto.AutoRequest(
        model=model,
        target=with_columns(target or auto.TARGET, columns),
        preserve=with_columns(preserve or auto.PRESERVE, columns),
        contrast=with_columns(contrast, columns),
        utility=with_task(with_columns(utility, columns), questions, include_path),
        budget=budget,
        rounds=rounds,
        limit=limit,
        prompts=prompts,
        seed=seed,
        judge=judge,
        measure=measure,
        max_new_tokens=max_new_tokens,
        **asking_with(batch_size, together, check_together, search, decoding),
        data_dir=data_dir,
    )
    planned = auto.plan_auto(request, output)
    _tell(*planned.reasons, *(auto.expected_lines(planned) if dry_run else ()))
    if dry_run:
        return
    planned = auto.look_through(planned, output, resume=resume)
    _tell(*planned.reasons, *auto.expected_lines(planned))
    mask = auto.run_auto(planned, output, resume=resume, watch=measuring(output), started=start)
    _finish(planned, output, mask, start)


def _tell(*lines: str) -> None:
    for line in lines:
        note(line)


def _finish(planned: Planned, output: Path, mask: Mask | None, start: float) -> None:
    """Say what was chosen, where the report is, and how long it took since `start`."""
    from resect.report.harmless import harmless_sentence
    from resect.runs.auto import MASK
    from resect.runs.chosen import rows_of_choice

    config = planned.config
    rows = rows_of_choice(config, output, output / "results.json")
    table("chosen cut", [{name: row[name] for name in SHOWN} for row in rows])
    supported = _say_verdict(config, output)
    if mask is None:
        say("no cut of the grid lowers the behaviour within the utility budget")
    else:
        mask_path = output / MASK
        say(
            f"{mask_path}: {mask.count:,} weights, {100 * mask.fraction:.4g} % of the prunable ones"
        )
        note("the numbers to quote are those of the test half")
        _tell(*filter(None, [harmless_sentence(output)]))
        if supported:
            model = config.models[config.subject]
            note(f"next: resect prune {model} {mask_path} --run {output} -o CUT")
        else:
            note(
                "the mask is kept for a look and is no finding; try --contrast, more prompts, or "
                "resect sweep with other q and p"
            )
    note(f"done in {time.perf_counter() - start:.0f} s")
    say(str(output / "report.html"))


def _say_verdict(config: RunConfig, output: Path) -> bool:
    """Print the verdict on the chosen cut; return whether it is supported."""
    from resect.runs.chosen import verdict_of

    verdict = verdict_of(config, output / "results.json")
    say(f"{verdict.verdict}: {verdict.claim} {verdict.reason}")
    if verdict.verdict == "not measurable":
        note(
            "the intact model must show the behaviour, and what it is measured by must tell that "
            "model from a destroyed one; try without --judge, or --measure likelihood"
        )
    return verdict.verdict == "supported"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog="Example: [bold]resect run meta-llama/Llama-3.1-8B-Instruct -o run[/bold], or "
        "[bold]resect run ./my-model --target harm.jsonl --preserve benign.jsonl[/bold]"
    )(run)
