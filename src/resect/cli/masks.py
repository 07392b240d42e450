"""Commands on masks as sets: mask union, intersect, subtract, overlap."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resect.cli._show import say, say_mask, table
from resect.cli.artefacts import mask_app

if TYPE_CHECKING:
    from resect.algebra import Operation
    from resect.mask import Mask

Files = Annotated[list[Path], typer.Argument(metavar="MASK MASK...", help="Two or more masks.")]
Output = Annotated[Path, typer.Option("-o", "--output", help="FILE.mask.safetensors")]


def union(files: Files, output: Output) -> None:
    """Write the weights that any of the masks removes."""
    _combine("union", files, output)


def intersect(files: Files, output: Output) -> None:
    """Write the weights that all of the masks remove."""
    _combine("intersect", files, output)


def subtract(files: Files, output: Output) -> None:
    """Write the weights that the first mask removes and none of the others does."""
    _combine("subtract", files, output)


def overlap(files: Files) -> None:
    """Say how much the masks share, pair by pair, and how much chance would make them share."""
    from dataclasses import asdict

    from resect.algebra import overlaps

    found = overlaps(_load(files))
    table("overlap of masks", [asdict(one) for one in found])
    for one in found:
        times = "–" if one.enrichment is None else f"{one.enrichment:.3g} times"
        say(
            f"{one.first} and {one.second}: {one.shared:,} shared, Jaccard {one.jaccard:.4g}, "
            f"{times} the {one.expected:.3g} of random sets with the same counts in every tensor"
        )


def _load(files: list[Path]) -> dict[str, Mask]:
    from resect.errors import InputError
    from resect.mask import Mask

    if len({str(file) for file in files}) < len(files):
        raise InputError("the same mask is given twice", got=", ".join(map(str, files)))
    return {str(file): Mask.load(file) for file in files}


def _combine(operation: Operation, files: list[Path], output: Path) -> None:
    from resect.algebra import combine

    mask = combine(operation, _load(files))
    mask.save(output)
    say_mask(output, mask.count, mask.fraction, "see `resect mask overlap`")


def register() -> None:
    """Add the commands to `resect mask`."""
    for command, example in (
        (union, "union harm-a.mask.safetensors harm-b.mask.safetensors -o all.mask.safetensors"),
        (intersect, "intersect harm-a.mask.safetensors harm-b.mask.safetensors "
         "-o core.mask.safetensors"),
        (subtract, "subtract harm.mask.safetensors benign.mask.safetensors "
         "-o rest.mask.safetensors"),
        (overlap, "overlap harm-a.mask.safetensors harm-b.mask.safetensors"),
    ):  # fmt: skip
        mask_app.command(epilog=f"Example: [bold]resect mask {example}[/bold]")(command)
