"""The commands `resect coverage`, `resect prune` and `resect restore`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from resect.cli.options import AllowPartial, MaskFile, NewFolder
from resect.cli.show import note, say, table

Force = Annotated[
    bool,
    typer.Option("--force", help="Go on with a mask of another model; DIR/resect.json says so."),
]


def coverage(
    model: Annotated[
        str, typer.Argument(metavar="[MODEL]", help="Checkpoint folder or Hub id[@rev].")
    ] = "",
    allow_partial: AllowPartial = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what scoring needs; a config.json is enough.")
    ] = False,
    shape: Annotated[
        str, typer.Option(help="Plan for llama-8b, qwen-32b, llama-70b or llama-405b.")
    ] = "",
    memory: Annotated[
        float, typer.Option(min=0, help="Plan for a device with so many GiB; 0 for this machine.")
    ] = 0,
    examples: Annotated[int, typer.Option(min=1, help="Examples to plan for.")] = 400,
    length: Annotated[int, typer.Option(min=2, help="Tokens an example, half scored.")] = 256,
    tflops: Annotated[
        float, typer.Option(min=0, help="TFLOP/s to plan with; 0 to measure or assume.")
    ] = 0,
) -> None:
    """List which weights can be pruned and which are left alone, or plan what scoring needs."""
    if not model and not shape:
        from resect.errors import InputError

        raise InputError(
            "there is no model to look at",
            got="neither MODEL nor --shape",
            fix="name a checkpoint folder or Hub id, or plan for a shape: "
            "resect coverage --shape llama-8b",
        )
    if plan or shape:
        from resect.attribution.estimate import plan_report

        report = plan_report(
            shape or model, examples=examples, length=length, memory=memory, tflops=tflops
        )
        table("memory", report.rows)
        for line in report.lines:
            say(line)
        return
    _show_coverage(model, allow_partial=allow_partial)


def _show_coverage(model: str, *, allow_partial: bool) -> None:
    from resect.model import find_prunable
    from resect.model.load import load_reported

    loading = load_reported(model)
    prunable = find_prunable(loading.loaded.model, allow_partial=allow_partial)
    table("prunable weights", prunable.rows())
    table(
        "left alone",
        [
            {"name": skipped.name, "shape": str(tuple(skipped.shape)), "reason": skipped.reason}
            for skipped in prunable.skipped
        ],
    )
    say(
        f"{prunable.total:,} prunable weights, "
        f"{100 * prunable.share:.1f} % of all but the embeddings"
    )
    if loading.unplaced:
        table(
            "tensors of the files that the model has no place for",
            [{"name": name} for name in loading.unplaced],
        )


def prune(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Checkpoint folder.")],
    mask: MaskFile,
    output: NewFolder,
    alpha: Annotated[
        float, typer.Option(help="Factor of the masked weights; 0 removes them.")
    ] = 0.0,
    run: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Run whose claims the card repeats.")
    ] = None,
    force: Force = False,
) -> None:
    """Write a normal checkpoint without the masked weights, with a card that says so."""
    from resect.export import export_checkpoint, load_mask

    counts = export_checkpoint(
        model, load_mask(mask), output, alpha=alpha, mask_name=mask.name, run=run, force=force
    )
    say(f"{output}: {counts['weights']:,} weights in {counts['tensors']} tensors × {alpha:g}")
    if not counts["weights"]:
        note("the mask is empty: this is the model unchanged")
    note(f"undo it with: resect restore {output} {mask} -o NEW_FOLDER")


def restore(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that prune wrote.")],
    mask: MaskFile,
    output: NewFolder,
    force: Force = False,
) -> None:
    """Undo a cut, bit for bit, with the values that the mask holds."""
    from resect.export import load_mask, unexport_checkpoint

    counts = unexport_checkpoint(folder, load_mask(mask), output, force=force)
    say(f"{output}: {counts['weights']:,} weights in {counts['tensors']} tensors restored")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="Example: [bold]resect coverage ./my-model[/bold]")(coverage)
    app.command(
        epilog="Example: [bold]resect prune ./my-model harm.mask.safetensors -o ./cut[/bold]"
    )(prune)
    app.command(
        epilog="Example: [bold]resect restore ./cut harm.mask.safetensors -o ./whole[/bold]"
    )(restore)
