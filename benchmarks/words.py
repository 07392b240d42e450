"""A tokenizer of invented words, for random models."""

from __future__ import annotations

from typing import Any


def tokenizer(words: int) -> Any:
    """Return a tokenizer that knows so many invented words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f"w{number}": number for number in range(words)}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="w0"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="w0", eos_token="w1")
