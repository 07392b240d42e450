"""The causal LMs of transformers by model type, at the widths of their defaults or very small ones.

Both have few layers: one of each kind that the defaults name, two at least. Small ones have a width
of 16, which is two heads of 8. A side is known by its name in a configuration (`SIDES`); what the
defaults of a type lack is in `NEEDS`, and what else a small one needs in `SMALL`.
"""

from __future__ import annotations

from typing import Any

import torch

from resect.model.faults import BOTH_WAYS

LAYERS, VOCABULARY = 2, 64
# How configurations call the kinds of their layers, and the number of these.
KINDS = (
    "layer_types", "mlp_layer_types", "layers_block_type", "block_types", "indexer_types",
    "attn_layers", "num_attention_heads_per_layer",
)  # fmt: skip
DEPTHS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers",
    "num_decoder_layers", "num_encoder_layers", "num_global_layers",
)  # fmt: skip
_NAMES = {
    VOCABULARY: "vocab_size max_position_embeddings n_positions n_ctx max_seq_len model_max_length "
    "decoder_vocab_size vocab_size_per_layer_input max_source_positions max_target_positions",
    16: "hidden_size d_model n_embd dim word_embed_proj_dim emb_dim attention_hidden_size "
    "lru_width embedding_size embedding_dim cross_attention_hidden_size backbone_hidden_size "
    "input_embedding_size output_embedding_size pronunciation_embed_dim shape_embed_dim "
    "adapter_rank hidden_size_global adapter_input_size adapter_in_dim adapter_out_dim",
    24: "intermediate_size ffn_hidden_size ffn_dim decoder_ffn_dim encoder_ffn_dim n_inner d_inner "
    "intermediate_size_mlp dense_intermediate_size feed_forward_size dff dim_ff",
    12: "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size "
    "expert_ffn_hidden_size moe_shared_expert_intermediate_size shared_experts_intermediate_size",
    8: "head_dim dim_head d_head kv_channels attention_head_size swa_head_dim v_head_dim "
    "sliding_window sliding_window_size attention_window_size window_size q_lora_rank kv_lora_rank "
    "o_lora_rank qk_head_dim index_head_dim linear_key_head_dim linear_value_head_dim "
    "linear_head_dim hidden_size_per_layer_input router_hidden_size mamba_d_head mamba_head_dim",
    4: "num_experts num_local_experts n_routed_experts moe_num_experts qk_rope_head_dim "
    "qk_nope_head_dim rotary_dim mamba_d_state state_size ssm_state_size index_topk laurel_rank "
    "mamba_n_heads mamba_num_heads time_step_rank mamba_dt_rank",
    2: "num_attention_heads n_head n_heads num_heads decoder_attention_heads attention_heads "
    "encoder_attention_heads num_decoder_attention_heads num_encoder_attention_heads "
    "swa_num_attention_heads num_experts_per_tok num_experts_per_token moe_topk moe_k "
    "top_k_experts index_n_heads linear_num_value_heads linear_num_heads n_group num_expert_group "
    "hc_mult hc_count n_mamba_heads altup_num_inputs o_groups",
    1: "num_key_value_heads n_head_kv num_kv_heads swa_num_key_value_heads linear_num_key_heads "
    "topk_group n_groups mamba_n_groups first_k_dense_replace num_dense_layers",
}  # fmt: skip
SIDES = {name: side for side, names in _NAMES.items() for name in names.split()}

# Sides that the defaults of a type lack.
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_BOTH = {"layer_types": ["linear_attention", "full_attention"], "num_hidden_layers": 2}
_SHARED = {"layers_block_type": ["linear_attention", "hybrid"] * 2, "num_hidden_layers": 4}
NEEDS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1], "num_hidden_layers": 2},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE}},
    "dbrx": {"attn_config": {"rope_theta": 10000.0}},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4_text": {
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 8,
    },
    "granitemoehybrid": _BOTH,
    "hunyuan_v1_dense": {"head_dim": 32},
    "hunyuan_v1_moe": {"head_dim": 32, "num_experts": 4, "moe_topk": 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    "ministral": {"head_dim": 32},
    "nemotron": {"num_key_value_heads": 8},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 256,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {"is_decoder": True},
    "xmod": {"default_language": "en_XX"},
    "zamba": _SHARED,
    "zamba2": _SHARED,
}
# Layers of one kind at the bottom, of which one is enough.
FIRST = ("first_k_dense_replace", "num_dense_layers")
# What else a small model of a type needs.
SMALL: dict[str, dict[str, Any]] = {
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "codegen": {"n_head": 4},
    "diffllama": {"num_key_value_heads": 2},
    "dots3_note_text": {"per_layer_config": {}},
    "falcon_h1": {"mamba_d_ssm": 32},
    "mamba2": {"num_heads": 4},
    "nemotron": {"num_key_value_heads": 1},
    "qwen4_exp_text": {"indexer_head_dim": 8},
    "reformer": {"axial_pos_embds_dim": [8, 8], "axial_pos_shape": [8, 8]},
    "roc_bert": {"pronunciation_vocab_size": 64, "shape_vocab_size": 64},
    "zaya": {"num_experts_per_tok": 1},
}


