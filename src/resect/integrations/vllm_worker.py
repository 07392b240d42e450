"""Cut and mend a model inside vLLM's workers, between requests.

    vllm serve MODEL --worker-extension-cls \
        resect.integrations.vllm_worker.ResectWorkerExtension

    llm.collective_rpc("load_with_patch", args=("cut.patch.safetensors",))
    llm.reset_prefix_cache()

A server of which VLLM_SERVER_DEV_MODE=1 is set takes the same as POST /collective_rpc and
/reset_prefix_cache.

There are two ways. `load_with_patch` lets vLLM load its checkpoint again in place, with the values
of a patch put into the tensors on their way, before vLLM shards, fuses or packs them: it works on
every device, and what is served afterwards is the checkpoint and this one patch.
`apply_weight_patch` writes into the weights as they lie in memory, without reading the checkpoint:
not on a CPU, where vLLM has packed them, and patches of one after the other add up.

Keys and values of earlier requests were computed with the weights of that time; without the reset
they would be used again. This module needs torch and safetensors alone, so that it can stand in
vLLM's environment without the rest of resect's dependencies, and it loads nothing of vLLM before
a patch is applied: resect and vLLM pin torch and transformers differently.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypedDict

import torch
from safetensors import safe_open
from torch import Tensor, nn

KIND = "resect.weight_patch"
LOADERS = "vllm.model_executor.model_loader"
PLACE = f"{LOADERS}.checkpoint_weight_patch"


class Entry(NamedTuple):
    """What a patch changes in one checkpoint tensor; the fields of vLLM's own record."""

    name: str
    shape: tuple[int, ...]
    values: Tensor
    indices: Tensor


class Patch(NamedTuple):
    """A patch file.

    Attributes:
        mask: Hash of the mask.
        direction: `cut` or `revert`.
        entries: What changes, tensor by tensor.
    """

    mask: str
    direction: str
    entries: list[Entry]


class Report(TypedDict):
    """What a worker did with a patch.

    Attributes:
        mask: Hash of the patch's mask.
        direction: `cut` or `revert`; `none` for a checkpoint that was loaded without a patch.
        weights: Weights that the patch changes, in all workers together.
        tensors: Checkpoint tensors that it changes.
        loaded: How many of this worker's parameters its loader wrote into; 0 for a worker whose
            layers (pipeline parallel) the patch does not touch. Of `load_with_patch`: checkpoint
            tensors that were changed on their way.
    """

    mask: str
    direction: str
    weights: int
    tensors: int
    loaded: int


def read_patch(path: str | Path) -> Patch:
    """Read a file that `resect mask patch` wrote.

    Raises:
        ValueError: The file is another one, or does not hold together. The error is a plain one,
            because it crosses from a worker process to whoever called it.
    """
    with safe_open(path, framework="pt") as file:
        header = json.loads((file.metadata() or {}).get("resect", "null"))
        if not isinstance(header, dict) or (header.get("kind"), header.get("version")) != (KIND, 1):
            raise ValueError(f"{path} is no weight patch of version 1; make it with `resect mask`")
        entries = [
            Entry(
                str(tensor["name"]),
                tuple(tensor["shape"]),
                file.get_tensor(f"{number}.values"),
                file.get_tensor(f"{number}.indices"),
            )
            for number, tensor in enumerate(header["tensors"])
        ]
    for entry in entries:
        size = 1
        for side in entry.shape:
            size *= side
        if entry.indices.numel() != entry.values.numel() or int(entry.indices[-1]) >= size:
            raise ValueError(f"{path}: indices and values of {entry.name} do not fit its shape")
    return Patch(header["mask"], header["direction"], entries)


class Weight(NamedTuple):
    """A checkpoint tensor on its way to vLLM's loader, which takes plain pairs."""

    name: str
    tensor: Tensor


def patched(weights: Iterable[Weight], unused: dict[str, Entry]) -> Iterator[Weight]:
    """Yield checkpoint tensors with the values of a patch in their places.

    Args:
        weights: Names and tensors of a checkpoint, as one of vLLM's loaders reads them.
        unused: Entries of the patch by name; those that were put in are taken out. What is left
            when all tensors have passed fits none of them.
    """
    for name, tensor in weights:
        entry = unused.get(name)
        if entry is None or tuple(tensor.shape) != entry.shape:
            yield Weight(name, tensor)
            continue
        del unused[name]
        changed = tensor.clone(memory_format=torch.contiguous_format)
        changed.view(-1)[entry.indices.long()] = entry.values.to(tensor.dtype)
        yield Weight(name, changed)


def by_name(patch: Patch) -> dict[str, Entry]:
    """Return the entries of a patch by the names of their tensors."""
    return {entry.name: entry for entry in patch.entries}


def misfit(path: str, unused: Collection[str]) -> str:
    """Say that a checkpoint lacks tensors of a patch."""
    return f"{path} does not fit the checkpoint: no {next(iter(unused))} of the patch's shape"


