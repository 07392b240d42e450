"""The commands of `resect mask`: look at masks, combine them, draw controls, share them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from resect.cli.options import Force, MaskFile, MaskOutput, OfRun, Require, tell_of_gate
from resect.cli.show import note, say, say_mask, table

if TYPE_CHECKING:
    from resect.weights.algebra import Operation
    from resect.weights.mask import Mask, MaskTensor


mask_app = typer.Typer(no_args_is_help=True, help="Look at masks and draw matched controls.")


@mask_app.command("show", epilog="Example: [bold]resect mask show harm.mask.safetensors[/bold]")
def show(
    file: MaskFile,
    *,
    every: Annotated[bool, typer.Option("--all", help="A row for every tensor as well.")] = False,
) -> None:
    """Say how many weights a mask removes, where, and where it comes from."""
    from resect.weights.mask import Mask

    mask = Mask.load(file)
    table(f"{mask.count:,} of {mask.total:,} weights removed", _by_kind(mask))
    if every:
        table("tensors", [_row_of(name, tensor) for name, tensor in mask.tensors.items()])
    elif mask.tensors:
        note(f"{len(mask.tensors):,} tensors; a row for each: resect mask show {file} --all")
    table("origin", [{"key": key, "value": value} for key, value in _flat(mask.meta).items()])


def _flat(meta: Mapping[str, object]) -> dict[str, str]:
    """Return what a mask says of its origin; details that say something have a name each."""
    rows: dict[str, str] = {}
    for key, value in sorted(meta.items()):
        if not isinstance(value, Mapping):
            rows[key] = str(value)
            continue
        details = {name: detail for name, detail in value.items() if detail not in ("", None)}
        rows |= {f"{key}, {name}": str(detail) for name, detail in details.items()}
    return rows


def _row_of(name: str, tensor: MaskTensor) -> dict[str, object]:
    removed = tensor.index.numel()
    return {
        "tensor": name,
        "shape": "×".join(str(side) for side in tensor.shape),
        "removed": removed,
        "percent": 100 * removed / tensor.size,
    }


def _by_kind(mask: Mask) -> list[dict[str, object]]:
    """Return a row for each module of a block, summed over layers and experts."""
    kinds: dict[str, list[MaskTensor]] = {}
    for name, tensor in mask.tensors.items():
        kinds.setdefault(_kind(name), []).append(tensor)
    rows: list[dict[str, object]] = []
    for kind, tensors in kinds.items():
        counts = [tensor.index.numel() for tensor in tensors]
        row: dict[str, object] = {"module": kind, "tensors": len(tensors)}
        row |= {"of them cut": sum(count > 0 for count in counts), "removed": sum(counts)}
        rows.append(row | {"percent": 100 * sum(counts) / sum(tensor.size for tensor in tensors)})
    return rows


def _kind(name: str) -> str:
    """Return the name of a tensor inside of its block, with a star for the number of an expert."""
    words = name.removesuffix(".weight").split(".")
    numbers = [position for position, word in enumerate(words) if word.isdecimal()]
    inner = words[numbers[0] + 1 :] if numbers else words
    return ".".join("*" if word.isdecimal() else word for word in inner) or name


@mask_app.command(
    "random",
    epilog="Example: [bold]resect mask random harm.mask.safetensors --model ./my-model "
    "-o random.mask.safetensors[/bold]",
)
def draw_random(
    file: Annotated[Path, typer.Argument(metavar="MASK", help="The mask to match.")],
    model: Annotated[str, typer.Option(help="The model that the mask belongs to.")],
    output: MaskOutput,
    matched: Annotated[
        Literal["count", "magnitude"],
        typer.Option(help="Same number in every tensor, or of the same magnitudes as well."),
    ] = "count",
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 0,
    force: Force = False,
) -> None:
    """Draw a control: as many weights in every tensor at random, or as many whole units."""
    from resect.attribution.units import random_like
    from resect.model import (
        load_model,
        model_fingerprint,
        prunable_tensors,
        tokenizer_fingerprint,
    )
    from resect.weights.controls import magnitude_matched
    from resect.weights.fit import Prints, fitted
    from resect.weights.mask import Mask

    loaded = load_model(model)
    weights = prunable_tensors(loaded.model)
    prints = Prints(model_fingerprint(loaded.model), tokenizer_fingerprint(loaded.tokenizer))
    mask = fitted(Mask.load(file), weights, prints, force=force)
    label = f"cli/{matched}"
    if matched == "count":
        control = random_like(mask, loaded.model, weights, label=label, seed=seed)
    else:
        control = magnitude_matched(mask, weights, label=label, seed=seed)
    control.save(output)
    say(f"{output}: {control.count:,} weights")


Files = Annotated[list[Path], typer.Argument(metavar="MASK MASK...", help="Two or more masks.")]


def union(files: Files, output: MaskOutput) -> None:
    """Write the weights that any of the masks removes."""
    _combine("union", files, output)


def intersect(files: Files, output: MaskOutput) -> None:
    """Write the weights that all of the masks remove."""
    _combine("intersect", files, output)


def subtract(files: Files, output: MaskOutput) -> None:
    """Write the weights that the first mask removes and none of the others does."""
    _combine("subtract", files, output)


def overlap(files: Files) -> None:
    """Say how much the masks share, pair by pair, and how much chance would make them share."""
    from dataclasses import asdict

    from resect.weights.algebra import overlaps

    rows = overlaps(_load(files))
    table("overlap of masks", [asdict(row) for row in rows])
    for row in rows:
        times = "–" if row.enrichment is None else f"{row.enrichment:.3g} times"
        say(
            f"{row.first} and {row.second}: {row.shared:,} shared, Jaccard {row.jaccard:.4g}, "
            f"{times} the {row.expected:.3g} of random sets with the same counts in every tensor"
        )


def _load(files: list[Path]) -> dict[str, Mask]:
    from resect.errors import InputError
    from resect.weights.mask import Mask

    if len({str(file) for file in files}) < len(files):
        raise InputError("the same mask is given twice", got=", ".join(map(str, files)))
    return {str(file): Mask.load(file) for file in files}


def _combine(operation: Operation, files: list[Path], output: Path) -> None:
    from resect.weights.algebra import combine

    mask = combine(operation, _load(files))
    mask.save(output)
    say_mask(output, mask.count, mask.fraction, "see `resect mask overlap`")


MaskPlace = Annotated[str, typer.Argument(metavar="MASK", help="A file, a folder or a Hub id.")]


def push(
    mask: MaskPlace,
    repository: Annotated[str, typer.Argument(metavar="REPOSITORY", help="owner/name")],
    public: Annotated[
        bool, typer.Option("--public", help="Make a new repository public; else private.")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Branch; else the main one.")] = None,
    run: OfRun = None,
    require: Require = None,
) -> None:
    """Put a mask and its card on the Hub; the model itself is not sent."""
    from resect.export import load_mask, pass_gate, push_mask

    loaded = load_mask(mask)
    gate = pass_gate(loaded, run, require or (), source=mask)
    tell_of_gate(gate.unknown)
    say(push_mask(loaded, repository, private=not public, revision=revision, run=gate))
    note(f'use it: resect.from_pretrained(MODEL, "{repository}")')


def patch(
    mask: MaskPlace,
    output: Annotated[Path, typer.Option("-o", "--output", help="FILE.patch.safetensors")],
    revert: Annotated[
        bool, typer.Option("--revert", help="The original values instead, to undo a cut.")
    ] = False,
    alpha: Annotated[float, typer.Option(help="Factor of the masked weights; 0 removes.")] = 0.0,
    run: OfRun = None,
    require: Require = None,
) -> None:
    """Write a mask as a weight patch for vLLM: which elements get which values."""
    from resect.export import load_mask, pass_gate, write_patch

    loaded = load_mask(mask)
    gate = None
    if not revert:
        gate = pass_gate(loaded, run, require or (), source=mask, alpha=alpha)
        tell_of_gate(gate.unknown)
    count = write_patch(loaded, output, revert=revert, alpha=alpha, run=gate)
    say(f"{output}: {'revert' if revert else 'cut'} of {count:,} weights")
    if not revert:
        note(f"its undoing: resect mask patch {mask} --revert -o REVERT.patch.safetensors")


def register(app: typer.Typer) -> None:
    """Add the commands of `resect mask`."""
    for command, example in (
        (union, "union harm-a.mask.safetensors harm-b.mask.safetensors -o all.mask.safetensors"),
        (intersect, "intersect harm-a.mask.safetensors harm-b.mask.safetensors "
         "-o core.mask.safetensors"),
        (subtract, "subtract harm.mask.safetensors benign.mask.safetensors "
         "-o rest.mask.safetensors"),
        (overlap, "overlap harm-a.mask.safetensors harm-b.mask.safetensors"),
        (push, "push harm.mask.safetensors me/llama-harm-mask"),
        (patch, "patch harm.mask.safetensors -o cut.patch.safetensors"),
    ):  # fmt: skip
        mask_app.command(epilog=f"Example: [bold]resect mask {example}[/bold]")(command)
    app.add_typer(mask_app, name="mask")
