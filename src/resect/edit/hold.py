"""Hold weights while a model is fine-tuned: cut ones at zero, or others at the value they had.

Training moves cut weights: weight decay and momentum move even those without a gradient. Two things
are done to the held weights and to no others. Their gradient is set to zero as soon as it has been
accumulated, so that it reaches neither clipping by norm nor the moments of the optimiser. And after
every step of the optimiser their value is written back, bit for bit, whatever the optimiser did.
So every other weight is trained as it would be if the held ones were constants of the model.

Low-rank adapters leave the weights under them alone and are added to them. Held weights are reset
when the adapter has been merged: `hold.apply(model.merge_and_unload())`. Until then an adapter may
add something to a held weight; what it learned there is lost with that call.

An adapter that is saved unmerged names its base. The model in memory has been cut, and what stands
under that name has not: base and adapter together would bring the cut back. So the adapter's
`base_model_name_or_path` becomes `NAME cut with resect mask HASH`, unless the base is a folder that
says itself that it was cut with this mask.

Legend: k held weights of a parameter.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback

from resect.edit.checkpoint import cut_record
from resect.errors import InputError, MismatchError
from resect.model import Place, find_prunable
from resect.model.prunable import out_of_reach
from resect.records import CausalModel, ModelConfig
from resect.weights.mask import Mask, MaskTensor

At = Literal["zero", "original"]
# A causal LM, or one inside PEFT, `torch.compile` or data parallelism.
Wrapped = CausalModel | nn.Module

MEASURED_STEPS = 20
# What an adapter calls the base that it was trained on, after the base's own name.
CUT_BASE = "cut with resect mask {}"

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
    """The held weights of one parameter.

    Attributes:
        name: Name of the checkpoint tensor.
        parameter: The parameter that holds it.
        axes: Coordinates of the held weights in the parameter, [k] for each axis.
        value: The values at which they are held [k].
    """

    name: str
    parameter: Tensor
    axes: tuple[Tensor, ...]
    value: Tensor

    def read(self) -> Tensor:
        """Return what the parameter has there now [k]."""
        axes = tuple(axis.to(self.parameter.device) for axis in self.axes)
        return self.parameter.detach()[axes]

    def write(self, tensor: Tensor, value: Tensor) -> None:
        """Write `value` [k] to the held weights in `tensor`, a parameter or its gradient."""
        if self.axes[0].device != tensor.device:
            self.axes = tuple(axis.to(tensor.device) for axis in self.axes)
            self.value = self.value.to(tensor.device)
        tensor[self.axes] = value.to(tensor.device)


class AdapterSettings(Protocol):
    """What we write of a configuration of PEFT."""

    base_model_name_or_path: str | None


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
        self._handles: list[RemovableHandle] = []
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
            sum(group.value.numel() for group in self._held),
            len(self._held),
            len(spent),
            seconds,
            seconds / between if between else 0.0,
        )

    def attach(self, model: Wrapped, optimizer: torch.optim.Optimizer | None = None) -> None:
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
            for group in self._held:
                self._refuse_others(group)
        self.reset(measure=False)
        trained = [group for group in self._held if group.parameter.requires_grad]
        for group in trained:
            hook = self._without_gradient(group)
            handle = group.parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
            self._handles.append(handle)
        if optimizer is not None:
            self._handles.append(optimizer.register_step_post_hook(self._after_step))
        named = _name_cut_base(model, self.mask) if self.at == "zero" else ""
        if named:
            _log.warning(
                "the adapter belongs to the model as it is cut now and not to the checkpoint: on "
                "that one it would bring the cut weights back. It is saved with the base %r. Put "
                "it on the output of resect prune; or merge it, call hold.apply(merged) and save "
                "the merged model",
                named,
            )
        elif len(trained) < len(self._held):
            # An adapter that is saved unmerged is not held.
            _log.log(
                logging.WARNING if _adapters(model) else logging.INFO,
                "%d of %d held tensors are not trained themselves; after merging an adapter call "
                "hold.apply(merged)",
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
        self, model: Wrapped, optimizer: torch.optim.Optimizer | None = None
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
            for group in self._held:
                group.write(group.parameter, group.value)
        if timed:
            self._note_cost(begin)

    def apply(self, model: Wrapped) -> int:
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
            for group in _find(model, self.mask, self.at):
                value = group.value.to(group.parameter.device)
                moved += int((group.read() != value).sum())
                group.write(group.parameter, value)
        return moved

    def on_train_begin(self, *_: object, model: Wrapped, **__: object) -> None:
        """Attach to the model that the Trainer is about to train."""
        self.attach(model)

    def on_optimizer_step(self, *_: object, **__: object) -> None:
        """Write the held values back after the optimiser's step, before anything is saved."""
        self.reset()

    def on_train_end(self, *_: object, **__: object) -> None:
        """Let go; the weights are at the held values, those of a best checkpoint too."""
        self.reset(measure=False)
        self.detach()

    def _after_step(self, *_: object) -> None:
        self.reset()

    def _without_gradient(self, group: _Held) -> Callable[[Tensor], None]:
        zero = torch.zeros(())

        def hook(parameter: Tensor) -> None:
            begin = time.perf_counter()
            if parameter.grad is not None:
                group.write(parameter.grad, zero.to(parameter.grad.dtype))
            self._gradient_seconds += time.perf_counter() - begin

        return hook

    def _refuse_others(self, group: _Held) -> None:
        value = group.read().cpu()
        original = _values(self.mask, group.name, value.dtype)
        cut_already = self.at == "zero" and not bool(value.any())
        if not cut_already and not torch.equal(value, original):
            raise MismatchError(
                f"{group.name} has other values than in the mask",
                got=f"{int((value != original).sum())} of {value.numel()} masked weights differ",
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


def _name_cut_base(model: Wrapped, mask: Mask) -> str:
    """Let the adapters of a model name the cut base that they are trained on.

    Returns:
        That name; "" if there is no adapter, or the base is a folder that was cut with this mask.
    """
    settings = _adapters(model)
    base = str(getattr(_unwrapped(model), "name_or_path", "") or "")
    if not settings or (base and (cut_record(base) or {}).get("mask") == mask.hash):
        return ""
    named = f"{base or 'a model'} {CUT_BASE.format(mask.hash)}"
    for adapter in settings:
        adapter.base_model_name_or_path = named
    return named


def _adapters(model: Wrapped) -> list[AdapterSettings]:
    """Return the settings of the adapters around a model; none without PEFT."""
    inner: object = model
    while inner is not None:
        settings = getattr(inner, "peft_config", None)
        if isinstance(settings, dict):
            return list(settings.values())
        inner = getattr(inner, "_orig_mod", None) or getattr(inner, "module", None)
    return []


def _now(groups: list[_Held]) -> float:
    # A GPU runs behind the program; without waiting for it the time would be that of the queue.
    if groups and groups[0].parameter.device.type != "cpu":
        torch.accelerator.synchronize(groups[0].parameter.device)
    return time.perf_counter()


def _find(model: Wrapped, mask: Mask, at: At) -> list[_Held]:
    """Return the masked weights of a model, grouped by checkpoint tensor."""
    inner = _unwrapped(model)
    # PEFT keeps the original of a module that it trains a copy of; the copy is what counts.
    parameters = {
        _plain_name(name): parameter
        for name, parameter in inner.named_parameters()
        if ".original_module." not in name
    }
    places = {place.name: place for place in _places(inner)}
    masked = {name: entry for name, entry in mask.tensors.items() if entry.index.numel()}
    groups = []
    for name, entry in masked.items():
        place = places.get(name)
        if place is None or place.parameter not in parameters:
            raise MismatchError(
                f"the model has no tensor {name}", fix="use the model that the mask was made from"
            )
        parameter = parameters[place.parameter]
        _refuse_shape(name, entry, place, parameter, inner)
        value = _values(mask, name, parameter.dtype)
        groups.append(
            _Held(
                name,
                parameter,
                torch.unravel_index(_flat_in_parameter(entry.index, place), parameter.shape),
                torch.zeros_like(value) if at == "zero" else value,
            )
        )
    return groups


def _values(mask: Mask, name: str, dtype: torch.dtype) -> Tensor:
    return mask.tensors[name].value.to(dtype)


def _flat_in_parameter(index: Tensor, place: Place) -> Tensor:
    """Turn flat indices [k] of a checkpoint tensor into those of the parameter that holds it."""
    axes = torch.unravel_index(index, place.shape)
    flat = torch.full_like(index, place.offset)
    for axis, stride in zip(axes, place.stride, strict=True):
        flat += axis * stride
    return flat


def _refuse_shape(
    name: str, entry: MaskTensor, place: Place, parameter: Tensor, model: CausalModel
) -> None:
    if place.shape != entry.shape:
        raise MismatchError(
            f"{name} has another shape than in the mask",
            got=str(place.shape),
            allowed=str(entry.shape),
            fix="use the model that the mask was made from",
        )
    # FSDP and ZeRO-3 replace a parameter by a piece of it, in which our coordinates mean nothing.
    where = out_of_reach(parameter, model)
    if where or parameter.numel() < place.size:
        raise InputError(
            "weights that are sharded over devices cannot be held",
            got=f"{name}, {where or f'a piece {tuple(parameter.shape)}'}",
            allowed="whole weights: one device, data parallelism, or ZeRO stages 1 and 2",
        )


def _unwrapped(model: Wrapped) -> CausalModel:
    """Return the Hugging Face model inside PEFT, `torch.compile` or data parallelism."""
    inner: object = model
    while True:
        if hasattr(inner, "_orig_mod"):
            inner = inner._orig_mod
        elif isinstance(inner, nn.parallel.DistributedDataParallel | nn.DataParallel):
            inner = inner.module
        elif hasattr(inner, "get_base_model"):
            inner = inner.get_base_model()
        else:
            return cast("CausalModel", inner)


def _plain_name(name: str) -> str:
    """Return the name that a parameter has without adapters around it."""
    parts = [part for part in name.split(".") if part not in ("base_layer", "_orig_mod")]
    if "modules_to_save" in parts:
        number = parts.index("modules_to_save")
        del parts[number : number + 2]
    return ".".join(parts)


def _places(model: CausalModel) -> list[Place]:
    """Return where checkpoint tensors lie, in a model without its adapters."""
    plain = model
    if any(".base_layer." in name for name, _ in model.named_parameters()):
        # Its structure is hidden under the adapters; one without weights has the same.
        with torch.device("meta"):
            plain = cast("Callable[[ModelConfig], CausalModel]", type(model))(model.config)
    return [place for weight in find_prunable(plain).weights for place in weight.places]
