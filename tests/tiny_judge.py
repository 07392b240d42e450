"""A classifier in the form of StrongREJECT's, of a few thousand weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import GemmaConfig, GemmaForCausalLM, PreTrainedTokenizerFast

from resect.evaluation.judges.strongreject import TEMPLATE


def write_classifier(folder: Path) -> tuple[Path, Path]:
    """Write a tiny Gemma and a LoRA adapter on it, as the published pair is laid out."""
    characters = sorted(set(TEMPLATE + "abcdefghijklmnopqrstuvwxyz{}"))
    vocabulary = {"<pad>": 0, "<eos>": 1, "<bos>": 2}
    vocabulary |= {
        character: n + 3
        for n, character in enumerate([*characters, *"2345"])
        if character not in "2345"
    }
    vocabulary |= {digit: len(vocabulary) + n for n, digit in enumerate("2345")}
    vocabulary = {word: n for n, word in enumerate(vocabulary)}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = Split(Regex("."), "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>"
    )
    config = GemmaConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, max_position_embeddings=4096,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = GemmaForCausalLM(config)
        model.save_pretrained(folder / "base")
        tokenizer.save_pretrained(folder / "base")
        adapted = get_peft_model(
            model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        )
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.5)
    adapted.peft_config["default"].base_model_name_or_path = str(folder / "base")
    adapted.save_pretrained(folder / "adapter")
    return folder / "adapter", folder / "base"
