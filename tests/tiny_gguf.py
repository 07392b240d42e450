"""Tiny random models as GGUF files, in the layout that llama.cpp's converter writes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType as Type
from transformers.convert_slow_tokenizer import bytes_to_unicode

SPECIAL_OF_GEMMA = ["<pad>", "<eos>", "<bos>", "<unk>"]
PIECES = ["th", "the", "in", "▁a", "▁t", "▁th", "▁the"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = [("t", "h"), ("th", "e"), ("Ġ", "a"), ("i", "n"), ("Ġ", "the")]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_COMMON: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
}
# In blocks that the package cannot make, byte and value of the scales, in half floats.
_SCALES = {
    "Q2_K": {80: 1e-2, 82: 1.4e-2},
    "Q3_K": {108: 3e-3},
    "Q4_K": {0: 4e-4, 2: 3e-3},
    "Q5_K": {0: 2e-4, 2: 3e-3},
    "Q6_K": {208: 8e-5},
    "IQ4_NL": {0: 1.6e-3},
}


@functools.cache
def vocabulary(architecture: str = "llama") -> list[str]:
    """Return the tokens: specials, bytes, merges; of sentencepiece for Gemma."""
    if architecture == "gemma3":
        signs = [chr(number) for number in range(33, 127)]
        return [*SPECIAL_OF_GEMMA, *(f"<0x{n:02X}>" for n in range(256)), "▁", *signs, *PIECES]
    merged = ["".join(pair) for pair in MERGES]
    return [*SPECIAL, *bytes_to_unicode().values(), *merged]


def unsaid(architecture: str = "llama") -> list[int]:
    """Return the ids that are no text of their own: specials, and bytes beyond ASCII."""
    shown = {character: byte for byte, character in bytes_to_unicode().items()}
    return [
        number
        for number, token in enumerate(vocabulary(architecture))
        if token in (*SPECIAL, *SPECIAL_OF_GEMMA)
        or token.startswith("<0x")
        or shown.get(token, 0) > 127
    ]


def build(architecture: str = "llama", *, tied: bool = True, seed: int = 0) -> Any:
    """Return a random model with the vocabulary of these files."""
    settings = _COMMON | {
        "vocab_size": len(vocabulary(architecture)),
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if architecture == "gemma3":
        settings |= {"bos_token_id": 2, "eos_token_id": 1}
        settings |= {"head_dim": 64, "sliding_window": 32, "query_pre_attn_scalar": 64}
        kind: Any = transformers.Gemma3ForCausalLM
        config: Any = transformers.Gemma3TextConfig(**settings)
    elif architecture == "qwen2":
        kind, config = transformers.Qwen2ForCausalLM, transformers.Qwen2Config(**settings)
    else:
        kind, config = transformers.LlamaForCausalLM, transformers.LlamaConfig(**settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.1)
            else:
                # Norms and biases that are told from their defaults.
                parameter.data += 0.2 * torch.randn(parameter.shape)
    return model.eval()


def in_file(name: str, weight: np.ndarray, model: Any, architecture: str) -> np.ndarray:
    """Return a weight as llama.cpp's converter lays it out; name is that of the file."""
    if architecture == "llama" and (".attn_q." in name or ".attn_k." in name):
        config = model.config
        heads = config.num_key_value_heads if ".attn_k." in name else config.num_attention_heads
        paired = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
        return paired.swapaxes(1, 2).reshape(weight.shape)
    if architecture == "gemma3" and name.endswith("norm.weight"):
        return weight + 1
    return weight


def blocks(weight: np.ndarray, type_name: str, seed: int) -> np.ndarray:
    """Return a weight in blocks; in types that the package only decodes, blocks of random codes."""
    kind = Type[type_name]
    if type_name not in _SCALES:
        return np.asarray(gguf.quants.quantize(weight, kind))
    elements, width = gguf.GGML_QUANT_SIZES[kind]
    count = weight.size // elements
    data = np.random.default_rng(seed).integers(0, 256, (count, width), dtype=np.uint8)
    for start, scale in _SCALES[type_name].items():
        half = np.full(count, scale, dtype=np.float16)
        data[:, start : start + 2] = half.view(np.uint8).reshape(count, 2)
    return data.reshape(weight.shape[0], -1)


def save(
    path: Path,
    model: Any,
    *,
    architecture: str = "llama",
    types: str | Callable[[str], str] = "F32",
    extra: Callable[[gguf.GGUFWriter], None] | None = None,
) -> Path:
    """Write a model as a GGUF file.

    Args:
        path: The file.
        model: A model of `build`.
        architecture: As the file names it.
        types: The type of matrices, or a function of their names; the rest is F32.
        extra: Adds facts.
    """
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if architecture == "gemma3":
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_sliding_window(config.sliding_window)
        writer.add_rope_freq_base(1e6)
    else:
        writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
        writer.add_rope_freq_base(10000.0)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    if architecture == "gemma3":
        _add_pieces(writer)
    else:
        _add_tokenizer(writer)
    if extra is not None:
        extra(writer)
    names = gguf.get_tensor_name_map(
        next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture),
        config.num_hidden_layers,
    )
    tensors = dict(model.state_dict())
    if config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    for number, (name, tensor) in enumerate(tensors.items()):
        stem, _, suffix = name.rpartition(".")
        inner = f"{names.get_name(stem)}.{suffix}"
        weight = in_file(inner, tensor.float().numpy(), model, architecture)
        type_name = types if isinstance(types, str) else types(inner)
        if weight.ndim == 1 or type_name == "F32":
            writer.add_tensor(inner, np.ascontiguousarray(weight, dtype=np.float32))
        else:
            data = blocks(np.ascontiguousarray(weight), type_name, number)
            writer.add_tensor(inner, data, raw_dtype=Type[type_name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    tokens = vocabulary()
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([control if token in SPECIAL else normal for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


def _add_pieces(writer: gguf.GGUFWriter) -> None:
    tokens = vocabulary("gemma3")
    kinds = {"<unk>": gguf.TokenType.UNKNOWN} | dict.fromkeys(
        SPECIAL_OF_GEMMA[:3], gguf.TokenType.CONTROL
    )
    types = [
        gguf.TokenType.BYTE if token.startswith("<0x") else kinds.get(token, gguf.TokenType.NORMAL)
        for token in tokens
    ]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(number) for number in range(len(tokens))])
    writer.add_token_types(types)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(3)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
