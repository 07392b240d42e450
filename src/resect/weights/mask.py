"""Masks: which weights are removed, and what they were.

A mask names tensors as the checkpoint on disk does, and holds for each the sorted flat indices of
the removed weights with their original values. So it is small, restores a cut checkpoint without
the base model, and is refused on a model whose values differ. True means removed.

Legend: n weights of a tensor, k removed weights of it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from resect import files
from resect.errors import InputError, MismatchError

KIND = "resect.mask"
# Where a mask says for what a run made it: the hash of its configuration, role, seed and cut, and
# what the configuration requires of exports.
OF_RUN = "run"


@dataclass(frozen=True)
class MaskTensor:
    """What is removed from one checkpoint tensor.

    Attributes:
        shape: Shape of the tensor.
        index: [k] flat indices of the removed weights, sorted, int64.
        value: [k] their original values, in the model's dtype.
        round: [k] the scoring round in which each was chosen, uint8, from 0.
    """

    shape: tuple[int, ...]
    index: Tensor
    value: Tensor
    round: Tensor

    @property
    def size(self) -> int:
        """Number of weights of the tensor, n."""
        return math.prod(self.shape)

    def keep(self, chosen: Tensor) -> MaskTensor:
        """Return the entries at which `chosen` [k], bool, is true."""
        return MaskTensor(self.shape, self.index[chosen], self.value[chosen], self.round[chosen])


@dataclass(frozen=True)
class Mask:
    """A set of removed weights with its origin.

    Attributes:
        tensors: Checkpoint tensor name to what is removed from it, in model order; all prunable
            tensors are listed, those without a removed weight with an empty index.
        meta: Origin: model and tokenizer fingerprints, p, q, scope, hashes, versions.
    """

    tensors: Mapping[str, MaskTensor]
    meta: Mapping[str, Any]

    @property
    def count(self) -> int:
        """Number of removed weights."""
        return sum(tensor.index.numel() for tensor in self.tensors.values())

    @functools.cached_property
    def hash(self) -> str:
        """16 hex digits over the removed weights and their values, whatever the file's origin."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name}/{tensor.shape}/{tensor.value.dtype}".encode())
            digest.update(tensor.index.numpy().tobytes())
            # Bytes, because numpy has no bfloat16.
            digest.update(tensor.value.contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def total(self) -> int:
        """Number of prunable weights."""
        return sum(tensor.size for tensor in self.tensors.values())

    @property
    def fraction(self) -> float:
        """Removed weights as a fraction of the prunable ones."""
        return self.count / self.total if self.total else 0.0

    def intersect(self, mask: Mask) -> Mask:
        """Return the weights that both remove."""
        return self._combine(mask, lambda mine, theirs: mine.keep(torch.isin(mine.index, theirs)))

    def subtract(self, mask: Mask) -> Mask:
        """Return the weights that this mask removes and the other does not."""
        return self._combine(mask, lambda mine, theirs: mine.keep(~torch.isin(mine.index, theirs)))

    def union(self, mask: Mask) -> Mask:
        """Return the weights that either removes.

        Raises:
            MismatchError: The masks belong to different models.
        """
        additions = mask.subtract(self)
        tensors = {}
        for name, mine in self.tensors.items():
            addition = additions.tensors[name]
            index, order = torch.cat([mine.index, addition.index]).sort()
            tensors[name] = MaskTensor(
                mine.shape,
                index,
                torch.cat([mine.value, addition.value])[order],
                torch.cat([mine.round, addition.round])[order],
            )
        return Mask(tensors, dict(self.meta))

    def overlap(self, mask: Mask) -> float:
        """Return the Jaccard index of the two sets, in [0, 1]; 0 if both are empty."""
        shared = self.intersect(mask).count
        union = self.count + mask.count - shared
        return shared / union if union else 0.0

    def refuse_other_model(self, mask: Mask) -> None:
        """Refuse a mask of another model.

        Raises:
            MismatchError: Fingerprints, tensors, shapes, dtypes or values at shared places differ.
        """
        prints = [side.meta.get("model_fingerprint") for side in (self, mask)]
        if None not in prints and not files.same_print(*prints):
            raise _different_models(f"fingerprints {prints[0]} and {prints[1]}")
        for name in [*self.tensors, *mask.tensors]:
            mine, theirs = self.tensors.get(name), mask.tensors.get(name)
            if mine is None or theirs is None:
                raise _different_models(f"no {name} in one")
            if mine.shape != theirs.shape or mine.value.dtype != theirs.value.dtype:
                raise _different_models(
                    f"{name} as {mine.shape} {mine.value.dtype} and "
                    f"{theirs.shape} {theirs.value.dtype}"
                )
            in_theirs = torch.isin(mine.index, theirs.index)
            in_mine = torch.isin(theirs.index, mine.index)
            # Both are sorted by place, so what is shared stands in the same order.
            if not same_bits(mine.value[in_theirs], theirs.value[in_mine]).all():
                raise _different_models(f"another value in {name} at a place that both remove")

    def _combine(self, mask: Mask, rule: Callable[[MaskTensor, Tensor], MaskTensor]) -> Mask:
        self.refuse_other_model(mask)
        tensors = {
            name: rule(tensor, mask.tensors[name].index) for name, tensor in self.tensors.items()
        }
        return Mask(tensors, dict(self.meta))

    def check(self, name: str, tensor: Tensor | None) -> None:
        """Refuse a tensor that is not the one this mask was made from.

        Args:
            name: Checkpoint name of the tensor.
            tensor: The tensor of the model, or None if it has none of this name.

        Raises:
            MismatchError: Name, shape or a value at a removed place differs; a value that another
                dtype has rounded is the same one.
        """
        expected = self.tensors[name]
        fix = "use the model that the mask was made from"
        if tensor is None:
            raise MismatchError(f"the model has no tensor {name}", fix=fix)
        if tuple(tensor.shape) != expected.shape:
            raise MismatchError(
                f"{name} has another shape than in the mask",
                got=str(tuple(tensor.shape)),
                allowed=str(expected.shape),
                fix=fix,
            )
        values = tensor.detach()[places_in(tensor, expected.index)].cpu()
        different = (~agree(expected.value, values)).nonzero()
        if different.numel():
            row = int(different[0])
            raise MismatchError(
                f"{name} has another value than in the mask, flat index {int(expected.index[row])}",
                got=f"{float(values[row]):.9g} ({len(different)} values of this tensor differ)",
                allowed=f"{float(expected.value[row]):.9g}",
                fix=fix,
            )

    def save(self, path: str | Path) -> None:
        """Write the mask as safetensors, whole or not at all."""
        blobs: dict[str, Tensor] = {}
        shapes: dict[str, list[int]] = {}
        for name, tensor in self.tensors.items():
            narrow = torch.int32 if tensor.size < 2**31 else torch.int64
            blobs[f"{name}|index"] = tensor.index.to(narrow).contiguous()
            blobs[f"{name}|value"] = tensor.value.contiguous()
            blobs[f"{name}|round"] = tensor.round.contiguous()
            shapes[name] = list(tensor.shape)
        header = files.plain({"kind": KIND, "shapes": shapes, "meta": dict(self.meta)})
        files.write_tensors(path, blobs, header | files.provenance())

    @staticmethod
    def load(path: str | Path) -> Mask:
        """Read a mask.

        Raises:
            InputError: The file is missing, broken or not a mask of this version.
        """
        blobs, header = load_artefact(path, KIND)
        try:
            tensors = {
                name: MaskTensor(
                    tuple(shape),
                    blobs[f"{name}|index"].to(torch.int64),
                    blobs[f"{name}|value"],
                    blobs[f"{name}|round"],
                )
                for name, shape in header["shapes"].items()
            }
            meta = dict(header["meta"])
        except KeyError as error:
            raise InputError(f"{path} is not a whole mask", got=f"no {error}") from error
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError(f"{path} is not a whole mask", got=str(error)) from error
        for name, tensor in tensors.items():
            _refuse_odd(name, tensor, path)
        return Mask(tensors, meta)


def _refuse_odd(name: str, tensor: MaskTensor, path: str | Path) -> None:
    """Raise `InputError` if what a file says of one tensor cannot be a part of a mask."""
    index = tensor.index
    if not all(type(side) is int and 0 < side < 2**62 for side in tensor.shape):
        raise InputError(f"{path} has a shape of {name} that no tensor has", got=f"{tensor.shape}")
    if {index.shape, tensor.value.shape, tensor.round.shape} != {(index.numel(),)}:
        raise InputError(f"{path} has lists of different lengths for {name}")
    if tensor.round.dtype != torch.uint8 or not tensor.value.is_floating_point():
        raise InputError(
            f"{path} has values of another dtype for {name}",
            got=f"{tensor.value.dtype}, {tensor.round.dtype}",
        )
    if not index.numel():
        return
    lowest, highest = (int(edge) for edge in index.aminmax())
    if lowest < 0 or highest >= tensor.size:
        outside = lowest if lowest < 0 else highest
        raise InputError(f"{path} has an index outside of {name}", got=str(outside))
    if bool((index[1:] <= index[:-1]).any()):
        raise InputError(f"{path} has indices of {name} that are not sorted, or twice the same")


def _different_models(got: str) -> MismatchError:
    return MismatchError(
        "the masks belong to different models",
        got=got,
        fix="make both masks on the same checkpoint in the same dtype",
    )


_BITS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}


