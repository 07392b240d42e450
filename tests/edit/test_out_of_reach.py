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
from resect.attribution.engine import attribute_many
from resect.attribution.settings import Pass
from resect.edit import apply, removed
from resect.edit.hold import HoldMask
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


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("gathered", [False, True])
def test_weights_that_are_gathered_after_a_pass_are_refused_as_well(gathered: bool) -> None:
    """What FSDP2 has gathered is a copy: a cut of it would be lost, and nothing would say so."""
    model = tiny.build("llama")
    mask, hold = one(model), HoldMask(one(model))
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)), reshard_after_forward=not gathered)
    ids = torch.tensor([[5, 6, 7]])
    model(input_ids=ids, labels=ids).loss  # noqa: B018 - the pass is what matters
    assert (type(model.get_parameter(TENSOR)) is torch.nn.Parameter) == gathered
    with pytest.raises(InputError, match="FSDP2 or tensor parallelism"):
        apply(model, mask)
    for held in (lambda: hold.apply(model), lambda: hold.attach(model)):
        with pytest.raises(InputError, match="sharded over devices cannot be held"):
            held()
    by_example = Pass(dense=True)
    with pytest.raises(InputError, match="cannot be had from sharded weights"):
        attribute_many(
            model,
            tiny.tokenizer(),
            tiny.examples(2),
            reductions=("mean_of_abs",),
            settings=by_example,
        )


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
