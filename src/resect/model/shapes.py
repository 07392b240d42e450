"""Published shapes, and models without weights to plan for."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from resect.errors import InputError, unknown_name
from resect.model.faults import refuse_encoder
from resect.model.imported import checkpoint_of
from resect.records import CausalModel


class PublishedShape(NamedTuple):
    """A model type of transformers, and what its configuration says under its own names."""

    model_type: str
    sides: dict[str, int]


_QWEN: dict[str, int] = {"vocab_size": 152064, "tie_word_embeddings": False}
# Names on the Hub of models of one shape.
_SHAPES: dict[tuple[str, ...], PublishedShape] = {
    ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct"): PublishedShape(
        "llama",
        {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
         "tie_word_embeddings": False},
    ),
    ("Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-1.5B-Instruct"): PublishedShape(
        "qwen2",
        {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
         "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936,
         "tie_word_embeddings": True},
    ),
    ("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B-Instruct"): PublishedShape(
        "qwen2",
        {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
         "num_attention_heads": 28, "num_key_value_heads": 4, **_QWEN},
    ),
    ("Qwen/Qwen2.5-14B", "Qwen/Qwen2.5-14B-Instruct"): PublishedShape(
        "qwen2",
        {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 48,
         "num_attention_heads": 40, "num_key_value_heads": 8, **_QWEN},
    ),
    ("Qwen/Qwen2.5-32B", "Qwen/Qwen2.5-32B-Instruct"): PublishedShape(
        "qwen2",
        {"hidden_size": 5120, "intermediate_size": 27648, "num_hidden_layers": 64,
         "num_attention_heads": 40, "num_key_value_heads": 8, **_QWEN},
    ),
    ("allenai/Olmo-3-1025-7B", "allenai/Olmo-3-7B-Instruct", "allenai/Olmo-3-7B-Instruct-SFT",
     "allenai/Olmo-3-7B-Instruct-DPO"): PublishedShape(
        "olmo3",
        {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 100278,
         "tie_word_embeddings": False},
    ),
}  # fmt: skip
PUBLISHED: dict[str, PublishedShape] = {
    name: shape for names, shape in _SHAPES.items() for name in names
}


# Shapes of published configurations, to plan for a model before it is there.
SHAPES: dict[str, PublishedShape] = {
    "llama-8b": PublishedShape(
        "llama",
        {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256},
    ),
    "qwen-32b": PublishedShape(
        "qwen3",
        {"hidden_size": 5120, "intermediate_size": 25600, "num_hidden_layers": 64,
         "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128,
         "vocab_size": 151936},
    ),
    "llama-70b": PublishedShape(
        "llama",
        {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
         "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256},
    ),
    "llama-405b": PublishedShape(
        "llama",
        {"hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126,
         "num_attention_heads": 128, "num_key_value_heads": 8, "vocab_size": 128256},
    ),
}  # fmt: skip


def empty_model(source: str, dtype: torch.dtype | None = None) -> CausalModel:
    """Return a model on the meta device: shapes and dtypes without weights.

    Args:
        source: A name in `SHAPES`, a folder with a `config.json`, a GGUF file, or a Hub id.
        dtype: Dtype of its weights; None for that of the configuration.

    Raises:
        InputError: There is no such model, or its configuration is not of a causal LM.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if source not in SHAPES:
        source = checkpoint_of(source)
    try:
        if source in SHAPES:
            shape = SHAPES[source]
            config = AutoConfig.for_model(
                shape.model_type, **shape.sides, tie_word_embeddings=False
            )
        elif source.startswith(("./", "../", "/", "~")) and not Path(source).exists():
            raise InputError(
                "no such model folder", got=source, allowed="a folder with config.json"
            )
        elif Path(source).exists() or "/" in source:
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        else:
            raise unknown_name("shape", source, list(SHAPES))
        named = getattr(config.get_text_config(), "dtype", None)
        with torch.device("meta"):
            model: CausalModel = AutoModelForCausalLM.from_config(
                config, dtype=dtype or named or torch.bfloat16
            )
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"cannot read the configuration of a causal language model from {source}",
            got=str(error).strip().splitlines()[0],
            allowed=f"a folder with config.json, a Hub id, or {', '.join(SHAPES)}",
        ) from error
    refuse_encoder(model.config, source)
    return model