def same_bits(values: Tensor, expected: Tensor) -> Tensor:
    """Tell where two tensors [k] of one dtype hold the same bits, which NaN may be too."""
    whole = _BITS[values.element_size()]
    return values.contiguous().view(whole) == expected.contiguous().view(whole)


def agree(value: Tensor, actual: Tensor) -> Tensor:
    """Tell where the weights of a model are those of a mask, bit for bit or up to a dtype.

    A model may have been loaded in another dtype than its files have, and an older mask may hold
    values in the dtype in which it was scored. A conversion rounds, so one of the two is that of
    the other; NaN stays NaN, but not always with its bits.

    Args:
        value: Values [k] of the mask.
        actual: Values [k] of the model at the same places.
    """
    if value.dtype == actual.dtype:
        return same_bits(value, actual)
    there, back = value.to(actual.dtype), actual.to(value.dtype)
    both_nan = value.isnan() & actual.isnan()
    return same_bits(there, actual) | same_bits(back, value) | both_nan


def places_in(tensor: Tensor, index: Tensor) -> tuple[Tensor, ...]:
    """Return flat indices [k] as coordinates, for tensors that may be views of larger ones.

    A flat view of such a tensor does not exist, and `reshape` would copy it whole. For the few axes
    of a weight this takes a fraction of the time of `torch.unravel_index`.
    """
    flat, places = index.to(tensor.device), list[Tensor]()
    for size in reversed(tensor.shape):
        places.append(flat % size)
        flat = flat // size
    return tuple(reversed(places))


