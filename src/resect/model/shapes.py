"""Published shapes, and models without weights to plan for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from resect.errors import InputError, unknown_name
from resect.model.load import refuse_encoder

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


# Shapes of published configurations, to plan for a model before it is there.
SHAPES: dict[str, tuple[str, dict[str, int]]] = {
    "llama-8b": ("llama", {"hidden_size": 4096, "intermediate_size": 14336,
                           "num_hidden_layers": 32, "num_attention_heads": 32,
                           "num_key_value_heads": 8, "vocab_size": 128256}),
    "qwen-32b": ("qwen3", {"hidden_size": 5120, "intermediate_size": 25600,
                           "num_hidden_layers": 64, "num_attention_heads": 64,
                           "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}),
    "llama-70b": ("llama", {"hidden_size": 8192, "intermediate_size": 28672,
                            "num_hidden_layers": 80, "num_attention_heads": 64,
                            "num_key_value_heads": 8, "vocab_size": 128256}),
    "llama-405b": ("llama", {"hidden_size": 16384, "intermediate_size": 53248,
                             "num_hidden_layers": 126, "num_attention_heads": 128,
                             "num_key_value_heads": 8, "vocab_size": 128256}),
}  # fmt: skip


def empty_model(place: str, dtype: torch.dtype | None = None) -> Any:
    """Return a model on the meta device: shapes and dtypes without weights.

    Args:
        place: A name in `SHAPES`, a folder with a `config.json`, or a Hub id.
        dtype: Dtype of its weights; None for that of the configuration.

    Raises:
        InputError: There is no such place, or its configuration is not of a causal LM.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        if place in SHAPES:
            kind, sides = SHAPES[place]
            config = AutoConfig.for_model(kind, **sides, tie_word_embeddings=False)
        elif place.startswith(("./", "../", "/", "~")) and not Path(place).exists():
            raise InputError("no such model folder", got=place, allowed="a folder with config.json")
        elif Path(place).exists() or "/" in place:
            config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        else:
            raise unknown_name("shape", place, list(SHAPES))
        own = getattr(config.get_text_config(), "dtype", None)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype or own or torch.bfloat16)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"cannot read the configuration of a causal language model from {place}",
            got=str(error).strip().splitlines()[0],
            allowed=f"a folder with config.json, a Hub id, or {', '.join(SHAPES)}",
        ) from error
    refuse_encoder(model.config, place)
    return model
