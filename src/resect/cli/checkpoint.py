"""The commands `resect import`, `resect coverage`, `resect prune` and `resect restore`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from resect.cli.options import AllowPartial, MaskFile, NewFolder, OfRun, Require, tell_of_gate
from resect.cli.show import note, say, table

if TYPE_CHECKING:
    from resect.export import Gate
    from resect.weights.mask import Mask

OutType = Literal["keep", "f16", "bf16", "f32"]

Force = Annotated[
    bool,
    typer.Option("--force", help="Go on with a mask of another model; DIR/resect.json says so."),
]


def import_file(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE",
            help="A GGUF file, its parts in order, or a quantised checkpoint folder.",
        ),
    ],
    output: NewFolder,
) -> None:
    """Write a checkpoint folder of a GGUF file or of an FP8, MXFP4 or compressed-tensors folder.

    Weights get the values that the quantised ones decode to. Folders of bitsandbytes and torchao
    are decoded where the package of that name is installed.
    """
    from resect.model.decoded import import_quantised
    from resect.model.imported import import_gguf

    if len(sources) == 1 and sources[0].is_dir():
        decoded = import_quantised(sources[0], output)
        say(f"{output}: {decoded.method} decoded to {decoded.dtype}")
        note(
            "the precision from before the quantisation is gone, and scores and masks belong to "
            "these values"
        )
        return
    imported = import_gguf(sources, output, on_meaning=note)
    say(
        f"{output}: architecture {imported.architecture} in {imported.dtype}, "
        f"from SHA-256 {imported.hash}…"
    )
    for line in imported.notes:
        note(line)


def coverage(
    model: Annotated[
        str, typer.Argument(metavar="[MODEL]", help="Folder, GGUF file or Hub id[@rev].")
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
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Checkpoint folder, or a GGUF file.")
    ],
    mask: MaskFile,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="New folder, or FILE.gguf of a GGUF file.")
    ],
    alpha: Annotated[
        float, typer.Option(help="Factor of the masked weights; 0 removes them.")
    ] = 0.0,
    run: OfRun = None,
    force: Force = False,
    *,
    outtype: Annotated[
        OutType | None,
        typer.Option(
            help="Of FILE.gguf: keep the types of its blocks (the default), or decode them all."
        ),
    ] = None,
    require: Require = None,
) -> None:
    """Write a normal checkpoint without the masked weights, with a card that says so."""
    from resect.export import export_checkpoint, load_mask, pass_gate

    cut = _Cut(load_mask(mask), mask.name, alpha, force)
    gate = pass_gate(cut.mask, run, require or (), source=mask, alpha=alpha)
    tell_of_gate(gate.unknown)
    if _is_gguf(output):
        _prune_gguf(model, cut, output, gate=gate, outtype=outtype)
        return
    if outtype is not None:
        from resect.errors import InputError

        raise InputError("--outtype is of GGUF files", got=str(output), fix="write -o FILE.gguf")
    counts = export_checkpoint(
        model, cut.mask, output, alpha=alpha, mask_name=mask.name, run=gate, force=force
    )
    say(f"{output}: {counts['weights']:,} weights in {counts['tensors']} tensors × {alpha:g}")
    if not counts["weights"]:
        note("the mask is empty: this is the model unchanged")
    note(f"undo it with: resect restore {output} {mask} -o NEW_FOLDER")


def _is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf"


class _Cut(NamedTuple):
    """A mask with the name of its file, and how it is applied."""

    mask: Mask
    name: str
    alpha: float
    force: bool


def _prune_gguf(
    model: Path, cut: _Cut, output: Path, *, gate: Gate, outtype: OutType | None
) -> None:
    from resect.export import export_gguf

    written = export_gguf(
        model,
        cut.mask,
        output,
        outtype=outtype or "keep",
        alpha=cut.alpha,
        mask_name=cut.name,
        run=gate,
        force=cut.force,
    )
    say(
        f"{output}: {written.weights:,} weights in {written.tensors} tensors × {cut.alpha:g}, "
        f"types {', '.join(written.types)}"
    )
    if not written.weights:
        note("the mask is empty: this is the model unchanged")
    if written.values:
        note(
            f"{written.values:,} weights are in another type than before, and {written.rounded:,} "
            "of them were rounded by that"
        )


def restore(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder that prune wrote, or its GGUF file.")
    ],
    mask: MaskFile,
    output: NewFolder,
    force: Force = False,
) -> None:
    """Undo a cut, bit for bit, with the values that the mask holds."""
    from resect.export import load_mask, unexport_checkpoint

    if _is_gguf(output):
        from resect.errors import InputError

        raise InputError(
            "a cut is undone into a checkpoint folder",
            got=str(output),
            fix="give a folder with -o; the GGUF file that was cut is still there for the rest",
        )
    counts = unexport_checkpoint(folder, load_mask(mask), output, force=force)
    say(f"{output}: {counts['weights']:,} weights in {counts['tensors']} tensors restored")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("import", epilog="Example: [bold]resect import model.gguf -o ./my-model[/bold]")(
        import_file
    )
    app.command(epilog="Example: [bold]resect coverage ./my-model[/bold]")(coverage)
    app.command(
        epilog="Example: [bold]resect prune ./my-model harm.mask.safetensors -o ./cut[/bold]"
    )(prune)
    app.command(
        epilog="Example: [bold]resect restore ./cut harm.mask.safetensors -o ./whole[/bold]"
    )(restore)
