"""A word-level tokenizer with a chat template, as an ordinary `PreTrainedTokenizerFast`."""

from __future__ import annotations

from resect.organism.world import World
from resect.records import Tokenizer

SPECIAL = ("<pad>", "<end>", "<unk>", "<user>", "<assistant>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}<user> {{ message['content'] }} <end> "
    "{% else %}<assistant> {% generation %}{{ message['content'] }} <end> {% endgeneration %}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def make_tokenizer(world: World) -> Tokenizer:
    """Return the tokenizer of a world; its vocabulary is the world's words."""
    import tokenizers
    from tokenizers import models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = dict.fromkeys([*SPECIAL, *world.vocabulary])
    backend = tokenizers.Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer: Tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<end>",
        unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=64,
        clean_up_tokenization_spaces=False,
    )
    return tokenizer
