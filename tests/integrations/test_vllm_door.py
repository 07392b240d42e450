"""The door to vLLM, against a stand-in; `test_vllm_engine.py` opens it on the engine itself.

The stand-in keeps to what vLLM 0.33.0 does, by its source: `load_checkpoint_weight_patches` hands
the model's `load_weights` full checkpoint tensors in which NaN means "unchanged", while
`Tensor.copy_` leaves such places alone and refuses other shapes; the loader stacks q, k, v and
gate, up into fused parameters, of which a worker owns a part, and leaves out layers that a worker
does not have. With RESECT_VLLM_SOURCE, a folder into which a vLLM wheel was unpacked, its own
`checkpoint_weight_patch.py`, which needs torch alone, takes the place of that half of the stand-in:

    unzip vllm-*.whl 'vllm/*.py' -d source
    RESECT_VLLM_SOURCE=source pytest tests/integrations/test_vllm_door.py
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import os
import sys
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import resect
import tiny
from command_line import ok
from resect.edit.live import removed
from resect.errors import InputError
from resect.export import write_patch
from resect.integrations.vllm_loader import FORMAT, register
from resect.integrations.vllm_worker import (
    LOADERS,
    PLACE,
    ResectWorkerExtension,
    read_patch,
    switch,
)
from resect.model import prunable_tensors
from resect.weights.mask import Mask

SOURCE = os.environ.get("RESECT_VLLM_SOURCE")
WORKERS = 2
STACKED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
INPUT_SPLIT = ("o_proj", "down_proj")


class Patch(NamedTuple):
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    values: Tensor
    indices: Tensor | None = None


def part(name: str, tensor: Tensor, rank: int) -> Tensor:
    """Return a worker's part of a checkpoint tensor: rows, or columns where inputs are split."""
    side = 1 if any(word in name for word in INPUT_SPLIT) else 0
    return tensor.chunk(WORKERS, dim=side)[rank]


class Served(nn.Module):
    """A worker's part of a Llama, its parameters fused as vLLM names them."""

    def __init__(self, checkpoint: dict[str, Tensor], rank: int):
        super().__init__()
        self.rank = rank
        # Word in the names of layers that are another worker's.
        self.lacks = ""
        fused: dict[str, list[Tensor]] = {}
        for name, tensor in checkpoint.items():
            fused.setdefault(self.home(name)[0], []).append(part(name, tensor, rank))
        self.held = {name: torch.cat(parts).clone() for name, parts in fused.items()}
        self.anchor = nn.Parameter(torch.zeros(1))
        self.shapes = {name: part(name, t, rank).shape for name, t in checkpoint.items()}

    @staticmethod
    def home(name: str) -> tuple[str, tuple[str, ...]]:
        for fused, pieces in STACKED.items():
            for piece in pieces:
                if f".{piece}." in name:
                    return name.replace(piece, fused), pieces
        return name, ()

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        loaded = set()
        for name, tensor in weights:
            if self.lacks and f".{self.lacks}." in name:
                continue
            home, pieces = self.home(name)
            start = 0
            for piece in pieces:
                sibling = name.replace(name.split(".")[-2], piece)
                if sibling == name:
                    break
                start += self.shapes[sibling][0]
            mine = part(name, tensor, self.rank)
            self.held[home].narrow(0, start, mine.shape[0]).copy_(mine)
            loaded.add(home)
        return loaded


def load_checkpoint_weight_patches(model: Served, patches: Iterable[Patch]) -> set[str]:
    def whole(patch: Patch) -> Tensor:
        assert patch.indices is not None
        assert patch.indices.dtype in (torch.int32, torch.int64)
        assert patch.values.dtype == patch.dtype
        assert len(set(patch.indices.tolist())) == patch.indices.numel()
        size = torch.Size(patch.shape).numel()
        full = torch.full((size,), float("nan"), dtype=patch.dtype)
        full[patch.indices.long()] = patch.values
        return full.view(patch.shape)

    plain = Tensor.copy_

    def copy_(target: Tensor, new: Tensor, non_blocking: bool = False) -> Tensor:
        assert target.shape == new.shape
        assert target.is_floating_point()
        assert new.is_floating_point()
        return torch.where(new.isnan(), target, new.to(target.dtype), out=target)

    full = [(patch.name, whole(patch)) for patch in patches]
    vars_of_tensor: Any = Tensor
    vars_of_tensor.copy_ = copy_
    try:
        return model.load_weights(full)
    finally:
        vars_of_tensor.copy_ = plain


