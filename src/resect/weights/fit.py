"""Masks and scores stay with what they were made from; what is forced says so for ever.

A mask fits a model if every tensor it removes from is there with its shape and dtype and the same
value at every removed place, and if the fingerprints of model and tokenizer are those it was made
with. The first mismatch is named. A shape or a missing tensor cannot be forced, since the places
would have no meaning; everything else can, and the mismatch is then written into the artefact, from
there into what is made of it, and so on. "" stands for nothing forced.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from resect.errors import MismatchError
from resect.files.origin import same_print
from resect.weights.mask import Mask, revalued


@dataclass(frozen=True)
class Prints:
    """Fingerprints of what a mask is put on; "" for what is not known."""

    model: str = ""
    tokenizer: str = ""


def all_forced(*forced: str) -> str:
    """Return what was forced, each mismatch once, in order."""
    mismatches = [mismatch for text in forced for mismatch in text.split("; ") if mismatch]
    return "; ".join(dict.fromkeys(mismatches))


def forced_in(meta: Mapping[str, object]) -> str:
    """Return what was forced when an artefact with this origin was made."""
    return str(meta.get("forced", ""))


def one_line(error: MismatchError) -> str:
    """Return a mismatch as it is recorded."""
    words = (error.what, error.got and f"got {error.got}", error.allowed and f"not {error.allowed}")
    return ", ".join(word for word in words if word).replace("; ", ", ")


def forceable(error: MismatchError) -> MismatchError:
    """Return the same mismatch with the way to go on all the same."""
    fix = f"{error.fix}; or add --force, and everything made from it will say so"
    return MismatchError(error.what, got=error.got, allowed=error.allowed, fix=fix)


def fitted(
    mask: Mask, weights: Mapping[str, Tensor], prints: Prints | None = None, *, force: bool = False
) -> Mask:
    """Return a mask that fits a model, or refuse.

    Args:
        mask: The mask.
        weights: Checkpoint tensors of the model by name.
        prints: Fingerprints of the model and its tokenizer; None if they are not known.
        force: Take the places of a mask that does not fit, with the values of this model.

    Returns:
        The mask itself if it fits; else its places with this model's values, and the mismatch in
        `meta["forced"]`.

    Raises:
        MismatchError: The first mismatch, if it is not forced or cannot be.
    """
    error = _first_mismatch(mask, weights) or _other_print(mask, prints or Prints())
    if error is None:
        return mask
    if not force:
        raise forceable(error)
    return marked(Mask(revalued(mask, weights).tensors, mask.meta), one_line(error))


def marked(mask: Mask, forced: str) -> Mask:
    """Return a mask whose origin also says what was forced; the mask itself if nothing was."""
    everything = all_forced(forced_in(mask.meta), forced)
    return Mask(mask.tensors, {**mask.meta, "forced": everything}) if everything else mask


def _first_mismatch(mask: Mask, weights: Mapping[str, Tensor]) -> MismatchError | None:
    for name, entry in mask.tensors.items():
        if not entry.index.numel() and name in weights:
            continue
        try:
            mask.check(name, weights.get(name))
        except MismatchError as error:
            if name not in weights or tuple(weights[name].shape) != entry.shape:
                raise
            return error
    return None


def _other_print(mask: Mask, prints: Prints) -> MismatchError | None:
    """Compare fingerprints, which see what lies outside of the mask."""
    # Places that were found on another model of these shapes on purpose.
    if "located_on" in mask.meta:
        return None
    for subject, fingerprint in (("model", prints.model), ("tokenizer", prints.tokenizer)):
        expected = mask.meta.get(f"{subject}_fingerprint")
        if expected and fingerprint and not same_print(expected, fingerprint):
            return MismatchError(
                f"the {subject} is not the one that the mask was made with, though all masked "
                "weights have their values",
                got=f"fingerprint {fingerprint}",
                allowed=f"fingerprint {expected}",
                fix=f"use the {subject} that the mask was made with",
            )
    return None
