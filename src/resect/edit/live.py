"""Cut weights of a live model, and put every bit back.

This is the one module that changes the weights of a model that is not being trained.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from resect.edit.layouts import carried_to_model
from resect.errors import InputError
from resect.model.places import Place
from resect.model.prunable import find_prunable, out_of_reach
from resect.records import CausalModel
from resect.weights.fill import Filled
from resect.weights.mask import Mask, places_in

Model = TypeVar("Model", bound=CausalModel)


class _Saved(NamedTuple):
    """What stood at the masked places of one checkpoint tensor."""

    parameter: Tensor
    place: Place
    indices: Tensor
    values: Tensor


class Applied(Generic[Model]):
    """A cut that is in force until `revert`, or until the end of a `with` block.

    Attributes:
        model: The model that was cut.
        mask: What was cut from it.
        alpha: Factor of the masked weights.
    """

    def __init__(self, model: Model, mask: Mask, alpha: float, saved: list[_Saved]):
        """Keep what is needed to undo a cut; made by `apply`."""
        self.model = model
        self.mask = mask
        self.alpha = alpha
        self._saved = saved

    @property
    def active(self) -> bool:
        """Whether the cut is still in force."""
        return bool(self._saved)

    def revert(self) -> None:
        """Put every bit back; does nothing the second time.

        The model may have been moved, or wrapped by PEFT, since. After a change of its dtype the
        original values are converted as all others were.
        """
        with torch.no_grad():
            for parameter, place, indices, values in reversed(self._saved):
                # Looked up again: `model.to` gives a parameter new memory.
                tensor = place.view(parameter.detach())
                tensor[places_in(tensor, indices)] = values.to(tensor.device, tensor.dtype)
        self._saved = []

    def __enter__(self) -> Model:
        """Return the model."""
        return self.model

    def __exit__(self, *_error: object) -> None:
        """Put every bit back, after an exception too."""
        self.revert()


def apply(
    model: Model, mask: Mask, *, alpha: float = 0.0, instead: Mapping[str, Tensor] | None = None
) -> Applied[Model]:
    """Multiply the masked weights of a live model by `alpha` until that is reverted.

    Cuts may be nested, as long as their masks share no weight.

    Args:
        model: A Hugging Face causal LM.
        mask: Which weights, in checkpoint coordinates.
        alpha: Factor; 0 removes.
        instead: [k] values by tensor name that stand in the place of the masked weights, in the
            order of the mask's indices; `alpha` does not count then.

    Returns:
        A handle with `revert()`, which is a context manager as well.

    Raises:
        MismatchError: The mask belongs to another model; nothing was changed.
        InputError: Masked weights are sharded or offloaded.
    """
    parameters = dict(model.named_parameters())
    places = {
        place.name: (parameters[weight.name], place)
        for weight in find_prunable(model).weights
        for place in weight.places
    }
    here = carried_to_model(mask, model, [place for _, place in places.values()])
    masked = {name: entry for name, entry in here.tensors.items() if entry.index.numel()}
    _refuse_out_of_reach(model, {name: places[name][0] for name in masked if name in places})
    tensors = {
        name: place.view(weight.detach())
        for name, (weight, place) in places.items()
        if name in masked
    }
    for name in masked:
        here.check(name, tensors.get(name))
    applied = Applied(model, mask, alpha, [])
    try:
        with torch.no_grad():
            for name, entry in masked.items():
                tensor = tensors[name]
                axes = places_in(tensor, entry.index)
                values = tensor[axes]
                applied._saved.append(_Saved(*places[name], entry.index, values))
                if instead is not None:
                    tensor[axes] = instead[name].to(values.device, values.dtype)
                else:
                    tensor[axes] = values * alpha if alpha else torch.zeros_like(values)
    except BaseException:
        applied.revert()
        raise
    return applied


def _refuse_out_of_reach(model: CausalModel, parameters: Mapping[str, Tensor]) -> None:
    """Refuse weights of which this process holds a part or nothing: torch drops single writes.

    Raises:
        InputError: There is one.
    """
    for name, parameter in parameters.items():
        where = out_of_reach(parameter, model)
        if where:
            raise InputError(
                "single weights cannot be cut out of a model that is not wholly in memory",
                got=f"{name}, {where}",
                allowed="weights that are whole on a CPU or GPU",
                fix="load the model whole, cut it, and only then shard it; or cut its folder with "
                "`resect prune` and load that",
            )


@contextlib.contextmanager
def removed(model: Model, mask: Mask, *, alpha: float = 0.0) -> Iterator[Model]:
    """Multiply the masked weights by `alpha` while the block runs; restore every bit after it.

    The same as `with apply(model, mask)`, but the weights are cut when the block is entered and not
    when the context is made.

    Args:
        model: A Hugging Face causal LM.
        mask: Which weights, in checkpoint coordinates.
        alpha: Factor; 0 removes.

    Yields:
        The model.

    Raises:
        MismatchError: The mask belongs to another model; nothing was changed.
        InputError: Masked weights are sharded or offloaded.
    """
    with apply(model, mask, alpha=alpha):
        yield model


@contextlib.contextmanager
def replaced(model: Model, filled: Filled) -> Iterator[Model]:
    """Put values in the place of masked weights while the block runs; restore every bit after it.

    Args:
        model: A Hugging Face causal LM.
        filled: Which weights, and what stands in their place.

    Yields:
        The model.

    Raises:
        MismatchError: The mask belongs to another model; nothing was changed.
    """
    with apply(model, filled.mask, instead=filled.values):
        yield model


@contextlib.contextmanager
def rewritten(parameter: Tensor, offsets: Tensor, values: Tensor) -> Iterator[None]:
    """Put values in single places of a parameter while the block runs; restore every bit after it.

    Args:
        parameter: The parameter, contiguous.
        offsets: [k] flat places in it, without repeats.
        values: [k] what stands there meanwhile, in its dtype and on its device.
    """
    flat = parameter.detach().view(-1)
    saved = flat[offsets]
    try:
        flat[offsets] = values
        yield
    finally:
        flat[offsets] = saved


@contextlib.contextmanager
def transplanted(
    weights: Mapping[str, Tensor], mask: Mask, donor: Mapping[str, Tensor]
) -> Iterator[None]:
    """Give masked weights the values of another model while the block runs; restore every bit.

    Args:
        weights: Live weights by checkpoint name, as `prunable_tensors` returns them.
        mask: Which of them; its own values are not looked at.
        donor: Weights of the same names and shapes; converted to the dtype of `weights`.
    """
    saved: dict[str, Tensor] = {}
    try:
        with torch.no_grad():
            for name, entry in mask.tensors.items():
                tensor = weights[name]
                axes = places_in(tensor, entry.index)
                values = donor[name][places_in(donor[name], entry.index)]
                saved[name] = tensor[axes].clone()
                tensor[axes] = values.to(tensor.device, tensor.dtype)
        yield
    finally:
        with torch.no_grad():
            for name, values in saved.items():
                weights[name][places_in(weights[name], mask.tensors[name].index)] = values


@contextlib.contextmanager
def altered(weights: Mapping[str, Tensor], change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Put what a function makes of whole weights in their place; restore every bit after the block.

    Args:
        weights: The weights, of any shape; a copy of them is held meanwhile.
        change: Weight to values of its shape; it does not write into the weight.
    """
    saved = {name: weight.detach().clone() for name, weight in weights.items()}
    try:
        with torch.no_grad():
            for weight in weights.values():
                weight.copy_(change(weight))
        yield
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(saved[name])


def shrunk(weights: Mapping[str, Tensor], factor: float) -> contextlib.AbstractContextManager[None]:
    """Multiply whole weights by `factor` while the block runs; restore every bit after it.

    Args:
        weights: The weights, of any shape; a copy of them is held meanwhile.
        factor: The factor.
    """
    return altered(weights, lambda weight: weight * factor)


@contextlib.contextmanager
def lent(weights: Mapping[str, Tensor], donor: Mapping[str, Tensor]) -> Iterator[None]:
    """Give whole weights the values of another model while the block runs; restore every bit.

    Args:
        weights: Live weights, of any shape; a copy of them is held meanwhile.
        donor: Weights of the same names and shapes; converted to the dtype of `weights`.
    """
    saved = {name: weight.detach().clone() for name, weight in weights.items()}
    try:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(donor[name])
        yield
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(saved[name])
