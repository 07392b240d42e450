"""What goes on the round trips: a tiny model, a mask of it, and the model cut with that mask."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from resect.attribution.engine import attribute_many
from resect.attribution.settings import Pass
from resect.export import export_checkpoint
from resect.model import load_model
from resect.records import Encoded
from resect.weights.mask import Mask
from resect.weights.select import select

VOCABULARY = 320
# Rows of 256, as blocks of GGUF's K types and groups of other quantisers are long.
_WIDTHS: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
}
_EXPERTS = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}


@dataclass(frozen=True)
class Case:
    """A model on disk, its mask, and the folder that the mask was cut from.

    Attributes:
        whole: The intact checkpoint.
        cut: What `resect prune` writes of it.
        mask: The mask, with the fingerprints of model and tokenizer.
    """

    whole: Path
    cut: Path
    mask: Mask


def tokenizer() -> Any:
    """Return a tokenizer of invented words."""
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": 1} | {f"w{n}": n for n in range(2, VOCABULARY)}
    backend = Tokenizer(WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")


def save_pieces(folder: Path) -> None:
    """Write a tokenizer of sentencepiece, the kind that llama.cpp's converter knows by itself."""
    import sentencepiece

    text = folder / "text.txt"
    text.write_text("\n".join(f"brule vorp {n} zim tark" for n in range(50)), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    text.unlink()
    (folder / "tokenizer.vocab").unlink()
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def build(kind: str) -> Any:
    """Return a random model: `mixtral` for one with experts, else a llama."""
    import transformers

    if kind == "mixtral":
        config: Any = transformers.MixtralConfig(**(_WIDTHS | _EXPERTS))
        model_class: Any = transformers.MixtralForCausalLM
    else:
        config, model_class = transformers.LlamaConfig(**_WIDTHS), transformers.LlamaForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.1)
            else:
                # Norms that are told from their default, which tools fold into weights.
                parameter.data += 0.2 * torch.randn(parameter.shape)
    return model.eval()


def make(kind: str, folder: Path) -> Case:
    """Write a model and the same model cut, and return both with the mask.

    Args:
        kind: `llama`, `pieces` for one with a tokenizer of sentencepiece, or `mixtral`.
        folder: An empty folder, or none yet.
    """
    whole, cut = folder / "whole", folder / "cut"
    build(kind).save_pretrained(whole)
    if kind == "pieces":
        save_pieces(whole)
    else:
        tokenizer().save_pretrained(whole)
    draw = torch.Generator().manual_seed(1)
    rows = [torch.randint(2, VOCABULARY, (8,), generator=draw).tolist() for _ in range(3)]
    examples = [Encoded(f"e{n}", tuple(ids), 4) for n, ids in enumerate(rows)]
    loaded = load_model(whole, device="cpu")
    scores = attribute_many(*loaded, examples, settings=Pass(dense=True))
    mask = select(scores["signed"], None, q=0.02, p=0)
    export_checkpoint(whole, mask, cut)
    return Case(whole, cut, mask)
