"""Weights that a process does not hold whole are refused: torch loses writes to them in silence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

import tiny
from resect.edit import apply, removed
from resect.errors import InputError
from resect.weights.mask import Mask, MaskTensor

TENSOR = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def one(model: Any) -> Mask:
    weight = model.get_parameter(TENSOR).detach()
    index = torch.tensor([3])
    value = weight.view(-1)[index].clone()
    entry = MaskTensor(tuple(weight.shape), index, value, torch.zeros(1, dtype=torch.uint8))
    return Mask({TENSOR: entry}, {})


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("way", ["fsdp", "tensor parallel"])
def test_sharded_weights_are_refused(way: str) -> None:
    model = tiny.build("llama")
    mask = one(model)
    mesh = init_device_mesh("cpu", (1,))
    if way == "fsdp":
        fully_shard(model, mesh=mesh)
    else:
        parallelize_module(model.model.layers[0].mlp, mesh, {"up_proj": ColwiseParallel()})
    with pytest.raises(InputError, match="FSDP2 or tensor parallelism"), removed(model, mask):
        pass


def test_offloaded_weights_are_refused(tmp_path: Path) -> None:
    model = tiny.build("llama")
    mask = one(model)
    model = accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert model.get_parameter(TENSOR).is_meta
    with pytest.raises(InputError, match="offloaded"):
        apply(model, mask)
    model = accelerate.disk_offload(tiny.build("llama"), tmp_path, torch.device("cpu"))
    with pytest.raises(InputError, match="offloaded"):
        apply(model, mask)