@dataclasses.dataclass
class LoadConfig:
    load_format: str = "auto"
    model_loader_extra_config: dict[str, Any] = dataclasses.field(default_factory=dict)


class DefaultModelLoader:
    """Reads a checkpoint, which is a dictionary here, and refuses options that it does not know."""

    local_expert_ids: set[int] | None = None

    def __init__(self, load_config: Any):
        assert load_config.load_format == "auto"
        if load_config.model_loader_extra_config:
            raise ValueError("Unexpected extra config keys")

    def get_all_weights(
        self, model_config: dict[str, Tensor], _model: object
    ) -> Iterator[tuple[str, Tensor]]:
        yield from model_config.items()


class Worker(ResectWorkerExtension):
    """As vLLM mixes the extension into its own worker class."""

    def __init__(self, model: Served, checkpoint: dict[str, Tensor]):
        self.model_runner = types.SimpleNamespace(model=model)
        self.vllm_config = types.SimpleNamespace(load_config=LoadConfig(), model_config=checkpoint)

    def reload_weights(self, weights_iterator: Iterable[tuple[str, Tensor]]) -> None:
        self.model_runner.model.load_weights(weights_iterator)


class LLM:
    """An engine with two workers and a prefix cache."""

    def __init__(self, checkpoint: dict[str, Tensor]):
        self.workers = [Worker(Served(checkpoint, rank), checkpoint) for rank in range(WORKERS)]
        self.resets = 0
        self.busy = False

    def collective_rpc(self, method: str, args: tuple[Any, ...]) -> list[Any]:
        return [getattr(worker, method)(*args) for worker in self.workers]

    def reset_prefix_cache(self) -> bool:
        self.resets += 1
        return not self.busy

    def held(self) -> list[dict[str, Tensor]]:
        return [worker.model_runner.model.held for worker in self.workers]


def snapshot(checkpoint: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in checkpoint.items()}


