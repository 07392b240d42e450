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
from resect.model import find_prunable


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


def test_a_model_may_be_cut_and_then_wrapped() -> None:
    model = tiny.build("llama")
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    applied = apply(model, tiny.cut(model, 0.1))
    replaced(model)
    applied.revert()
    after = {n.replace("._original_component", ""): p for n, p in model.named_parameters()}
    assert all(torch.equal(before[name], after[name]) for name in before)
