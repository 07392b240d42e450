"""The command that scores and selects in one, with rounds and a contrast."""

from __future__ import annotations

from typing import Annotated

import typer

from resect.cli.options import (
    Category,
    Columns,
    DrawSeed,
    Dtype,
    ExampleLimit,
    MaskOutput,
    Model,
    PromptFormat,
    ProtectedFraction,
    RankScope,
    TargetFraction,
    category_of,
    refuse_idle_columns,
    tell_of_links,
    with_columns,
)
from resect.cli.show import note, progress, say_mask
from resect.records import Reduction


def locate(
    model: Model,
    target: Annotated[str, typer.Option(help="SPEC of the behaviour to cut.")],
    preserve: Annotated[str, typer.Option(help="SPEC of what is protected.")],
    output: MaskOutput,
    q: TargetFraction,
    p: ProtectedFraction,
    contrast: Annotated[
        str | None,
        typer.Option(help="SPEC that is subtracted, e.g. harmless answers to the same prompts."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Score again after each part.")] = 1,
    scope: RankScope = "tensor",
    method: Annotated[str, typer.Option(help="Score method of the target.")] = "snip",
    importance: Annotated[
        Reduction, typer.Option(help="Importance of what is protected.")
    ] = "mean_of_abs",
    format: PromptFormat = "chat",
    skip: Annotated[
        int, typer.Option(min=0, help="Response tokens of target and contrast not scored.")
    ] = 0,
    category: Category = None,
    limit: ExampleLimit = None,
    seed: DrawSeed = 0,
    dtype: Dtype = None,
    columns: Columns = None,
) -> None:
    """Score and select in one; with rounds, what was cut changes what is chosen next.

    Finished rounds are kept in the folder OUTPUT.rounds, and a second run goes on from there.
    """
    from resect.attribution.rounds import LocateRequest, locate_model
    from resect.attribution.settings import Origin, Pass

    refuse_idle_columns(columns, target, preserve, contrast)
    request = LocateRequest(
        model,
        with_columns(target, columns),
        with_columns(preserve, columns),
        q,
        p,
        Pass(method=method),
        Origin(format=format, skip=skip, category=category_of(category), seed=seed),
        contrast=with_columns(contrast, columns),
        rounds=rounds,
        scope=scope,
        importance=importance,
        limit=limit,
        dtype=dtype,
    )
    work = output.with_name(f"{output.name}.rounds")
    tell_of_links(model)
    with progress("locating") as update:
        mask = locate_model(request, work, on_progress=update)
    mask.save(output)
    say_mask(output, mask.count, mask.fraction, "try a larger --q or a smaller --p")
    note(f"finished passes are in {work}; delete it when you are done")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog="Example: [bold]resect locate ./my-model --target harm.jsonl --preserve "
        "benign.jsonl --contrast same-style.jsonl --skip 1 --q 1e-5 --p 5e-5 --rounds 4 "
        "-o harm.mask.safetensors[/bold]"
    )(locate)
