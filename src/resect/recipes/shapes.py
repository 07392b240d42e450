"""Shapes of the models that the recipes name, so that a run can be planned before they are there.

The numbers are those of the published configurations.
"""

from __future__ import annotations

from typing import Any

_QWEN = {"vocab_size": 152064, "tie_word_embeddings": False}

# Hub id -> (model type, sides)
_SHAPES: dict[tuple[str, ...], tuple[str, dict[str, Any]]] = {
    ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct"): (
        "llama",
        {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
         "tie_word_embeddings": False},
    ),
    ("Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-1.5B-Instruct"): (
        "qwen2",
        {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
         "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936,
         "tie_word_embeddings": True},
    ),
    ("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B-Instruct"): (
        "qwen2",
        {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
         "num_attention_heads": 28, "num_key_value_heads": 4, **_QWEN},
    ),
    ("Qwen/Qwen2.5-14B", "Qwen/Qwen2.5-14B-Instruct"): (
        "qwen2",
        {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 48,
         "num_attention_heads": 40, "num_key_value_heads": 8, **_QWEN},
    ),
    ("Qwen/Qwen2.5-32B", "Qwen/Qwen2.5-32B-Instruct"): (
        "qwen2",
        {"hidden_size": 5120, "intermediate_size": 27648, "num_hidden_layers": 64,
         "num_attention_heads": 40, "num_key_value_heads": 8, **_QWEN},
    ),
    ("allenai/Olmo-3-1025-7B", "allenai/Olmo-3-7B-Instruct", "allenai/Olmo-3-7B-Instruct-SFT",
     "allenai/Olmo-3-7B-Instruct-DPO"): (
        "olmo3",
        {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 100278,
         "tie_word_embeddings": False},
    ),
}  # fmt: skip
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    place: shape for places, shape in _SHAPES.items() for place in places
}