def same(llm: LLM, checkpoint: dict[str, Tensor]) -> bool:
    """Compare bits with an engine that loaded the checkpoint from its start."""
    fresh = LLM(checkpoint).held()
    return all(
        torch.equal(mine[name], theirs[name])
        for mine, theirs in zip(llm.held(), fresh, strict=True)
        for name in theirs
    )


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType(PLACE)
    vars(module)["CheckpointWeightPatch"] = Patch
    vars(module)["load_checkpoint_weight_patches"] = load_checkpoint_weight_patches
    if SOURCE:
        path = Path(SOURCE, *PLACE.split(".")).with_suffix(".py")
        spec = importlib.util.spec_from_file_location(PLACE, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    for at in range(1, len(PLACE.split("."))):
        name = ".".join(PLACE.split(".")[:at])
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, PLACE, module)
    loaders = vars(sys.modules[LOADERS])
    loaders["DefaultModelLoader"] = DefaultModelLoader
    loaders["get_model_loader"] = DefaultModelLoader
    formats = loaders.setdefault("formats", {})
    loaders["register_model_loader"] = lambda name: lambda loader: formats.update({name: loader})


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_loaded_again_hold_one_patch_and_no_other(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    model = tiny.build("llama", dtype=dtype)
    intact = snapshot(prunable_tensors(model))
    llm = LLM(intact)
    for seed in (0, 1):
        mask = tiny.cut(model, 0.1, seed)
        write_patch(mask, tmp_path / f"{seed}.safetensors")
        reports = switch(llm, tmp_path / f"{seed}.safetensors", reload=True)
        assert [report["loaded"] for report in reports] == [len(mask.tensors)] * WORKERS
        with removed(model, mask):
            cut = snapshot(prunable_tensors(model))
        assert same(llm, cut)
        assert not same(llm, intact)
    assert [report["direction"] for report in switch(llm, "", reload=True)] == ["none"] * WORKERS
    assert same(llm, intact)
    assert llm.resets == 3


@pytest.mark.usefixtures("served")
def test_a_patch_of_another_checkpoint_leaves_this_one_as_it_is(tmp_path: Path) -> None:
    intact = snapshot(prunable_tensors(tiny.build("llama")))
    llm = LLM(intact)
    entries = dict(tiny.cut(tiny.build("llama"), 0.1).tensors)
    entries["gone.weight"] = entries.pop(min(entries))
    write_patch(Mask(entries, {}), tmp_path / "p.safetensors")
    with pytest.raises(RuntimeError, match=r"does not fit the checkpoint: no gone\.weight"):
        switch(llm, tmp_path / "p.safetensors", reload=True)
    assert same(llm, intact)


@pytest.mark.usefixtures("served")
def test_the_load_format_cuts_weights_on_their_way(tmp_path: Path) -> None:
    model = tiny.build("llama")
    mask = tiny.cut(model, 0.1)
    intact = snapshot(prunable_tensors(model))
    write_patch(mask, tmp_path / "p.safetensors")
    register()
    construct = vars(sys.modules[LOADERS])["formats"][FORMAT]
    loader = construct(LoadConfig(FORMAT, {"patch": str(tmp_path / "p.safetensors")}))
    loaded = dict(loader.get_all_weights(intact, None))
    with removed(model, mask):
        cut = prunable_tensors(model)
        assert set(loaded) == set(cut)
        assert all(torch.equal(loaded[name], cut[name]) for name in cut)
    with pytest.raises(RuntimeError, match="does not fit the checkpoint"):
        list(loader.get_all_weights({}, None))
    # A worker that has experts of its own reads no others.
    loader.local_expert_ids = {0}
    assert list(loader.get_all_weights({}, None)) == []
    with pytest.raises(ValueError, match="no patch is named"):
        construct(LoadConfig(FORMAT, {}))
    with pytest.raises(ValueError, match="Unexpected"):
        construct(LoadConfig(FORMAT, {"patch": "p", "pitch": 1}))


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_a_patch_cuts_fused_and_sharded_weights_and_its_twin_mends_them(
    dtype: torch.dtype, alpha: float, tmp_path: Path
) -> None:
    model = tiny.build("llama", dtype=dtype)
    mask = tiny.cut(model, 0.1)
    intact = snapshot(prunable_tensors(model))
    with removed(model, mask, alpha=alpha):
        cut = snapshot(prunable_tensors(model))
    llm = LLM(intact)
    assert {"qkv_proj", "gate_up_proj"} <= {name.split(".")[-2] for name in llm.held()[0]}
    file = tmp_path / "m.mask.safetensors"
    mask.save(file)
    ok("mask", "patch", file, "--alpha", alpha, "-o", tmp_path / "cut.patch.safetensors")
    ok("mask", "patch", file, "--revert", "-o", tmp_path / "back.patch.safetensors")
    said = switch(llm, tmp_path / "cut.patch.safetensors")
    assert [one["weights"] for one in said] == [mask.count] * WORKERS
    assert said[0]["mask"] == mask.hash
    assert same(llm, cut)
    assert not same(llm, intact)
    assert all(one["loaded"] for one in said)
    assert llm.resets == 1
    llm.busy = True
    with pytest.raises(RuntimeError, match="prefix cache"):
        switch(llm, tmp_path / "back.patch.safetensors")
    assert same(llm, intact)


@pytest.mark.usefixtures("served")
def test_a_worker_may_lack_the_layers_of_a_patch_but_not_all_may(tmp_path: Path) -> None:
    model = tiny.build("llama")
    llm = LLM(snapshot(prunable_tensors(model)))
    path = tmp_path / "p.safetensors"
    write_patch(tiny.cut(model, 0.1), path)
    full, partial = (worker.model_runner.model for worker in llm.workers)
    partial.lacks = "layers"
    assert [report["loaded"] > 0 for report in switch(llm, path)] == [True, False]
    full.lacks = "layers"
    with pytest.raises(RuntimeError, match="no worker's loader"):
        switch(llm, path)


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("left", ["nothing", "no loader", "late"])
def test_weights_that_were_packed_after_loading_are_one_message(
    left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.build("llama")
    path = tmp_path / "p.safetensors"
    write_patch(tiny.cut(model, 0.1), path)
    llm = LLM(snapshot(prunable_tensors(model)))
    for worker in llm.workers:
        served_model = worker.model_runner.model
        layer = nn.Linear(2, 2)
        vars(layer)["quant_method"] = object()
        if left == "nothing":
            layer.weight = nn.Parameter(torch.empty(0))
        elif left == "late":
            vars(layer.weight)["weight_loader"] = object()

            def fail(_weights: object) -> set[str]:
                raise AttributeError("'Parameter' object has no attribute 'weight_loader'")

            monkeypatch.setattr(served_model, "load_weights", fail)
        served_model.o_proj = layer
    before = [snapshot(held) for held in llm.held()]
    with pytest.raises(RuntimeError, match=r"packed the weights.*load_with_patch.*resect prune"):
        switch(llm, path)
    for held, kept in zip(llm.held(), before, strict=True):
        assert all(torch.equal(held[name], kept[name]) for name in kept)


def test_the_extension_keeps_to_what_vllm_mixes_in() -> None:
    """vLLM refuses an extension one of whose attributes its worker has already."""
    names = {name for name in dir(ResectWorkerExtension) if not name.startswith("__")}
    assert names == {"apply_weight_patch", "load_with_patch", "_resect_load", "_resect_model"}
    if SOURCE:
        for name in ("worker_base", "gpu_worker"):
            tree = ast.parse(Path(SOURCE, "vllm", "v1", "worker", f"{name}.py").read_text("utf-8"))
            theirs = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
            assert not names & theirs
            assert name == "worker_base" or {"get_model", "reload_weights"} <= theirs


def test_wrong_patches_are_refused(tmp_path: Path) -> None:
    model = tiny.build("llama")
    mask = tiny.cut(model, 0.1)
    path = tmp_path / "p.safetensors"
    mask.save(path)
    with pytest.raises(ValueError, match="no weight patch"):
        read_patch(path)
    with pytest.raises(InputError, match="removes nothing"):
        write_patch(mask.subtract(mask), path)
    name, entry = next(iter(mask.tensors.items()))
    entry.value[0] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        write_patch(Mask({name: entry}, {}), path, revert=True)
    entry.value[0] = 0.0
    write_patch(Mask({name: entry}, {}), path)
    with pytest.raises(RuntimeError, match="no vllm"):
        LLM(snapshot(prunable_tensors(model))).collective_rpc("apply_weight_patch", (str(path),))


def test_what_runs_in_vllms_process_needs_torch_and_safetensors_alone() -> None:
    allowed = {*sys.stdlib_module_names, "torch", "safetensors", "resect"}
    source = Path(resect.__file__).parent
    doors = ["integrations/vllm_worker", "integrations/vllm_loader", "integrations/vllm_engine"]
    ours = {"resect.errors", "resect.integrations.vllm_worker"}
    for name in ("__init__", "errors", "integrations/__init__", *doors):
        tree = ast.parse((source / f"{name}.py").read_text("utf-8"))
        # What `resect` names under TYPE_CHECKING is not imported.
        for node in (node for node in tree.body if not isinstance(node, ast.If)):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert {one.split(".")[0] for one in names} <= allowed, name
            assert {one for one in names if one.startswith("resect")} <= ours, name
