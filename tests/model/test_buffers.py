"""A model that is read block by block has all that its files hold, and in the same dtypes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import mapped
import tiny
from resect.model import load_model
from resect.model.on_disk import open_shelf
from resect.records import CausalModel

# Buffers: biases of routers, scales of layers, a table of integers.
STORED = ["deepseek_v3", "gemma4_text", "deepseek_v4"]


def module_of(model: CausalModel) -> nn.Module:
    return dict(model.named_modules())[""]


@pytest.mark.parametrize("model_type", STORED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_buffers_of_a_checkpoint_are_read(
    model_type: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = mapped.script("model_trials").filled(model_type).to(dtype)
    for name, buffer in model.named_buffers():
        if "e_score" in name:
            # The class keeps it in float32, and so do files.
            buffer.data = torch.linspace(0.1, 0.9, buffer.numel())
    model.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    expected = module_of(load_model(tmp_path, device="cpu").model)
    shelf = open_shelf(tmp_path, device="cpu")
    streamed = module_of(shelf.model)
    assert {n: t.dtype for n, t in streamed.state_dict().items()} == {
        n: t.dtype for n, t in expected.state_dict().items()
    }
    stored = expected.state_dict().keys()
    buffers = {name: tensor for name, tensor in expected.named_buffers() if name in stored}
    assert buffers
    for name, tensor in buffers.items():
        assert torch.equal(streamed.get_buffer(name), tensor), name
    for block in shelf.blocks:
        with shelf.opened(block):
            for name, parameter in shelf.model.named_parameters():
                if parameter.untyped_storage().size():
                    assert torch.equal(parameter, expected.get_parameter(name)), name


def test_running_a_model_changes_none_of_its_weights(tmp_path: Path) -> None:
    # RWKV halves the weights of every few blocks in place when it is first run in evaluation mode.
    model = mapped.script("model_trials").filled("rwkv")
    model.config.rescale_every = 1
    model.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    loaded = module_of(load_model(tmp_path, device="cpu").model)
    before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    with torch.no_grad():
        loaded(input_ids=torch.tensor([[5, 6, 7]]), use_cache=False)
    assert all(torch.equal(before[name], t) for name, t in loaded.state_dict().items())
