"""Hold weights while a model is fine-tuned: cut ones at zero, or others at the value they had.

Training moves cut weights: weight decay and momentum move even those without a gradient. Here two
things are done to the held weights and to no others. Their gradient is set to zero as soon as it is
accumulated, so that neither clipping by norm nor an optimiser's moments know of them; and after
every step of the optimiser their value is written back, bit for bit, whatever the optimiser did.
So every other weight is trained as it would be if the held ones were constants of the model.

Low-rank adapters leave the weights under them alone and move their sum. Held places are reset when
the adapter has been merged: `hold.apply(model.merge_and_unload())`. Until then an unmerged adapter
may add something at a held place; what it learned there is thrown away by the merge.

Legend: k held weights of a parameter.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import TrainerCallback

from resect.errors import InputError, MismatchError
from resect.model import Place, find_prunable
from resect.weights.mask import Mask, MaskTensor

At = Literal["zero", "original"]

MEASURED_STEPS = 20

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HoldCost:
    """What holding costs, measured over the first steps.

    Attributes:
        weights: Number of held weights.
        tensors: Number of parameters that they are in.
        steps: Steps measured, at most `MEASURED_STEPS`, the first left out.
        seconds: Seconds that holding took a step.
        share: The same as a fraction of the time from one step to the next; 0 before the second.
    """

    weights: int
    tensors: int
    steps: int
    seconds: float
    share: float


@dataclass
class _Held:
    """Held weights of one parameter: their coordinates, [k] each, and values [k]."""

    name: str
    parameter: Tensor
    places: tuple[Tensor, ...]
    value: Tensor

    def write(self, tensor: Tensor, value: Tensor) -> None:
        """Write `value` [k] into the held places of `tensor`, a parameter or its gradient."""
        if self.places[0].device != tensor.device:
            self.places = tuple(axis.to(tensor.device) for axis in self.places)
            self.value = self.value.to(tensor.device)
        tensor[self.places] = value.to(tensor.device)


class HoldMask(TrainerCallback):  # type: ignore[misc]
    """Hold the weights of a mask while a model is trained.

    As a callback of the Trainer of transformers or TRL: `Trainer(..., callbacks=[HoldMask(mask)])`.
    In a loop of one's own: `hold.attach(model, optimizer)`, or `with hold.holding(model,
    optimizer)`. After merging a LoRA adapter: `hold.apply(model.merge_and_unload())`.
    """

    def __init__(self, mask: Mask, *, at: At = "zero", check: bool = True) -> None:
        """Choose what to hold.

        Args:
            mask: Which weights, in checkpoint coordinates.
            at: `zero` holds them cut; weights that are not cut yet are cut when training begins.
                `original` freezes them at the values that the mask holds.
            check: Refuse a model whose weights at the masked places are neither the mask's nor, for
                `zero`, cut already. Turn it off for a model that was tuned since it was scored.

        Raises:
            InputError: `at` is neither of the two.
        """
        if at not in ("zero", "original"):
            raise InputError("unknown value to hold at", got=repr(at), allowed="zero, original")
        self.mask = mask
        self.at = at
        self.check = check
        self._held: list[_Held] = []
        self._handles: list[Any] = []
        self._spent: list[float] = []
        self._gradient_seconds = 0.0
        self._marks: list[float] = []

    @property
    def cost(self) -> HoldCost:
        """What holding costs, from what was measured so far."""
        spent = self._spent[1:] or self._spent
        seconds = sum(spent) / len(spent) if spent else 0.0
        between = (
            (self._marks[-1] - self._marks[0]) / (len(self._marks) - 1)
            if len(self._marks) > 1
            else 0.0
        )
        return HoldCost(
            sum(held.value.numel() for held in self._held),
            len(self._held),
            len(spent),
            seconds,
            seconds / between if between else 0.0,
        )

    def attach(self, model: Any, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Set the held weights and keep them there from now on.

        Args:
            model: A causal LM, or one inside PEFT, `torch.compile` or data parallelism.
            optimizer: The optimiser; after each of its steps the values are written back. Without
                one, call `reset` after every step.

        Raises:
            MismatchError: The mask belongs to another model.
            InputError: The weights are sharded over several devices.
        """
        self.detach()
        self._held = _find(model, self.mask, self.at)
        if self.check:
            for held in self._held:
                self._refuse_others(held)
        self.reset(measure=False)
        trained = [held for held in self._held if held.parameter.requires_grad]
        for held in trained:
            hook = self._without_gradient(held)
            handle = held.parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
            self._handles.append(handle)
        if optimizer is not None:
            self._handles.append(optimizer.register_step_post_hook(self._after_step))
        if len(trained) < len(self._held):
            _log.info(
                "%d of %d held tensors are not trained themselves; after merging an adapter call "
                "hold.apply(merged_model)",
                len(self._held) - len(trained),
                len(self._held),
            )

    def detach(self) -> None:
        """Stop holding; the weights stay as they are."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @contextlib.contextmanager
    def holding(
        self, model: Any, optimizer: torch.optim.Optimizer | None = None
    ) -> Iterator[HoldMask]:
        """Attach while the block runs."""
        self.attach(model, optimizer)
        try:
            yield self
        finally:
            self.reset(measure=False)
            self.detach()

    def reset(self, *, measure: bool = True) -> None:
        """Write the held values back into the attached model; called after each step."""
        timed = measure and len(self._spent) <= MEASURED_STEPS
        begin = _now(self._held) if timed else 0.0
        with torch.no_grad():
            for held in self._held:
                held.write(held.parameter, held.value)
        if timed:
            self._note_cost(begin)

    def apply(self, model: Any) -> int:
        """Write the held values into a model once, a merged one for instance.

        Args:
            model: A model of the architecture that the mask was made from; values are not checked,
                because merging changed them.

        Returns:
            How many of the held weights had another value.

        Raises:
            MismatchError: A tensor of the mask is missing or has another shape.
        """
        moved = 0
        with torch.no_grad():
            for held in _find(model, self.mask, self.at):
                places = tuple(axis.to(held.parameter.device) for axis in held.places)
                value = held.value.to(held.parameter.device)
                moved += int((held.parameter[places] != value).sum())
                held.write(held.parameter, value)
        return moved

    def on_train_begin(self, *_: Any, model: Any, **__: Any) -> None:
        """Attach to the model that the Trainer is about to train."""
        self.attach(model)

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Write the held values back after the optimiser's step, before anything is saved."""
        self.reset()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Let go; the weights are at the held values, those of a best checkpoint too."""
        self.reset(measure=False)
        self.detach()

    def _after_step(self, *_: Any) -> None:
        self.reset()

    def _without_gradient(self, held: _Held) -> Callable[[Tensor], None]:
        zero = torch.zeros(())

        def hook(parameter: Tensor) -> None:
            begin = time.perf_counter()
            if parameter.grad is not None:
                held.write(parameter.grad, zero.to(parameter.grad.dtype))
            self._gradient_seconds += time.perf_counter() - begin

        return hook

    def _refuse_others(self, held: _Held) -> None:
        places = tuple(axis.to(held.parameter.device) for axis in held.places)
        found = held.parameter.detach()[places].cpu()
        original = _values(self.mask, held.name, found.dtype)
        cut_already = self.at == "zero" and not bool(found.any())
        if not cut_already and not torch.equal(found, original):
            raise MismatchError(
                f"{held.name} has other values than in the mask",
                got=f"{int((found != original).sum())} of {found.numel()} masked weights differ",
                allowed="the values of the mask" + (", or zeros" if self.at == "zero" else ""),
                fix="use the model that the mask was made from, or pass check=False",
            )

    def _note_cost(self, begin: float) -> None:
        now = _now(self._held)
        self._spent.append(now - begin + self._gradient_seconds)
        self._gradient_seconds = 0.0
        self._marks.append(now)
        if len(self._spent) == MEASURED_STEPS + 1:
            cost = self.cost
            _log.info(
                "holding %d weights in %d tensors costs %.3g ms a step, %.2g %% of it",
                cost.weights,
                cost.tensors,
                1000 * cost.seconds,
                100 * cost.share,
            )


def _now(held: list[_Held]) -> float:
    # A GPU runs behind the program; without waiting for it the time would be that of the queue.
    if held and held[0].parameter.is_cuda:
        torch.cuda.synchronize(held[0].parameter.device)
    return time.perf_counter()


def _find(model: Any, mask: Mask, at: At) -> list[_Held]:
    """Return the masked weights of a model, wrapped or not, by parameter."""
    inner = _unwrapped(model)
    parameters = {_plain_name(name): parameter for name, parameter in _own_parameters(inner)}
    places = {place.name: place for place in _places(inner)}
    wanted = {name: entry for name, entry in mask.tensors.items() if entry.index.numel()}
    held = []
    for name, entry in wanted.items():
        place = places.get(name)
        if place is None or place.parameter not in parameters:
            raise MismatchError(
                f"the model has no tensor {name}", fix="use the model that the mask was made from"
            )
        parameter = parameters[place.parameter]
        _refuse_shape(name, entry, place, parameter)
        value = _values(mask, name, parameter.dtype)
        held.append(
            _Held(
                name,
                parameter,
                torch.unravel_index(_flat_in_parameter(entry.index, place), parameter.shape),
                torch.zeros_like(value) if at == "zero" else value,
            )
        )
    return held


def _values(mask: Mask, name: str, dtype: torch.dtype) -> Tensor:
    return mask.tensors[name].value.to(dtype)


def _flat_in_parameter(index: Tensor, place: Place) -> Tensor:
    """Turn flat indices [k] of a checkpoint tensor into those of the parameter that holds it."""
    axes = torch.unravel_index(index, place.shape)
    flat = torch.full_like(index, place.offset)
    for axis, stride in zip(axes, place.stride, strict=True):
        flat += axis * stride
    return flat


def _refuse_shape(name: str, entry: MaskTensor, place: Place, parameter: Tensor) -> None:
    if place.shape != entry.shape:
        raise MismatchError(
            f"{name} has another shape than in the mask",
            got=str(place.shape),
            allowed=str(entry.shape),
            fix="use the model that the mask was made from",
        )
    # FSDP and ZeRO-3 replace a parameter by a piece of it, in which our coordinates mean nothing.
    if type(parameter).__name__ == "DTensor" or parameter.numel() < place.size:
        raise InputError(
            "weights that are sharded over devices cannot be held",
            got=f"{name} as {type(parameter).__name__} {tuple(parameter.shape)}",
            allowed="whole weights: one device, data parallelism, or ZeRO stages 1 and 2",
        )


def _unwrapped(model: Any) -> Any:
    """Return the Hugging Face model inside PEFT, `torch.compile` or data parallelism."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif isinstance(model, torch.nn.parallel.DistributedDataParallel | torch.nn.DataParallel):
            model = model.module
        elif hasattr(model, "get_base_model"):
            model = model.get_base_model()
        else:
            return model


def _own_parameters(model: Any) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        if ".original_module." not in name:
            yield name, parameter


def _plain_name(name: str) -> str:
    """Return the name that a parameter has without adapters around it."""
    parts = [part for part in name.split(".") if part not in ("base_layer", "_orig_mod")]
    if "modules_to_save" in parts:
        at = parts.index("modules_to_save")
        del parts[at : at + 2]
    return ".".join(parts)


def _places(model: Any) -> list[Place]:
    """Return where checkpoint tensors lie, in a model without its adapters."""
    plain = model
    if any(".base_layer." in name for name, _ in model.named_parameters()):
        # Its structure is hidden under the adapters; one without weights has the same.
        with torch.device("meta"):
            plain = type(model)(model.config)
    return [place for weight in find_prunable(plain).weights for place in weight.places]
