"""Commands that take a mask elsewhere: mask push, mask patch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from resect.cli._show import note, say
from resect.cli.artefacts import mask_app

MaskPlace = Annotated[str, typer.Argument(metavar="MASK", help="A file, a folder or a Hub id.")]


def push(
    mask: MaskPlace,
    repository: Annotated[str, typer.Argument(metavar="REPOSITORY", help="owner/name")],
    public: Annotated[
        bool, typer.Option("--public", help="Make a new repository public; else private.")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Branch; else the main one.")] = None,
) -> None:
    """Put a mask and its card on the Hub; the model itself is not sent."""
    from resect.export import push_mask

    say(push_mask(mask, repository, private=not public, revision=revision))
    note(f'use it: resect.from_pretrained(MODEL, "{repository}")')


def patch(
    mask: MaskPlace,
    output: Annotated[Path, typer.Option("-o", "--output", help="FILE.patch.safetensors")],
    revert: Annotated[
        bool, typer.Option("--revert", help="The original values instead, to undo a cut.")
    ] = False,
    alpha: Annotated[float, typer.Option(help="Factor of the masked weights; 0 removes.")] = 0.0,
) -> None:
    """Write a mask as a weight patch for vLLM: which elements get which values."""
    from resect.export import load_mask, write_patch

    count = write_patch(load_mask(mask), output, revert=revert, alpha=alpha)
    say(f"{output}: {'revert' if revert else 'cut'} of {count:,} weights")
    if not revert:
        note(f"its undoing: resect mask patch {mask} --revert -o REVERT.patch.safetensors")


def register() -> None:
    """Add the commands to `resect mask`."""
    mask_app.command(
        epilog="Example: [bold]resect mask push harm.mask.safetensors me/llama-harm-mask[/bold]"
    )(push)
    mask_app.command(
        epilog="Example: [bold]resect mask patch harm.mask.safetensors "
        "-o cut.patch.safetensors[/bold]"
    )(patch)
