"""Where the tensors of a checkpoint lie in the parameters of a loaded model.

Masks and scores use the names and shapes of the checkpoint on disk. Most of its tensors are
parameters under another name or none; experts are the exception: on disk a matrix each, in memory
one parameter of all. transformers undoes such conversions when it saves a model, so its own reverse
conversion is asked: it is run on shadows of the parameters that have a shape and no memory, and
what comes out are views that say by their offsets and strides where each tensor lies. Nothing is
copied, and no architecture is named here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from resect.errors import CoverageError, InputError


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

    Args:
        model: A Hugging Face model.
        names: Names of parameters.

    Raises:
        CoverageError: A checkpoint tensor is made of several parameters, or reorders one in a way
            that no view can express.
    """
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
    places = {}
    for name in names:
        ordered = sorted(inside.get(name, []), key=attrgetter("offset"))
        if sum(place.size for place in ordered) != shadows[name].numel():
            raise CoverageError(
                f"{name} has no place of its own in a checkpoint of this architecture",
                got="the checkpoint joins it with others or stores it in another order",
                fix="save the model with save_pretrained(save_original_format=False) and open an "
                "issue that names the architecture",
            )
        places[name] = tuple(ordered)
    return places
