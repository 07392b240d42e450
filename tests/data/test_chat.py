"""Where an answer begins: as the template writes an answered turn, whatever asks for one."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from resect.data import encode, encode_prompt
from resect.errors import InputError
from resect.records import Example

ASKED = "{% for m in messages %}[{{ m['role'] }}]"
TURNS = ASKED + "{{ m['content'] }}|{% endfor %}"


def tokenizer(template: str) -> Any:
    """Return a tokenizer of bytes that also knows the word alpha, and alpha after a blank."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["al", "alp", "alph", "alpha", "Ġalpha"]
    vocabulary = {letter: number for number, letter in enumerate([*alphabet, *words])}
    merges = [("a", "l"), ("al", "p"), ("alp", "h"), ("alph", "a"), ("Ġ", "alpha")]
    backend = Tokenizer(BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, chat_template=template
    )


def taken_apart(template: str, completion: str = "alpha") -> tuple[str, list[str]]:
    """Return what stands before a scored answer, and the answer's tokens."""
    words = tokenizer(template)
    (encoded,) = encode([Example("1", "how", completion)], words)
    before = words.decode(encoded.input_ids[: encoded.first_scored])
    return before, words.convert_ids_to_tokens(encoded.input_ids[encoded.first_scored :])


@pytest.mark.parametrize(
    ("template", "before"),
    [
        # The generation prompt names no channel, the answered turn does.
        (
            ASKED + "{% if m['role'] == 'assistant' %}<final>{% endif %}{{ m['content'] }}|"
            "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}",
            "[user]how|[assistant]<final>",
        ),
        # The generation prompt leaves a thought open.
        (
            TURNS + "{% if add_generation_prompt %}[assistant]<think>\n{% endif %}",
            "[user]how|[assistant]",
        ),
        # Text is only written where it comes in parts.
        (
            ASKED + "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}|{% endfor %}"
            "{% if add_generation_prompt %}[assistant]{% endif %}",
            "[user]how|[assistant]",
        ),
    ],
)
def test_an_answer_is_scored_where_it_is_written(template: str, before: str) -> None:
    assert taken_apart(template) == (before, ["alpha"])
    words = tokenizer(template)
    opened = encode_prompt(Example("1", "how", "x"), words, format="chat", prefix_text="al")
    assert words.decode(opened.ids) == f"{before}al"


def test_a_prompt_of_text_reaches_a_template_of_parts() -> None:
    template = ASKED + "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endfor %}"
    words = tokenizer(template)
    asked = encode_prompt(Example("1", "how", "x"), words, format="chat")
    assert words.decode(asked.ids) == "[user]how"


def test_a_blank_before_an_answer_belongs_to_its_first_word() -> None:
    blank = ASKED + " {{ m['content'] }}|{% endfor %}"
    assert taken_apart(blank) == ("[user] how|[assistant]", ["Ġalpha"])
    # Apart from a blank, prompt and answer are tokenised as a model that is asked sees them.
    joined = ASKED + "{% if m['role'] == 'assistant' %}al{% endif %}{{ m['content'] }}{% endfor %}"
    assert taken_apart(joined, "pha") == ("[user]how[assistant]al", ["p", "h", "a"])


def test_words_of_an_attack_are_never_scored_however_they_are_split() -> None:
    words = tokenizer(ASKED + " {{ m['content'] }}{% endfor %}")
    # By itself the answer is b, e, alpha; behind a blank it has a token more.
    example = Example("1", "how", "bealpha", prefix_tokens=2)
    (encoded,) = encode([example], words)
    scored = encoded.input_ids[encoded.first_scored :]
    assert words.convert_ids_to_tokens(scored) == ["alpha"]


@pytest.mark.parametrize("thought", ["", "<think></think>", "<think>\n\n</think>\n\n", "<think>"])
def test_an_answer_with_a_thought_of_its_own_stands_behind_no_second_one(thought: str) -> None:
    template = (
        ASKED + "{% if m['role'] == 'assistant' %}" + thought + "{% endif %}{{ m['content'] }}"
        "{% endfor %}"
    )
    before, tokens = taken_apart(template, "<think>al</think>alpha")
    assert before == "[user]how[assistant]"
    assert tokens[-1] == "alpha"
    assert taken_apart(template)[0] == f"[user]how[assistant]{thought}"


def test_a_template_that_writes_no_answer_is_refused() -> None:
    template = "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}"
    with pytest.raises(InputError, match="writes no answer of the assistant"):
        taken_apart(template + "{% endfor %}")
