"""What libraries make of a cut model that wrap it or shard it in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trip_case import Case
from trip_checks import YES, others, said, share, zeros

from resect.edit import apply, removed
from resect.edit.hold import HoldMask
from resect.model import load_model, prunable_tensors

IDS = torch.tensor([[5, 6, 7, 8]])
# From the wrapper to what it says of IDS.
Run = Callable[[Any], Tensor]


def asked(case: Case, wrapper: Any, names: set[str], run: Run, inner: Any) -> dict[str, str]:
    """Return a row of the table of a model inside a wrapper.

    Args:
        case: The model and its mask.
        wrapper: What the library made of the intact model.
        names: Names that the wrapper has for parameters.
        run: Runs the wrapper.
        inner: The model inside.
    """
    found = [name for name in case.mask.tensors if name in names]
    row = {"names": share(len(found), len(case.mask.tensors))}
    row["fits"] = said(lambda: cut_and_undone(case, wrapper, run, wrapper))
    row["inside"] = said(lambda: cut_and_undone(case, inner, run, wrapper))
    row["held"] = said(lambda: YES if HoldMask(case.mask).apply(wrapper) else "nothing moved")
    return row


def cut_and_undone(case: Case, model: Any, run: Run, wrapper: Any) -> str:
    """Return whether a cut of a model is seen through the wrapper, and its undoing too."""
    before = run(wrapper)
    with removed(model, case.mask):
        during = run(wrapper)
    if torch.equal(before, during):
        return "not seen through the wrapper"
    return YES if torch.equal(run(wrapper), before) else "not undone"


def wrapped(case: Case, wrap: Callable[[Any, Path], Any], run: Run) -> dict[str, str]:
    """Return a row of the table of a library that wraps a loaded model.

    Args:
        case: The model and its mask.
        wrap: From a loaded model and its folder to the wrapper.
        run: Runs the wrapper.
    """
    cut = load_model(case.cut, device="cpu")
    wrap(cut, case.cut)
    tensors = {_plain(name): value.detach() for name, value in cut.model.named_parameters()}
    whole = load_model(case.whole, device="cpu")
    wrapper = wrap(whole, case.whole)
    names = {name for name, _ in wrapper.named_parameters()}
    row = asked(case, wrapper, names, run, whole.model)
    return row | {"zeros": zeros(case.mask, tensors), "cut_first": cut_first(case, run, wrap)}


def _plain(name: str) -> str:
    return name.replace("._original_component", "")


def in_nnsight(case: Case, _: Path) -> dict[str, str]:
    """Give a loaded model to nnsight."""
    from nnsight import TransformersModel

    def wrap(loaded: Any, _: Path) -> Any:
        return TransformersModel(loaded.model, tokenizer=loaded.tokenizer, task="text-generation")

    def run(wrapper: Any) -> Tensor:
        with torch.no_grad(), wrapper.trace("w5 w6 w7 w8"):
            logits = wrapper.lm_head.output.save()
        return logits.clone()

    return wrapped(case, wrap, run)


def in_transformer_lens(case: Case, _: Path) -> dict[str, str]:
    """Give a loaded model to TransformerLens, as it is and with weights processed."""
    from transformer_lens.model_bridge import TransformerBridge

    def wrap(loaded: Any, folder: Path) -> Any:
        return TransformerBridge.boot_transformers(
            str(folder), hf_model=loaded.model, tokenizer=loaded.tokenizer, device="cpu"
        )

    def run(wrapper: Any) -> Tensor:
        with torch.no_grad():
            logits: Tensor = wrapper(IDS).clone()
        return logits

    row = wrapped(case, wrap, run)
    processed = wrap(load_model(case.cut, device="cpu"), case.cut)
    processed.enable_compatibility_mode()
    named = processed.original_model.named_parameters()
    tensors = {_plain(name): value.detach() for name, value in named}
    before = prunable_tensors(load_model(case.cut, device="cpu").model)
    moved = others(case.mask, before, tensors).moved
    return row | {"zeros_processed": zeros(case.mask, tensors), "moved_processed": moved}


def cut_first(case: Case, run: Run, wrap: Callable[[Any, Path], Any]) -> str:
    """Return whether a model that is cut and then wrapped is the cut one, and can be undone."""
    intact, cut = (
        run(wrap(load_model(folder, device="cpu"), folder)) for folder in (case.whole, case.cut)
    )
    loaded = load_model(case.whole, device="cpu")
    applied = apply(loaded.model, case.mask)
    wrapper = wrap(loaded, case.whole)
    if not torch.equal(run(wrapper), cut):
        return "another model than the cut folder"
    applied.revert()
    return YES if torch.equal(run(wrapper), intact) else "not undone"


def in_fsdp(case: Case, work: Path) -> dict[str, str]:
    """Shard a cut model with FSDP2 over one process."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    work.mkdir(parents=True, exist_ok=True)
    dist.init_process_group("gloo", init_method=f"file://{work}/group", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        cut, whole = (load_model(folder, device="cpu").model for folder in (case.cut, case.whole))
        for model in (cut, whole):
            fully_shard(model, mesh=mesh)  # type: ignore[arg-type]
        tensors = {n: p.full_tensor().detach() for n, p in cut.named_parameters()}  # type: ignore[attr-defined]

        def run(model: Any) -> Tensor:
            with torch.no_grad():
                return model(input_ids=IDS).logits.clone()

        row = asked(case, whole, {*tensors}, run, whole)
    finally:
        dist.destroy_process_group()
    return row | {"zeros": zeros(case.mask, tensors)}