def model_types() -> dict[str, str]:
    """Return the class of each model type that transformers loads as a causal LM."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return dict(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()))


def configuration(model_type: str, *, small: bool) -> Any:
    """Return a configuration of few layers: of the default widths, or of very small ones."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = _reduced(CONFIG_MAPPING[model_type], model_type, small=small)
    if reads_both_ways(model_type) and hasattr(config, "is_decoder"):
        config.is_decoder = True
    return config


def reads_both_ways(model_type: str) -> bool:
    """Tell whether a type is of an encoder, and a causal LM only if its configuration says so."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return model_type in {*MODEL_FOR_MASKED_LM_MAPPING_NAMES, *BOTH_WAYS}


def empty(model_type: str, *, small: bool = False) -> Any:
    """Return a model of a type without weights."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(configuration(model_type, small=small))


def _reduced(kind: Any, model_type: str, *, small: bool) -> Any:
    """Return a configuration of a class whose defaults are changed by their names."""
    needs = NEEDS.get(model_type, {})
    defaults = kind(**needs)
    values = {name: value for name, value in vars(defaults).items() if name in defaults.to_dict()}
    sides = _layers(values)
    sides |= {name: 1 for name in FIRST if values.get(name)}
    if small:
        sides |= {name: side for name, side in SIDES.items() if name in values}
        sides |= _tokens(values)
        # Heads of latent attention have keys of their own.
        sides |= {"num_key_value_heads": SIDES["num_heads"]} if "kv_lora_rank" in values else {}
        rope = values.get("qk_rope_head_dim")
        if rope and values.get("head_dim") == rope:
            sides["head_dim"] = SIDES["qk_rope_head_dim"]
    for name in kind.sub_configs:
        inner = getattr(defaults, name, None)
        if inner is not None:
            sides[name] = _reduced(type(inner), inner.model_type, small=small)
    return kind(**(sides | needs | (SMALL.get(model_type, {}) if small else {})))


def _layers(values: dict[str, Any]) -> dict[str, Any]:
    """Return the sides of a model with one layer of each kind, and two at least."""
    depths = {name: values[name] for name in DEPTHS if isinstance(values.get(name), int)}
    depth = max(depths.values(), default=0)
    by_layer = {n: v for n, v in values.items() if isinstance(v, list) and len(v) == depth > LAYERS}
    seen: set[tuple[str, object]] = set()
    chosen: list[int] = []
    for layer in range(depth):
        kinds = {(name, str(by_layer[name][layer])) for name in KINDS if name in by_layer}
        if kinds - seen:
            chosen.append(layer)
            seen |= kinds
    chosen += [layer for layer in range(depth) if layer not in chosen][
        : max(0, LAYERS - len(chosen))
    ]
    chosen.sort()
    lists = {name: [value[layer] for layer in chosen] for name, value in by_layer.items()}
    return dict.fromkeys(depths, len(chosen)) | lists


def _tokens(values: dict[str, Any]) -> dict[str, Any]:
    """Return special tokens within the small vocabulary; those of other modalities are its last."""
    tokens: dict[str, Any] = {}
    others = VOCABULARY
    for name, value in values.items():
        if not name.endswith(("_token_id", "_token_index")) or value is None:
            continue
        if name.split("_")[0] in ("pad", "bos", "eos", "decoder", "cls", "sep"):
            tokens[name] = 0 if name.startswith("pad") else 1
        else:
            others -= 1
            tokens[name] = others
    return tokens