class Artefact(NamedTuple):
    """What one of our safetensors files holds: tensors by name, and plain values about them."""

    tensors: dict[str, Tensor]
    header: dict[str, Any]


def load_artefact(path: str | Path, kind: str) -> Artefact:
    """Read one of our safetensors files.

    Raises:
        InputError: The file is missing, broken, of another kind or of another version.
    """
    if not Path(path).is_file():
        raise InputError("no such file", got=str(path))
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("resect", "null"))
            # safe_open has keys(), but is no mapping.
            blobs = {name: file.get_tensor(name) for name in list(file.keys())}
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a readable artefact", got=str(error)) from error
    if not isinstance(header, dict) or header.get("kind") != kind:
        raise InputError(
            f"{path} is not the kind of file that is needed here",
            got=str(header.get("kind"))
            if isinstance(header, dict)
            else "a file of another program",
            allowed=kind,
        )
    files.check_schema(header.get("schema_version"), path)
    return Artefact(blobs, header)


def revalued(mask: Mask, weights: Mapping[str, Tensor]) -> Mask:
    """Return the same places with the values of another model of the same shapes.

    So weights that were located on a fine-tuned copy can be cut from the model it was made from.

    Args:
        mask: Located on one model.
        weights: Checkpoint tensors of the other model by name.

    Raises:
        MismatchError: A tensor is missing or has another shape.
    """
    tensors = {}
    for name, tensor in mask.tensors.items():
        if name not in weights or tuple(weights[name].shape) != tensor.shape:
            raise MismatchError(
                f"the models differ in {name}",
                got=str(tuple(weights[name].shape)) if name in weights else "no such tensor",
                allowed=str(tensor.shape),
                fix="locate weights on a model of the same architecture and size",
            )
        value = weights[name][places_in(weights[name], tensor.index)].detach().cpu().clone()
        tensors[name] = MaskTensor(tensor.shape, tensor.index, value, tensor.round)
    return Mask(tensors, {**mask.meta, "located_on": mask.meta.get("model_id", "")})
