"""What counts as a block, over the causal LMs of transformers, on the meta device."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

import mapped
import tiny
from resect.errors import CoverageError, InputError
from resect.model import find_prunable


def empty(model_type: str) -> Any:
    """Return a small model of a type without weights, with a layer of each kind."""
    return mapped.script("model_types").empty(model_type, small=True)


def pattern(name: str) -> str:
    return re.sub(r"\.\d+\.", ".N.", name)


@pytest.mark.parametrize(
    ("model_type", "spared"),
    [
        ("hunyuan_v1_moe", "mlp.gate.wg.weight"),
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
        ("qwen4_exp_text", "attn_hyper_connection.input_mix_weight_up.weight"),
        ("deepseek_v4", "attn_hc.fn"),
        ("deepseek_v4", "compressor.indexer.scorer.weights_proj.weight"),
        ("hy_v4", "ffn_hc.fn"),
        ("deepseek_v32", "self_attn.indexer.wq_b.weight"),
        ("qwen4_exp_text", "indexer.index_qk_proj.weight"),
        ("blt", "model.patcher.layers.N.mlp.up_proj.weight"),
        ("inkling_text", "self_attn.rel_logits_proj.proj"),
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
        ("dbrx", "norm_attn_norm.attn.Wqkv.weight"),
    ],
)
def test_what_can_be_cut_is_found(model_type: str, cut: str) -> None:
    coverage = find_prunable(empty(model_type), allow_partial=True)
    assert any(pattern(weight.name).endswith(cut) for weight in coverage.weights)


def test_weights_that_several_blocks_share_are_no_silent_gap() -> None:
    model = empty("zamba2")
    with pytest.raises(CoverageError, match="shared by several blocks"):
        find_prunable(model)
    coverage = find_prunable(model, allow_partial=True)
    assert {weight.reason for weight in coverage.unknown} == {"shared by several blocks"}
    # A head that is the input embeddings is left alone as before.
    tied = tiny.build("llama")
    assert not find_prunable(tied).unknown


@pytest.mark.parametrize(
    ("model_type", "name", "kind"),
    [
        ("xlnet", "rel_attn.q", "q"),
        ("recurrent_gemma", "rg_lru.input_gate_weight", "input_gate_weight"),
        ("jetmoe", "mlp.input_linear.weight", "expert weight"),
    ],
)
def test_only_experts_are_called_experts(model_type: str, name: str, kind: str) -> None:
    coverage = find_prunable(empty(model_type))
    assert {w.kind for w in coverage.weights if w.name.endswith(name)} == {kind}


def test_a_bias_is_not_said_to_be_of_experts_where_there_are_none() -> None:
    reasons = {w.name: w.reason for w in find_prunable(empty("xlnet")).skipped}
    assert reasons["transformer.layer.0.rel_attn.r_w_bias"] == "bias"


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
