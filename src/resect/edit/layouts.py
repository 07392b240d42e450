"""Masks carried from the layout that they were made in to that of a file or a model.

One model can be saved with a tensor for each expert or with one for all, and under names before
which a wrapper stands. A weight is the same one in all of them; where it lies in the parameters of
the model (`resect.model.places`) says which.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from resect.model.files import Entry
from resect.model.places import Layouts, Place
from resect.model.prunable import find_prunable
from resect.model.shapes import empty_model
from resect.records import CausalModel
from resect.weights.mask import Mask, MaskTensor


def carried(mask: Mask, layouts: Layouts, targets: Iterable[Place]) -> Mask:
    """Return a mask in other tensors of the same parameters; weights and values stay the same.

    Args:
        mask: The mask, in any layout of its model.
        layouts: Knows where its tensors lie.
        targets: The tensors to carry it to, with their places in the parameters.

    Raises:
        MismatchError: The model has no such tensor, or the targets do not hold a removed weight.
    """
    wanted: dict[str, list[Place]] = {}
    for place in targets:
        wanted.setdefault(place.parameter, []).append(place)
    pieces: dict[str, list[MaskTensor]] = {}
    for name, entry in mask.tensors.items():
        source = layouts.find(name, entry.shape)
        if source is None or source.parameter not in wanted:
            if entry.index.numel():
                mask.check(name, None)
            continue
        offsets = source.offsets(entry.index)
        missing = torch.ones(len(offsets), dtype=torch.bool)
        for target in wanted[source.parameter]:
            index = target.indices(offsets)
            inside = index >= 0
            missing &= ~inside
            pieces.setdefault(target.name, []).append(
                MaskTensor(target.shape, index[inside], entry.value[inside], entry.round[inside])
            )
        if missing.any():
            mask.check(name, None)
    return Mask({name: _joined(parts) for name, parts in pieces.items()}, mask.meta)


def _joined(parts: list[MaskTensor]) -> MaskTensor:
    """Return one entry of those that fall into one tensor."""
    filled = [part for part in parts if part.index.numel()] or parts[:1]
    index, order = torch.cat([part.index for part in filled]).sort()
    return MaskTensor(
        filled[0].shape,
        index,
        torch.cat([part.value for part in filled])[order],
        torch.cat([part.round for part in filled])[order],
    )


def carried_to_files(mask: Mask, folder: Path, tensors: Mapping[str, Entry]) -> Mask:
    """Return a mask in the tensors of a checkpoint folder, by its names and shapes.

    Args:
        mask: The mask, in any layout of the folder's model.
        folder: The folder, with a config.json.
        tensors: What its files hold.

    Raises:
        InputError: The folder has no configuration of a causal LM.
        MismatchError: A masked tensor is none of the model's, or not in the files.
    """
    layouts = Layouts(dict(empty_model(str(folder)).named_modules())[""])
    found = [layouts.find(name, entry.shape) for name, entry in tensors.items()]
    return carried(mask, layouts, [place for place in found if place is not None])


def in_model(mask: Mask, model: CausalModel) -> Mask:
    """Return a mask in the tensors that a model is scored and cut by.

    Args:
        mask: The mask, in any layout of the model; older ones may name all experts of a layer
            together.
        model: The model.

    Raises:
        MismatchError: Some of its tensors are the model's and others are not.
    """
    targets = [place for weight in find_prunable(model).weights for place in weight.places]
    return carried_to_model(mask, model, targets)


def carried_to_model(mask: Mask, model: CausalModel, targets: Iterable[Place]) -> Mask:
    """Return a mask in the tensors of a model, which may be those it names already.

    Args:
        mask: The mask, in any layout of the model.
        model: The model.
        targets: Its tensors with their places in its parameters.

    Raises:
        MismatchError: A masked tensor is none of the model's.
    """
    targets = list(targets)
    names = {place.name for place in targets}
    if all(name in names for name, entry in mask.tensors.items() if entry.index.numel()):
        return mask
    return carried(mask, Layouts(dict(model.named_modules())[""]), targets)
