"""A cut checkpoint folder as a product: the weights, with a card that says what was done to them.

The card takes the place of README.md; the model's own card stays beside it under another name and
comes back when the cut is undone. The mask is not put into the folder: servers that load every
`*.safetensors` file there would take it for weights.
"""

from __future__ import annotations

import re
from pathlib import Path

from resect.edit.checkpoint import prune_checkpoint, restore_checkpoint
from resect.errors import InputError
from resect.export.card import Card, checkpoint_card, our_facts
from resect.export.gate import Gate, gate_of
from resect.files.reading import read_bytes
from resect.weights.mask import Mask

CARD = "README.md"
KEPT_NAME = re.compile(r"README-original(-\d+)?\.md")


def export_checkpoint(
    source: str | Path,
    mask: Mask,
    target: str | Path,
    *,
    alpha: float = 0.0,
    mask_name: str = "",
    run: Path | Gate | None = None,
    force: bool = False,
) -> dict[str, int]:
    """Write a cut checkpoint with its card.

    Args:
        source: Checkpoint folder with safetensors weights, in one file or in shards.
        mask: What to cut.
        target: New folder.
        alpha: Factor of the masked weights; 0 removes.
        mask_name: Name of the mask's file, for the card.
        run: Folder of a run that measured this mask, whose claims the card repeats; or what
            `pass_gate` returned of it, for requirements beside those of its configuration.
        force: Cut at the mask's places although dtype or values differ; `resect.json` says so.

    Returns:
        Counts of changed `weights` and of `tensors` that hold them.

    Raises:
        InputError: The source has no safetensors weights, the target is not empty, or what the
            configuration of the run requires does not hold.
        MismatchError: The mask belongs to another checkpoint, or the run is not one of this mask.
    """
    source = Path(source)
    original = _text(source / CARD)
    backup = _free_name(source) if original else ""
    gate = gate_of(mask, run, alpha)
    card = Card(mask, mask_name or "unnamed", alpha, original, backup, gate.run, gate)
    text = checkpoint_card(card)
    extra: dict[str, str | None] = {CARD: text}
    if backup:
        extra[backup] = original
    return prune_checkpoint(source, mask, target, alpha=alpha, force=force, extra=extra)


def unexport_checkpoint(
    source: str | Path, mask: Mask, target: str | Path, *, force: bool = False
) -> dict[str, int]:
    """Undo `export_checkpoint`, weights and card, bit for bit.

    Args:
        source: A folder that `export_checkpoint` wrote.
        mask: The mask that it was cut with.
        target: New folder.
        force: Go on although the folder was not cut with this mask; the new one then says so.

    Returns:
        Counts of changed `weights` and of `tensors` that hold them.

    Raises:
        InputError: The source has no safetensors weights, or the target is not empty.
        MismatchError: A tensor does not fit the mask.
    """
    source = Path(source)
    facts = our_facts(_text(source / CARD))
    extra: dict[str, str | None] = {}
    if facts is not None:
        name = str(facts.get("original") or "")
        # A name from a file: only one that this module gives is followed.
        backup = name if KEPT_NAME.fullmatch(name) and (source / name).is_file() else ""
        extra = {CARD: _text(source / backup) if backup else None}
        if backup:
            extra[backup] = None
    return restore_checkpoint(source, mask, target, force=force, extra=extra)


def _text(path: Path) -> str:
    """Return a card with its line ends as they are; "" if there is none."""
    if not path.is_file():
        return ""
    try:
        return read_bytes(path).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}", got=str(error), fix="save it as UTF-8") from error


def _free_name(source: Path) -> str:
    """Return a name for the card that is replaced; a folder may be cut again and again."""
    count = 1
    while (source / (name := f"README-original{'' if count == 1 else f'-{count}'}.md")).exists():
        count += 1
    return name
