"""Real architectures at tiny size, built from their configs; nothing is downloaded."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from resect.records import Encoded

VOCABULARY = 64
WORDS = [f"w{n}" for n in range(VOCABULARY - 4)]
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 1,
}


def build(architecture: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """Return a random model; weights are large enough that losses react to a cut."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any
        if architecture == "llama":
            model = LlamaForCausalLM(LlamaConfig(**_COMMON, tie_word_embeddings=True))
        elif architecture == "qwen3":
            model = Qwen3ForCausalLM(Qwen3Config(**_COMMON, head_dim=8))
        elif architecture == "gpt2":
            model = GPT2LMHeadModel(
                GPT2Config(
                    vocab_size=VOCABULARY,
                    n_embd=16,
                    n_layer=2,
                    n_head=2,
                    n_positions=64,
                    bos_token_id=1,
                    eos_token_id=1,
                    pad_token_id=0,
                )
            )
        else:
            raise ValueError(architecture)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    return model.to(dtype).eval()


@cache
def tokenizer() -> Any:
    vocabulary = {"<pad>": 0, "<eos>": 1, "<user>": 2, "<assistant>": 3}
    vocabulary |= {word: len(vocabulary) + n for n, word in enumerate(WORDS)}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        chat_template=TEMPLATE,
    )


def save(architecture: str, folder: Path, *, seed: int = 0, **options: Any) -> Path:
    """Write a checkpoint folder as a user has it."""
    dtype = options.pop("dtype", torch.float32)
    build(architecture, seed, dtype).save_pretrained(folder, **options)
    tokenizer().save_pretrained(folder)
    return folder


def examples(count: int = 6, seed: int = 0, shortest: int = 5) -> list[Encoded]:
    """Return encoded examples of different lengths."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for n in range(count):
        length = shortest + int(torch.randint(0, 8, (1,), generator=draw))
        ids = torch.randint(4, VOCABULARY, (length,), generator=draw).tolist()
        first = int(torch.randint(1, length - 1, (1,), generator=draw))
        found.append(Encoded(f"e{n}", tuple(ids), first))
    return found


def rows(count: int, prefix: str, *, split: str = "") -> list[dict[str, Any]]:
    """Return prompt-completion rows of words that the tokenizer knows."""
    draw = torch.Generator().manual_seed(count + len(prefix) * 1000)

    def words(length: int) -> str:
        places = torch.randint(0, len(WORDS), (length,), generator=draw).tolist()
        return " ".join(WORDS[place] for place in places)

    return [
        {
            "id": f"{prefix}{n}",
            "prompt": words(5),
            "completion": words(6),
            "category": "ab"[n % 2],
            **({"split": split} if split else {}),
        }
        for n in range(count)
    ]
