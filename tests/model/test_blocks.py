"""What counts as a block, over the causal LMs of transformers, on the meta device."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as TYPES

import tiny
from resect.errors import CoverageError, InputError
from resect.model import find_prunable

# Sides that the defaults of a configuration lack.
SIDES: dict[str, dict[str, Any]] = {
    "hunyuan_v1_moe": {"head_dim": 32, "num_experts": 4, "moe_topk": 2},
    "hunyuan_v1_dense": {"head_dim": 32},
    "ministral": {"head_dim": 32},
    "nemotron": {"num_key_value_heads": 8},
    "reformer": {"is_decoder": True},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "doge": {"is_moe": True, "num_experts": 16, "num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "n_shared_experts": 1},
    "gemma4_text": {
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 8,
    },
}
FAULTS = (
    ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError,
    NotImplementedError, StrictDataclassClassValidationError,
)  # fmt: skip
# Of the pinned version; they need another package, or sides that only their checkpoints name.
UNBUILT = {
    "cohere_compass_text", "dbrx", "gemma3n", "gemma4_assistant", "gemma4_unified_assistant",
    "musicgen", "musicgen_melody", "qwen4_exp", "qwen4_exp_text",
}  # fmt: skip


def empty(model_type: str) -> Any:
    """Return a model of a type without weights, of two layers if its configuration takes that."""
    for layers in ({"num_hidden_layers": 2}, {}):
        try:
            config = AutoConfig.for_model(model_type, **SIDES.get(model_type, {}), **layers)
            with torch.device("meta"):
                return AutoModelForCausalLM.from_config(config)
        except FAULTS:
            if not layers:
                raise
    return None


def pattern(name: str) -> str:
    return re.sub(r"\.\d+\.", ".N.", name)


@pytest.mark.parametrize(
    ("model_type", "spared"),
    [
        ("hunyuan_v1_moe", "mlp.gate.wg.weight"),
        ("doge", "mlp.router_gate.weight"),
        ("zaya", "mlp.gate.router_mlp.fc1.weight"),
        ("gemma3n_text", "altup.modality_router.weight"),
        ("gemma3n_text", "altup.prediction_coefs.weight"),
        ("gemma3n_text", "model.altup_projections.N.weight"),
        ("gemma3n_text", "model.altup_unembed_projections.N.weight"),
        ("phi4_multimodal", "img_processor.encoder.layers.N.mlp.fc1.weight"),
        ("phi4_multimodal", "audio_embed.encoder.encoders.N.self_attn.q_proj.weight"),
        ("git", "vision_model.encoder.layers.N.mlp.fc1.weight"),
        ("rwkv", "attention.time_mix_key"),
        ("axk2", "input_layernorm.mlp.fc1.weight"),
        ("zamba", "mamba.A_log"),
        ("mamba", "mixer.A_log"),
        ("xlnet", "rel_attn.seg_embed"),
        ("modernbert-decoder", "lm_head.dense.weight"),
    ],
)
def test_what_is_documented_as_left_alone_is(model_type: str, spared: str) -> None:
    coverage = find_prunable(empty(model_type), allow_partial=True)
    assert any(pattern(weight.name).endswith(spared) for weight in coverage.skipped)
    assert not any(pattern(weight.name).endswith(spared) for weight in coverage.weights)


@pytest.mark.parametrize(
    ("model_type", "cut"),
    [
        ("modernbert-decoder", "model.layers.N.mlp.Wi.weight"),
        ("phi4_multimodal", "model.layers.N.mlp.gate_up_proj.weight"),
        ("gemma3n_text", "model.layers.N.per_layer_input_gate.weight"),
        ("doge", "model.layers.N.mlp.gate_proj.weight"),
        ("hunyuan_v1_moe", "mlp.experts.gate_up_proj"),
        ("rwkv", "attention.key.weight"),
        ("mamba", "mixer.in_proj.weight"),
        ("longcat_flash", "self_attn.N.q_a_proj.weight"),
        ("blt", "model.global_transformer.layers.N.mlp.up_proj.weight"),
        ("roberta-prelayernorm", "attention.self.query.weight"),
    ],
)
def test_what_can_be_cut_is_found(model_type: str, cut: str) -> None:
    coverage = find_prunable(empty(model_type), allow_partial=True)
    assert any(pattern(weight.name).endswith(cut) for weight in coverage.weights)


def test_no_type_of_transformers_has_a_router_or_a_deaf_part_among_its_prunable_weights() -> None:
    looked_at = 0
    for model_type in sorted({*TYPES} - UNBUILT):
        model = empty(model_type)
        modules = dict(model.named_modules())
        try:
            coverage = find_prunable(model, allow_partial=True)
        except CoverageError:
            continue  # its checkpoints join parameters that this package would have to take apart
        looked_at += 1
        for weight in coverage.weights:
            where = f"{model_type}: {weight.name}"
            assert sum(side > 1 for side in weight.shape) > 1, where
            parents = [
                modules[".".join(weight.name.split(".")[:depth])]
                for depth in range(weight.name.count("."))
            ]
            for module in parents:
                said = getattr(module, "input_modalities", "text")
                assert "text" in ([said] if isinstance(said, str) else said), where
                assert "Router" not in type(module).__name__, where
            assert _chooses(weight.name, modules) is False, where
    assert looked_at > 0.9 * len(TYPES)


def _chooses(name: str, modules: dict[str, nn.Module]) -> bool:
    """Tell whether a weight beside experts gives a number for each of them."""
    words = name.split(".")
    if "experts" in words or "shared" in name or len(words) < 3:
        return False
    shape = modules[""].get_parameter(name).shape
    for depth in (2, 3):
        experts = getattr(modules[".".join(words[:-depth])], "experts", None)
        if experts is None:
            continue
        counts = {p.shape[0] for p in experts.parameters(recurse=False) if p.dim() == 3}
        if shape[0] in counts:
            return True
    return False


class Packed(torch.Tensor):
    """Stands for a tensor of a quantisation package, which says that it is bfloat16."""


def test_tensors_of_a_quantisation_package_are_refused() -> None:
    model = tiny.build("llama", dtype=torch.bfloat16)
    layer = model.model.layers[0].mlp.up_proj
    packed = layer.weight.detach().as_subclass(Packed)
    layer.weight = nn.Parameter(packed, requires_grad=False)
    assert type(layer.weight.data) is Packed or type(layer.weight) is Packed
    with pytest.raises(InputError, match="quantised"):
        find_prunable(model)
