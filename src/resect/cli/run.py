"""The command that needs no configuration: run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resect.cli.options import BatchSize, Budget, ModelId, Resume, Rounds, RunFolder
from resect.cli.show import measuring, note, say, table

if TYPE_CHECKING:
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
    typer.Option(metavar="SPEC", help="Questions with a key; else the preserve set's loss."),
]
Limit = Annotated[int, typer.Option(min=1, help="Most examples to score.")]
Prompts = Annotated[int, typer.Option(min=1, help="Most prompts a probe.")]
Seed = Annotated[int, typer.Option(help="Seed of the draws.")]
Judge = Annotated[str | None, typer.Option(help="exact, keyword or fitted:FILE; else by the data.")]
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
    budget: Budget = 0.05,
    rounds: Rounds = 1,
    limit: Limit = 256,
    prompts: Prompts = 200,
    seed: Seed = 0,
    judge: Judge = None,
    max_new_tokens: MaxNewTokens = None,
    batch_size: BatchSize = 16,
    data_dir: DataDir = None,
    dry_run: DryRun = False,
    resume: Resume = False,
) -> None:
    """Find, choose, cut and measure with nothing to configure; ends with the report's path."""
    from resect.runs.auto import PRESERVE, TARGET, AutoRequest, expected_line, plan_auto, run_auto

    start = time.perf_counter()
    request = AutoRequest(
        model=model,
        target=target or TARGET,
        preserve=preserve or PRESERVE,
        contrast=contrast,
        utility=utility,
        budget=budget,
        rounds=rounds,
        limit=limit,
        prompts=prompts,
        seed=seed,
        judge=judge,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        data_dir=data_dir,
    )
    planned = plan_auto(request, output)
    for reason in planned.reasons:
        note(reason)
    note(expected_line(planned))
    if dry_run:
        return
    mask = run_auto(planned, output, resume=resume, watch=measuring(output), started=start)
    _finish(model, output, mask)
    note(f"done in {time.perf_counter() - start:.0f} s")
    say(str(output / "report.html"))


def _finish(model: str, output: Path, mask: Mask | None) -> None:
    """Say what was chosen."""
    from resect.runs.auto import MASK
    from resect.runs.sweep import chosen_rows

    rows = chosen_rows(output / "results.json")
    table("chosen cut", [{name: row[name] for name in SHOWN} for row in rows])
    supported = _say_verdict(output)
    if mask is None:
        say("no cut of the grid lowers the behaviour within the utility budget")
    else:
        mask_path = output / MASK
        say(
            f"{mask_path}: {mask.count:,} weights, {100 * mask.fraction:.4g} % of the prunable ones"
        )
        note("the numbers to quote are those of the test half")
        if supported:
            note(f"next: resect prune {model} {mask_path} --run {output} -o CUT")
        else:
            note(
                "the mask is kept for a look and is no finding; try --contrast, more prompts, or "
                "resect sweep with other q and p"
            )


def _say_verdict(output: Path) -> bool:
    """Print the verdict on the chosen cut; return whether it is supported."""
    from resect.files.reading import read_json

    claim = read_json(output / "results.json")["claims"][0]
    say(f"{claim['verdict']}: {claim['claim']} {claim['reason']}")
    if claim["verdict"] == "not measurable":
        note("the intact model must show the behaviour under the attack, or there is none to cut")
    return bool(claim["verdict"] == "supported")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog="Example: [bold]resect run meta-llama/Llama-3.1-8B-Instruct -o run[/bold], or "
        "[bold]resect run ./my-model --target harm.jsonl --preserve benign.jsonl[/bold]"
    )(run)
