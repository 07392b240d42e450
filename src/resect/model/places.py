"""Where the tensors of a checkpoint lie in the parameters of a loaded model.

Masks and scores use the names and shapes in which transformers saves a model of the class. Most of
these tensors are parameters under another name or none; experts are the exception: on disk a matrix
each, in memory one parameter of all. transformers undoes such conversions when it saves a model, so
its own reverse conversion is asked: it is run on shadows of the parameters that have a shape and no
memory, and what comes out are views that say by their offsets and strides where each tensor lies.
Nothing is copied, and no architecture is named here.

A file may be laid out otherwise: with the experts of a layer in one tensor, or with names before
which a wrapper stands. The tensors of the model are the same ones whatever its file was, so that a
ranking within tensors is, too; `Layouts` says where the tensors of such a file lie.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from resect.errors import CoverageError, InputError

# Where transformers notes the conversions that the files of a model needed.
RECORDED = "_weight_conversions"


@dataclass(frozen=True)
class Place:
    """One checkpoint tensor inside one parameter.

    Attributes:
        name: Name of the checkpoint tensor.
        parameter: Name of the parameter in memory.
        shape: Shape of the checkpoint tensor.
        stride: Its strides within the parameter, in elements.
        offset: Its first element within the parameter.
    """

    name: str
    parameter: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """Number of weights."""
        return prod(self.shape)

    @property
    def end(self) -> int:
        """Flat place in the parameter after its last element."""
        steps = zip(self.shape, self.stride, strict=True)
        return self.offset + 1 + sum((side - 1) * stride for side, stride in steps)

    def meets(self, place: Place) -> bool:
        """Tell whether the spans of two tensors in one parameter overlap."""
        return self.offset < place.end and place.offset < self.end

    def view(self, tensor: Tensor) -> Tensor:
        """Return the checkpoint tensor [shape] as a view of `tensor`, laid out as the parameter.

        Raises:
            InputError: `tensor` is not contiguous, so offsets mean nothing in it.
        """
        if not tensor.is_contiguous():
            raise InputError(
                f"{self.parameter} is not contiguous in memory", fix="call .contiguous() on it"
            )
        return tensor.as_strided(self.shape, self.stride, tensor.storage_offset() + self.offset)

    def offsets(self, index: Tensor) -> Tensor:
        """Return where the weights at flat indices [k] of the tensor lie in the flat parameter."""
        steps = torch.unravel_index(index, self.shape)
        offsets = torch.full_like(index, self.offset)
        for step, stride in zip(steps, self.stride, strict=True):
            offsets += step * stride
        return offsets

    def indices(self, offsets: Tensor) -> Tensor:
        """Return the flat indices [k] of what lies at offsets [k] of the parameter, or -1.

        Args:
            offsets: Flat places in the parameter; -1 is returned for those outside of the tensor.
        """
        rest = offsets - self.offset
        inside = rest >= 0
        index = torch.zeros_like(rest)
        # Views of a dense parameter nest their axes, so the widest stride comes first.
        axes = sorted(range(len(self.shape)), key=lambda axis: -self.stride[axis])
        for axis in axes:
            step = rest // self.stride[axis]
            inside &= step < self.shape[axis]
            rest = rest - step * self.stride[axis]
            index += step * prod(self.shape[axis + 1 :])
        return index.masked_fill(~inside | (rest != 0), -1)


class _NoCopies(TorchFunctionMode):
    """Let `contiguous` return its input, since a copy would forget where it came from."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return args[0] if func is torch.Tensor.contiguous else func(*args, **(kwargs or {}))