class ResectWorkerExtension:
    """Methods that vLLM mixes into its worker, for `collective_rpc` by name.

    The worker gives `self.model_runner` (and in some versions `get_model()`), and for
    `load_with_patch` its `vllm_config` and `reload_weights`.
    """

    model_runner: Any
    vllm_config: Any
    reload_weights: Callable[..., None]

    def load_with_patch(self, path: str = "") -> Report:
        """Load the checkpoint again in place, with a patch put in before weights are packed.

        Args:
            path: A patch file that every worker can read; "" for the checkpoint as it is.

        Raises:
            RuntimeError: The checkpoint lacks a tensor of the patch; it was then loaded as it is.
                After any other error do not ask this engine any more.
            ValueError: The file is no patch; nothing was changed.
        """
        patch = read_patch(path) if path else Patch("", "none", [])
        unused = by_name(patch)
        self._resect_load(unused)
        if unused:
            self._resect_load({})
            raise RuntimeError(misfit(path, unused))
        return _report(patch, loaded=len(patch.entries))

    def _resect_load(self, entries: dict[str, Entry]) -> None:
        loaders = importlib.import_module(LOADERS)
        loader = loaders.get_model_loader(self.vllm_config.load_config)
        weights = loader.get_all_weights(self.vllm_config.model_config, self._resect_model())
        self.reload_weights(weights_iterator=patched(weights, entries))

    def apply_weight_patch(self, path: str) -> Report:
        """Write the values of a patch into the model; a cut and its revert work alike.

        Args:
            path: A patch file that every worker can read.

        Raises:
            RuntimeError: This vLLM has no checkpoint weight patches, or has packed its weights
                after loading, as it does on CPUs; nothing was changed. A patch is not
                transactional: apply the revert patch after any other error.
            ValueError: The file is no patch.
        """
        patch = read_patch(path)
        try:
            patches = importlib.import_module(PLACE)
        except ImportError as error:
            raise RuntimeError(
                f"this vLLM has no {PLACE}; use a newer one, or serve the folder that "
                "`resect prune` writes"
            ) from error
        model = self._resect_model()
        _refuse_packed(model)
        device = next(model.parameters()).device
        records = [
            patches.CheckpointWeightPatch(
                name=entry.name,
                shape=entry.shape,
                dtype=entry.values.dtype,
                values=entry.values.to(device),
                indices=entry.indices.to(device),
            )
            for entry in patch.entries
        ]
        loaded = _through_loaders(lambda: patches.load_checkpoint_weight_patches(model, records))
        return _report(patch, loaded=len(loaded))

    def _resect_model(self) -> nn.Module:
        get = getattr(self, "get_model", None) or getattr(self.model_runner, "get_model", None)
        model: nn.Module = self.model_runner.model if get is None else get()
        return model


def _report(patch: Patch, *, loaded: int) -> Report:
    return {
        "mask": patch.mask,
        "direction": patch.direction,
        "weights": sum(entry.indices.numel() for entry in patch.entries),
        "tensors": len(patch.entries),
        "loaded": loaded,
    }


PACKED = (
    "this vLLM has packed the weights after loading, as it does on CPUs, so they cannot be patched "
    "in memory; call `load_with_patch` and not `apply_weight_patch` (of `switch`: reload=True), or "
    "serve the folder that `resect prune` writes"
)


def _refuse_packed(model: nn.Module) -> None:
    """Refuse a model on a CPU whose weights are no longer those that its loader wrote.

    There vLLM packs the weights of linear layers for oneDNN or its own kernels once they are
    loaded. What is left is an empty parameter, or one without the loader that a patch goes through.

    Raises:
        RuntimeError: A linear layer's weight is such a one.
    """
    for name, module in model.named_modules():
        # Layers of vLLM have a method that makes and processes their weights.
        weight = module._parameters.get("weight")
        if getattr(module, "quant_method", None) is None or weight is None:
            continue
        packed = weight.numel() == 0 or not hasattr(weight, "weight_loader")
        if packed and weight.device.type == "cpu":
            raise RuntimeError(f"{PACKED} ({name}.weight)")


def _through_loaders(load: Callable[[], Collection[str]]) -> Collection[str]:
    """Return what vLLM's own loaders wrote; say what it means where a parameter has none.

    Raises:
        RuntimeError: A patched parameter has no loader.
    """
    try:
        return load()
    except AttributeError as error:
        if "weight_loader" not in str(error):
            raise
        raise RuntimeError(PACKED) from error


class Engine(Protocol):
    """What we need of a `vllm.LLM`."""

    def collective_rpc(self, method: str, *, args: tuple[str, ...]) -> list[Report]:
        """Call a method of every worker, and return what each returns."""

    def reset_prefix_cache(self) -> bool | None:
        """Forget the keys and values of earlier requests; False if some are in use."""


def switch(llm: Engine, path: str | Path, *, reload: bool = False) -> list[Report]:
    """Apply a patch on every worker of a `vllm.LLM` and forget what was cached before.

    Args:
        llm: A `vllm.LLM` made with `worker_extension_cls` set to the class above.
        path: A patch of `resect mask patch`; one made with `--revert` mends.
        reload: Load the checkpoint again with this patch in it, as has to be done on a CPU, where
            vLLM packs weights. What other patches changed is then gone, and "" in place of a path
            is the checkpoint as it is.

    Returns:
        What each worker says.

    Raises:
        RuntimeError: No worker's loader took anything, or the prefix cache could not be reset, so
            that replies may mix both models.
    """
    method = "load_with_patch" if reload else "apply_weight_patch"
    reports = llm.collective_rpc(method, args=(str(path),))
    if path and not any(report["loaded"] for report in reports):
        raise RuntimeError("no worker's loader took any of the patched tensors")
    if llm.reset_prefix_cache() is False:
        raise RuntimeError(
            "the weights are changed, but the prefix cache is in use and was not reset; finish "
            "all requests and call llm.reset_prefix_cache()"
        )
    return reports
