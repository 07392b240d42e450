"""What is left of a cut after a round trip, read from the models that came back.

A round trip takes the intact model and the cut one the same way. Whatever it does to all weights,
rounding for instance, it does to both, so what only the cut lost can be told.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from trip_case import Case

from resect.edit import prune_checkpoint, restore_checkpoint
from resect.edit.hold import HoldMask
from resect.errors import ResectError
from resect.export import export_gguf
from resect.model import load_model, model_fingerprint, prunable_tensors, tokenizer_fingerprint
from resect.weights.fit import Prints, fitted
from resect.weights.mask import Mask

# From a checkpoint folder, and a folder that is not there yet, to the place of what came back.
Go = Callable[[Path, Path], Path]
ALL, NONE, YES = "all", "none", "yes"
# What of a message of resect says why it refuses -> the word for it in the table.
REFUSALS = {
    "another value than in the mask": "other values",
    "the tokenizer is not the one": "other tokenizer",
    "is not the one that the mask was made with": "other fingerprint",
    "is not as this mask cuts it": "a masked weight is not 0",
    "another library has wrapped": "wrapped",
    "not wholly in memory": "sharded",
    "weights cannot be exactly 0": "blocks without a code for 0",
    "sharded over devices cannot be held": "sharded",
}


@dataclass(frozen=True)
class Sent:
    """Both models after a round trip.

    Attributes:
        whole: Where the intact one is now.
        cut: Where the cut one is now.
        work: An empty folder.
    """

    whole: Path
    cut: Path
    work: Path


class Others(NamedTuple):
    """How many weights outside of the mask have another value now, and how many of these are 0."""

    moved: str
    new_zeros: str


def travelled(case: Case, go: Go, work: Path) -> dict[str, str]:
    """Return what a round trip did to a cut model and to what resect can do with it.

    Args:
        case: The model and its mask.
        go: The round trip.
        work: An empty folder.
    """
    places = {name: go(getattr(case, name), work / name) for name in ("whole", "cut")}
    sent = Sent(places["whole"], places["cut"], work / "checks")
    return checked(case, sent)


def checked(case: Case, sent: Sent) -> dict[str, str]:
    """Return a row of the table from two models that came back."""
    before = prunable_tensors(load_model(case.cut, device="cpu").model)
    loaded = load_model(sent.cut, device="cpu").model
    after = prunable_tensors(loaded)
    names = [name for name in case.mask.tensors if name in after]
    row = {"names": share(len(names), len(case.mask.tensors))}
    row["zeros"] = zeros(case.mask, after)
    row["other_weights"], row["new_zeros"] = others(case.mask, before, after)
    row["fits"] = fits(case.mask, sent.whole)
    row["restored"] = restored(case.mask, sent)
    if sent.whole.suffix == ".gguf":
        row["file_keep"] = said(lambda: in_file(case.mask, sent, "keep"))
        row["file_f16"] = said(lambda: in_file(case.mask, sent, "f16"))
    if row["zeros"] != ALL:
        row["held"] = said(lambda: held(case.mask, loaded))
        row["cut_again"] = said(lambda: cut_again(case.mask, sent))
    return row


def zeros(mask: Mask, tensors: dict[str, Tensor]) -> str:
    """Return how many of the masked weights are exactly 0."""
    count = 0
    for name, entry in mask.tensors.items():
        if name in tensors:
            count += int((flat(tensors[name])[entry.index] == 0).sum())
    return share(count, mask.count)


def others(mask: Mask, before: dict[str, Tensor], after: dict[str, Tensor]) -> Others:
    """Return how many weights outside of the mask have another value now, and how many became 0."""
    moved = new = total = 0
    for name, entry in mask.tensors.items():
        if name not in after or after[name].shape != before[name].shape:
            continue
        free = torch.ones(entry.size, dtype=torch.bool)
        free[entry.index] = False
        old, now = flat(before[name])[free], flat(after[name])[free]
        moved += int((old != now).sum())
        new += int(((now == 0) & (old != 0)).sum())
        total += int(free.sum())
    return Others(share(moved, total), share(new, total))


def fits(mask: Mask, place: Path) -> str:
    """Return whether the mask fits the intact model that was sent along, with all fingerprints."""
    model, tokenizer = load_model(place, device="cpu")
    prints = Prints(model_fingerprint(model), tokenizer_fingerprint(tokenizer))

    def fit() -> str:
        fitted(mask, prunable_tensors(model), prints)
        return YES

    return said(fit)


def restored(mask: Mask, sent: Sent) -> str:
    """Return what `resect restore` makes of the cut model that came back."""

    def restore() -> str:
        restore_checkpoint(sent.cut, mask, sent.work / "restored")
        mended = prunable_tensors(load_model(sent.work / "restored", device="cpu").model)
        whole = prunable_tensors(load_model(sent.whole, device="cpu").model)
        if all(torch.equal(mended[name], whole[name]) for name in mended):
            return "exact"
        for name, entry in mask.tensors.items():
            put = flat(mended[name])[entry.index]
            if not torch.equal(put, entry.value.to(mended[name].dtype).to(put.dtype)):
                return "other values than the mask's"
        return "the mask's own values"

    return said(restore)


def held(mask: Mask, model: object) -> str:
    """Return how many masked weights are 0 after HoldMask was applied."""
    HoldMask(mask).apply(model)  # type: ignore[arg-type]
    return zeros(mask, prunable_tensors(model))  # type: ignore[arg-type]


def cut_again(mask: Mask, sent: Sent) -> str:
    """Return how many masked weights are 0 after the folder that came back was cut by force."""
    prune_checkpoint(sent.cut, mask, sent.work / "again", force=True)
    return zeros(mask, prunable_tensors(load_model(sent.work / "again", device="cpu").model))


def in_file(mask: Mask, sent: Sent, outtype: Literal["keep", "f16"]) -> str:
    """Return how many masked weights are 0 after `resect prune` of the intact GGUF file."""
    file = sent.work / f"{outtype}.gguf"
    file.parent.mkdir(parents=True, exist_ok=True)
    export_gguf(sent.whole, mask, file, outtype=outtype, force=True)
    return zeros(mask, prunable_tensors(load_model(file, device="cpu").model))


def said(step: Callable[[], str]) -> str:
    """Return what a step returns, or what resect says against it."""
    try:
        return step()
    except ResectError as error:
        known = (word for part, word in REFUSALS.items() if part in error.what)
        return f"no: {next(known, error.what)}"


def share(count: int, total: int) -> str:
    """Return a count as a word, or in percent if it is neither all nor none."""
    if count == total:
        return ALL
    if not count:
        return NONE
    percent = 100 * count / total
    return f"{percent:.0f} %" if 1 <= percent <= 99 else "below 1 %" if percent < 1 else "over 99 %"


def flat(tensor: Tensor) -> Tensor:
    """Return the values of a tensor in a row, in float32."""
    return tensor.detach().reshape(-1).float()
