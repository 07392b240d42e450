"""The largest table of logits that is made while a block runs, and a model with many words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode

import tiny

# Words of the wide model; nothing else of it is as wide.
WORDS = 4096


class Largest(TorchDispatchMode):
    """Notes the most bytes of a tensor with a column for each word; views of one do not count."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes: int = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        before = {tensor.data_ptr() for tensor in _tensors((args, kwargs or {}))}
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            if tensor.shape[-1:] == (WORDS,) and tensor.data_ptr() not in before:
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return result


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return _tensors(list(value.values()))
    if isinstance(value, list | tuple):
        return [tensor for entry in value for tensor in _tensors(entry)]
    return []


def wide() -> Any:
    """Return a tiny Llama with many words."""
    config = tiny.configuration("llama")
    config.vocab_size = WORDS
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = transformers.LlamaForCausalLM(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()
