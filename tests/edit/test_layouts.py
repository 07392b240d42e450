"""One model in several layouts on disk: the same tensors, the same masks, the same cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

import tiny
from resect.edit import prune_checkpoint, removed, restore_checkpoint
from resect.model import find_prunable, load_model, prunable_tensors
from resect.model.files import entries, weight_files
from resect.model.on_disk import open_shelf
from resect.records import CausalModel
from resect.weights.mask import Mask, MaskTensor

FUSED = ["mixtral", "qwen3_moe", "deepseek_v3", "qwen2_moe"]


def drawn(tensors: dict[str, Tensor], seed: int = 0) -> Mask:
    """Return a mask of a tenth of each tensor."""
    generator = torch.Generator().manual_seed(seed)
    entries_of = {}
    for name, tensor in tensors.items():
        index = torch.randperm(tensor.numel(), generator=generator)[: tensor.numel() // 10]
        index = index.sort().values
        value = tensor.reshape(-1)[index].clone()
        rounds = torch.zeros(len(index), dtype=torch.uint8)
        entries_of[name] = MaskTensor(tuple(tensor.shape), index, value, rounds)
    return Mask(entries_of, {})


def zeros(model: CausalModel) -> dict[str, Tensor]:
    return {name: parameter == 0 for name, parameter in model.named_parameters()}


def same(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    return before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)


def both_layouts(architecture: str, folder: Path) -> tuple[Path, Path]:
    """Save one model with a tensor for each expert, and with one for all of them."""
    model = tiny.build(architecture)
    for name, original in (("split", True), ("fused", False)):
        model.save_pretrained(folder / name, save_original_format=original)
        tiny.tokenizer().save_pretrained(folder / name)
    return folder / "split", folder / "fused"


@pytest.mark.parametrize("architecture", FUSED)
def test_the_tensors_of_a_model_do_not_depend_on_its_file(
    architecture: str, tmp_path: Path
) -> None:
    split, fused = both_layouts(architecture, tmp_path)
    assert entries(weight_files(split)).keys() != entries(weight_files(fused)).keys()
    of_split, of_fused = (
        prunable_tensors(load_model(folder, device="cpu").model) for folder in (split, fused)
    )
    assert same(of_split, of_fused)


@pytest.mark.parametrize("architecture", FUSED)
def test_a_mask_of_one_layout_cuts_and_mends_the_other(architecture: str, tmp_path: Path) -> None:
    split, fused = both_layouts(architecture, tmp_path)
    model = load_model(split, device="cpu").model
    mask = drawn(prunable_tensors(model))
    with removed(model, mask):
        expected = zeros(model)
    for folder in (split, fused):
        cut, mended = tmp_path / f"{folder.name}.cut", tmp_path / f"{folder.name}.mended"
        prune_checkpoint(folder, mask, cut)
        assert same(expected, zeros(load_model(cut, device="cpu").model))
        restore_checkpoint(cut, mask, mended)
        assert (mended / "model.safetensors").read_bytes() == (
            folder / "model.safetensors"
        ).read_bytes()


@pytest.mark.parametrize("architecture", FUSED)
def test_masks_that_name_the_experts_of_a_layer_together_stay_usable(
    architecture: str, tmp_path: Path
) -> None:
    split, fused = both_layouts(architecture, tmp_path)
    model = load_model(fused, device="cpu").model
    parameters = dict(model.named_parameters())
    before = sum(int(here.sum()) for here in zeros(model).values())
    together = drawn({w.name: parameters[w.name] for w in find_prunable(model).weights})
    with removed(model, together):
        expected = zeros(model)
    # As many zeros as the mask has entries: none was lost on the way.
    assert sum(int(here.sum()) for here in expected.values()) == before + together.count
    for folder in (split, fused):
        cut = tmp_path / f"{folder.name}.cut"
        prune_checkpoint(folder, together, cut)
        assert same(expected, zeros(load_model(cut, device="cpu").model))


def wrapped(name: str, folder: Path) -> Path:
    """Save a model of images and text whose text half is loaded as a causal LM."""
    text: dict[str, Any] = {
        "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
        "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1,
    }  # fmt: skip
    sides = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    if name == "llama4":
        text |= {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}
        text |= {"intermediate_size_mlp": 24, "interleave_moe_layer_step": 1}
        vision: dict[str, Any] = sides | {"num_attention_heads": 2, "image_size": 8}
        vision |= {"patch_size": 4, "projector_input_dim": 8, "projector_output_dim": 8}
        vision |= {"vision_output_dim": 8}
        configuration: Any = transformers.Llama4Config(text_config=text, vision_config=vision)
        model: Any = transformers.Llama4ForConditionalGeneration(configuration)
    else:
        text |= {"cross_attention_layers": [1], "rope_scaling": {"rope_type": "default"}}
        vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
        vision |= {"num_global_layers": 1, "attention_heads": 2, "image_size": 8, "patch_size": 4}
        vision |= {"vision_output_dim": 16, "intermediate_layers_indices": [0]}
        configuration = transformers.MllamaConfig(text_config=text, vision_config=vision)
        model = transformers.MllamaForConditionalGeneration(configuration)
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["llama4", "mllama"])
def test_a_text_half_that_loses_its_prefix_is_cut_mended_and_streamed(
    name: str, tmp_path: Path
) -> None:
    folder = wrapped(name, tmp_path / "whole")
    model = load_model(folder, device="cpu").model
    assert not {*prunable_tensors(model)} & {*load_file(folder / "model.safetensors")}
    mask = drawn(prunable_tensors(model))
    with removed(model, mask):
        expected = zeros(model)
    prune_checkpoint(folder, mask, tmp_path / "cut")
    assert same(expected, zeros(load_model(tmp_path / "cut", device="cpu").model))
    restore_checkpoint(tmp_path / "cut", mask, tmp_path / "mended")
    before, after = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "mended"))
    assert same(before, after)
    shelf = open_shelf(folder, device="cpu")
    for block in shelf.blocks:
        with shelf.opened(block):
            for parameter_name, parameter in shelf.model.named_parameters():
                if parameter.untyped_storage().size():
                    assert torch.equal(parameter, model.get_parameter(parameter_name))
