"""The command that scores and selects in one, with rounds and a contrast."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from resect.cli.options import category_of
from resect.cli.show import note, progress, say_mask
from resect.records import Format, Reduction, Scope


def locate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Checkpoint folder or Hub id[@rev].")
    ],
    target: Annotated[str, typer.Option(help="SPEC of the behaviour to cut.")],
    preserve: Annotated[str, typer.Option(help="SPEC of what is protected.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="FILE.mask.safetensors")],
    q: Annotated[float, typer.Option(help="Fraction of the target ranking, in (0, 1].")],
    p: Annotated[float, typer.Option(help="Fraction that is protected, in [0, 1].")],
    contrast: Annotated[
        str | None,
        typer.Option(help="SPEC that is subtracted, e.g. harmless answers to the same prompts."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Score again after each part.")] = 1,
    scope: Annotated[Scope, typer.Option(help="Rank within tensors or over the model.")] = "tensor",
    method: Annotated[str, typer.Option(help="Score method of the target.")] = "snip",
    importance: Annotated[
        Reduction, typer.Option(help="Importance of what is protected.")
    ] = "mean_of_abs",
    format: Annotated[Format, typer.Option(help="How prompts are put.")] = "chat",
    skip: Annotated[
        int, typer.Option(min=0, help="Response tokens of target and contrast not scored.")
    ] = 0,
    category: Annotated[str | None, typer.Option(help="Score this category alone.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most examples to score.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draw that --limit makes.")] = 0,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
) -> None:
    """Score and select in one; with rounds, what was cut changes what is chosen next.

    Finished rounds are kept in the folder OUTPUT.rounds, and a second run goes on from there.
    """
    from resect.attribution.rounds import LocateRequest, locate_model
    from resect.attribution.settings import Origin, Pass

    request = LocateRequest(
        model,
        target,
        preserve,
        q,
        p,
        Pass(method=method),
        Origin(format=format, skip=skip, category=category_of(category), seed=seed),
        contrast=contrast,
        rounds=rounds,
        scope=scope,
        importance=importance,
        limit=limit,
        dtype=dtype,
    )
    work = output.with_name(f"{output.name}.rounds")
    with progress("locating") as update:
        mask = locate_model(request, work, on_progress=update)
    mask.save(output)
    say_mask(output, mask.count, mask.fraction, "try a larger --q or a smaller --p")
    note(f"finished passes are in {work}; delete it when you are done")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog="Example: [bold]resect locate ./my-model --target harm.jsonl --preserve "
        "benign.jsonl --contrast same-style.jsonl --skip 1 --q 1e-3 --p 1e-2 --rounds 4 "
        "-o harm.mask.safetensors[/bold]"
    )(locate)
