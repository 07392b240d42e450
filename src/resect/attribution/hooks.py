"""Hooks that fill sums while a model runs, and leave it as it was found.

Gradients of whole batches come from autograd and are folded in as each parameter's is ready. For
the gradients of single examples
- a linear layer's inputs and output gradients are watched;
- a module of 3-D expert parameters, which mixes the tokens of all examples, is called once for each
  example, with the parameters under other names, so that each has a gradient of its own;
- what fits neither is marked as mixed, to be scored one example a pass.

What is watched is not taken on trust: in the first batch, the first of several examples and the
first of several lengths, autograd computes every gradient too, and a weight whose sums differ from
it (because its module is bypassed, or called on reordered tokens) is marked as mixed.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from resect.attribution.loss import not_finite
from resect.attribution.sums import EACH, Sums
from resect.edit.forward import forward_of
from resect.model.prunable import PrunableWeight
from resect.records import CausalModel, Encoded

# Sums of the same products in another order; wrong attribution is off by the size of the gradient.
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.05}


class _Call(NamedTuple):
    """The arguments of a call."""

    positional: tuple[object, ...]
    named: dict[str, object]


class Watch:
    """The state of the hooks during one pass over the data."""

    def __init__(
        self, sums: Sums, weights: Sequence[PrunableWeight], model: CausalModel, *, singly: bool
    ):
        """Prepare, but install nothing yet.

        Args:
            sums: What to fill.
            weights: The weights to watch.
            model: Their model.
            singly: Every batch has one example, whose gradient is that of autograd.
        """
        self.sums = sums
        self.singly = singly
        self.each = bool(EACH & sums.needs) and not singly
        self.parameters = {weight.name: model.get_parameter(weight.name) for weight in weights}
        self.experts = {w.name for w in weights if len(w.shape) == 3} if self.each else set()
        # How much the batches that were compared with autograd could show (`_shows`).
        self.verified = 0 if self.each else _shows(None)
        self._calls: Counter[str] = Counter()
        self._inside = False
        self._running_back = False

    def begin(self, batch: Sequence[Encoded], *, again: bool = False) -> None:
        """Say which examples come next; `again` if they are part of a failed batch."""
        self.sums.begin(batch, again=again)
        checking = _shows(batch) > self.verified
        self.sums.check = {} if checking else None
        self._calls.clear()
        self._running_back = self._inside = False
        always = "gradient" in self.sums.needs or self.singly
        for name, parameter in self.parameters.items():
            parameter.grad = None
            checks = checking and name not in self.experts
            parameter.requires_grad = always or checks

    def backward(self, loss: Tensor) -> None:
        """Run the backward pass, during which the sums are filled."""
        self._running_back = True
        loss.backward()  # type: ignore[no-untyped-call]
        if self.each:
            self.verified = max(self.verified, _shows(self.sums.batch))

    def clear(self) -> None:
        """Free what a failed pass has left behind."""
        self.sums.check = None
        for parameter in self.parameters.values():
            parameter.grad = None

    def on_parameter(self, name: str, parameter: Tensor) -> None:
        """Take a parameter's gradient of the whole batch, and free it."""
        gradient = parameter.grad
        if gradient is None:
            return
        if self.singly:
            self.sums.add_example(name, 0, gradient)
        elif self.sums.check is not None and name not in self.experts:
            mine = self.sums.check.pop(name, None)
            limit = TOLERANCE[gradient.dtype] * float(gradient.float().norm())
            if mine is None or float((mine - gradient).norm()) > limit:
                self.sums.mix(name)
        if "gradient" in self.sums.needs:
            self.sums.add_gradient(name, gradient)
        parameter.grad = None

    def on_linear(self, weight: PrunableWeight) -> Callable[..., None]:
        """Return the forward hook of a linear layer."""

        def on_output(gradient: Tensor, rows: list[Tensor]) -> None:
            deltas = self.sums.rows_of(gradient)
            if deltas is None or weight.name in self.sums.mixed:
                return
            if self.sums.check is not None and weight.name not in self.sums.check:
                like = self.parameters[weight.name]
                self.sums.check[weight.name] = torch.zeros_like(like, dtype=torch.float32)
            pair = (rows, deltas) if weight.layout == "in_out" else (deltas, rows)
            self.sums.add_products(weight.name, *pair)

        def on_forward(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if self._running_back or weight.name in self.sums.mixed:
                return
            rows = self.sums.rows_of(args[0].detach())
            self._calls[weight.name] += 1
            if rows is None or self._calls[weight.name] > 1:
                self.sums.mix(weight.name)
                return
            if "inputs" in self.sums.needs:
                self.sums.add_inputs(weight.name, rows)
            if self.each and output.requires_grad:
                output.register_hook(lambda gradient: on_output(gradient, rows))  # type: ignore[no-untyped-call]

        return on_forward

    def split(self, module: nn.Module, names: list[str]) -> Callable[..., object]:
        """Return a forward method for a module of experts that tells examples apart."""
        whole = module.forward

        def forward(*args: object, **kwargs: object) -> object:
            if self._inside or self.sums.mixed.intersection(names):
                return whole(*args, **kwargs)
            if not self._running_back:
                self._calls[names[0]] += 1
            calls = self._apart(args, kwargs)
            if calls is None or self._calls[names[0]] > 1:
                for name in names:
                    self.sums.mix(name)
                return whole(*args, **kwargs)
            self._inside = True
            try:
                outputs = [
                    torch.func.functional_call(
                        module, self._aliases(row, names), call.positional, call.named
                    )
                    for row, call in enumerate(calls)
                ]
            finally:
                self._inside = False
            return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

        return forward

    def _apart(self, args: tuple[object, ...], kwargs: dict[str, object]) -> list[_Call] | None:
        """Return the arguments of a call for each example, or None if they cannot be told apart."""
        batch, width = len(self.sums.batch), self.sums.width
        if batch == 1:
            return [_Call(args, kwargs)]
        positional = [value for value in args if isinstance(value, Tensor)]
        named = {key: value for key, value in kwargs.items() if isinstance(value, Tensor)}
        if len(positional) < len(args) or len(named) < len(kwargs):
            return None

        def rows_of(value: Tensor, row: int) -> Tensor:
            if value.dim() >= 3 and value.shape[:2] == (batch, width):
                return value[row : row + 1]
            return value[row * width : (row + 1) * width]

        for value in (*positional, *named.values()):
            whole = value.dim() >= 3 and value.shape[:2] == (batch, width)
            if not whole and value.shape[0] != batch * width:
                return None
        return [
            _Call(
                tuple(rows_of(value, row) for value in positional),
                {key: rows_of(value, row) for key, value in named.items()},
            )
            for row in range(batch)
        ]

    def _aliases(self, row: int, names: list[str]) -> dict[str, Tensor]:
        """Return leaves that share the memory of expert parameters and have their own gradient."""
        aliases = {}
        for name in names:
            alias = self.parameters[name].detach().requires_grad_()

            def on_gradient(leaf: Tensor, name: str = name) -> None:
                if leaf.grad is None:
                    return
                if "gradient" in self.sums.needs:
                    self.sums.add_gradient(name, leaf.grad, row=row)
                self.sums.add_example(name, row, leaf.grad)
                leaf.grad = None

            _when_ready(alias, on_gradient)
            aliases[name.rpartition(".")[2]] = alias
        return aliases

    def on_embeddings(self, _module: nn.Module, _args: object, output: Tensor) -> Tensor:
        """Make activations carry gradients even where no weight does, and look for NaN in them."""

        def look(gradient: Tensor) -> None:
            if not bool(gradient.isfinite().all()) and gradient.shape[0] == len(self.sums.batch):
                bad = (~gradient.flatten(1).isfinite().all(dim=1)).nonzero()[0]
                raise not_finite("gradient", self.sums.batch[int(bad)])

        if not torch.is_grad_enabled():
            return output
        output = output if output.requires_grad else output.requires_grad_()
        output.register_hook(look)  # type: ignore[no-untyped-call]
        # A copy, because some models (CTRL) scale it in place, which a leaf refuses.
        return output.clone()


def _when_ready(leaf: Any, hook: Callable[[Tensor], None]) -> RemovableHandle:
    """Call a hook when the gradient of a leaf is whole; torch gives this method no types."""
    handle: RemovableHandle = leaf.register_post_accumulate_grad_hook(hook)
    return handle


def _shows(batch: Sequence[Encoded] | None) -> int:
    """Return how much a comparison with autograd shows; for no batch, the most that one can.

    One example cannot show that tokens of several are told apart. Several of one length cannot show
    that tokens are in order: however they are dealt out, their gradients add up to the same.
    """
    if batch is None:
        return 3
    lengths = [len(example.input_ids) for example in batch]
    return min(len(lengths), 2) + (len(set(lengths)) > 1)


@contextlib.contextmanager
def observing(
    model: CausalModel, weights: Sequence[PrunableWeight], sums: Sums, *, singly: bool = False
) -> Iterator[Watch]:
    """Install the hooks, and leave the model as it was found, also after an exception.

    Args:
        model: A Hugging Face causal LM; evaluated without dropout meanwhile.
        weights: The weights that are scored.
        sums: What to fill.
        singly: Every batch will have one example.
    """
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    training = [module for module in model.modules() if module.training]
    watch = Watch(sums, weights, model, singly=singly)
    hooks: list[RemovableHandle] = []
    patches = contextlib.ExitStack()
    model.eval()
    try:
        for parameter in model.parameters():
            parameter.requires_grad = False
            parameter.grad = None
        hooks.append(model.get_input_embeddings().register_forward_hook(watch.on_embeddings))
        for name, parameter in watch.parameters.items():
            # A hook is refused where no gradient is asked for; `begin` sets what is needed.
            parameter.requires_grad_()
            hooks.append(_when_ready(parameter, functools.partial(watch.on_parameter, name)))
        owners: dict[str, list[str]] = {}
        for weight in weights:
            if weight.name in watch.experts:
                owners.setdefault(weight.module, []).append(weight.name)
            # What a module of experts is given are not the inputs of each of its weights.
            elif watch.each or ("inputs" in sums.needs and len(weight.shape) == 2):
                module = model.get_submodule(weight.module)
                hooks.append(module.register_forward_hook(watch.on_linear(weight)))
        for owner, names in owners.items():
            module = model.get_submodule(owner)
            patches.enter_context(forward_of(module, watch.split(module, names)))
        yield watch
    finally:
        for hook in hooks:
            hook.remove()
        patches.close()
        for name, parameter in model.named_parameters():
            parameter.requires_grad = flags[name]
            parameter.grad = gradients[name]
        for module in training:
            module.training = True
