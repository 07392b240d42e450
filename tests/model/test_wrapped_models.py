"""A model inside another library's wrapper is refused in one message that says what to give."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import tiny
from resect import HoldMask
from resect.attribution.engine import attribute_many
from resect.edit import apply
from resect.errors import InputError
from resect.model import find_prunable, prunable_tensors


class Watched:
    """As nnsight does it: the parameters of the model, and modules of the wrapper's own."""

    def __init__(self, model: Any) -> None:
        self._module, self.config = model, model.config

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def named_modules(self) -> list[tuple[str, object]]:
        return [("model", object()), ("model.model", object())]


class Renamed(nn.Module):
    """As TransformerLens does it: parameters have names that are no modules' names."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner, self.config = model, model.config

    def get_output_embeddings(self) -> Any:
        return self.inner.get_output_embeddings()

    def named_parameters(self, *_: Any, **__: Any) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self.inner.named_parameters():
            yield name.replace(".weight", "._original_component.weight"), parameter


class Component(nn.Module):
    """What TransformerLens puts in the place of a module of the model itself."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._original_component = module


def replaced(model: Any) -> Any:
    for layer in model.model.layers:
        layer.mlp.up_proj = Component(layer.mlp.up_proj)
    return model


@pytest.mark.parametrize("wrap", [Watched, Renamed, replaced])
def test_a_wrapped_model_is_one_message(wrap: Callable[[Any], Any]) -> None:
    mask = tiny.cut(tiny.build("llama"), 0.01)
    model = wrap(tiny.build("llama"))
    uses: list[Callable[[], object]] = [
        lambda: find_prunable(model),
        lambda: apply(model, mask),
        lambda: HoldMask(mask).apply(model),
        lambda: attribute_many(model, tiny.tokenizer(), tiny.examples(2)),
    ]
    for use in uses:
        with pytest.raises(InputError, match="another library") as caught:
            use()
        assert "cut first" in str(caught.value)


def pruned(model: Any) -> nn.Module:
    from torch.nn.utils import prune

    layer: nn.Module = model.model.layers[1].mlp.up_proj
    prune.random_unstructured(layer, "weight", amount=0.1)  # type: ignore[no-untyped-call]
    return layer


def normed(model: Any) -> nn.Module:
    from torch.nn.utils import weight_norm

    layer: nn.Module = model.model.layers[1].mlp.up_proj
    weight_norm(layer)
    return layer


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize(("change", "names"), [(pruned, "weight_orig"), (normed, "weight_g")])
def test_weights_that_are_computed_are_refused(
    change: Callable[[Any], nn.Module], names: str
) -> None:
    """They would be scored and cut under names that no checkpoint has."""
    model = tiny.build("llama")
    layer = change(model)
    for use in (
        lambda: find_prunable(model),
        lambda: attribute_many(model, tiny.tokenizer(), tiny.examples(2)),
    ):
        with pytest.raises(InputError, match="computed from others") as caught:
            use()
        assert f"layers.1.mlp.up_proj.weight, from {names}" in str(caught.value)
    if names == "weight_orig":
        from torch.nn.utils import prune

        prune.remove(layer, "weight")  # type: ignore[no-untyped-call]
        assert "model.layers.1.mlp.up_proj.weight" in prunable_tensors(model)


def test_a_model_may_be_cut_and_then_wrapped() -> None:
    model = tiny.build("llama")
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    applied = apply(model, tiny.cut(model, 0.1))
    replaced(model)
    applied.revert()
    after = {n.replace("._original_component", ""): p for n, p in model.named_parameters()}
    assert all(torch.equal(before[name], after[name]) for name in before)