def checkpoint_places(model: nn.Module, names: Iterable[str]) -> dict[str, tuple[Place, ...]]:
    """Return for each named parameter the checkpoint tensors that it holds, by their offset.

    They do not depend on the file that the model was loaded from, unless that is the only one of
    the layouts in which a parameter has a place of its own.

    Args:
        model: A Hugging Face model.
        names: Names of parameters.

    Raises:
        CoverageError: A checkpoint tensor is made of several parameters, or reorders one in a way
            that no view can express.
    """
    with _as_its_class_saves(model):
        inside = _places_inside(model)
    sizes = {name: parameter.numel() for name, parameter in model.state_dict().items()}
    names = list(names)
    if any(_size(inside.get(name, [])) != sizes[name] for name in names):
        as_loaded = _places_inside(model)
        for name in names:
            if _size(inside.get(name, [])) != sizes[name]:
                inside[name] = as_loaded.get(name, [])
    for name in names:
        if _size(inside.get(name, [])) != sizes[name]:
            raise CoverageError(
                f"{name} has no place of its own in a checkpoint of this architecture",
                got="the checkpoint joins it with others or stores it in another order",
                fix="save the model with save_pretrained(save_original_format=False) and use that "
                "folder",
            )
    return {name: tuple(sorted(inside[name], key=attrgetter("offset"))) for name in names}


def _size(places: Iterable[Place]) -> int:
    return sum(place.size for place in places)


@contextlib.contextmanager
def _as_its_class_saves(model: nn.Module) -> Iterator[None]:
    """Let a model forget meanwhile which conversions its file needed."""
    recorded = vars(model).pop(RECORDED, None)
    try:
        yield
    finally:
        if recorded is not None:
            setattr(model, RECORDED, recorded)


def _places_inside(model: nn.Module) -> dict[str, list[Place]]:
    """Return for each parameter the checkpoint tensors that lie in it alone."""
    from transformers.core_model_loading import revert_weight_conversion

    shadows = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        for name, tensor in model.state_dict().items()
    }
    owners = {shadow.untyped_storage()._cdata: name for name, shadow in shadows.items()}
    with _NoCopies():
        on_disk = revert_weight_conversion(model, dict(shadows))
    inside: dict[str, list[Place]] = {}
    for name, view in on_disk.items():
        owner = owners.get(view.untyped_storage()._cdata)
        if owner is not None:
            inside.setdefault(owner, []).append(
                Place(name, owner, tuple(view.shape), view.stride(), view.storage_offset())
            )
    return inside


class Layouts:
    """Finds the tensors of a file in the parameters of a model, whichever layout the file has."""

    def __init__(self, model: nn.Module) -> None:
        """Ask transformers for the names that it would read into a model of this class.

        Args:
            model: A Hugging Face model; one on the meta device will do.
        """
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming

        self._renamings = [
            change
            for change in get_model_conversion_mapping(model)
            if isinstance(change, WeightRenaming)
        ]
        self._prefix = f"{getattr(model, 'base_model_prefix', '')}."
        with _as_its_class_saves(model):
            inside = _places_inside(model)
        places = [place for each in inside.values() for place in each]
        whole = [
            Place(name, name, tuple(tensor.shape), _dense(tensor.shape), 0)
            for name, tensor in model.named_parameters()
        ]
        self._named: dict[str, list[Place]] = {}
        for place in [*places, *whole]:
            for name in dict.fromkeys([place.name, self._renamed(place.name)]):
                self._named.setdefault(name, []).append(place)

    def find(self, name: str, shape: tuple[int, ...]) -> Place | None:
        """Return where a tensor of a file lies, under the name that it has there.

        Args:
            name: Its name in the file.
            shape: Its shape in the file.

        Returns:
            Its place; None if the class has none for this name and shape.
        """
        renamed = self._renamed(name)
        candidates = [name, renamed, renamed.removeprefix(self._prefix), self._prefix + renamed]
        for candidate in dict.fromkeys(candidates):
            for place in self._named.get(candidate, []):
                if place.shape == shape:
                    return replace(place, name=name)
        return None

    def _renamed(self, name: str) -> str:
        from transformers.core_model_loading import apply_renamings

        renamed: str = apply_renamings(name, self._renamings)
        return renamed


def _dense(shape: Iterable[int]) -> tuple[int, ...]:
    sides = tuple(shape)
    return tuple(prod(sides[axis + 1 :]) for axis in range(len(sides)))
