"""Answers stand where 108 real chat templates write them; only hashes of them are kept here.

The templates are in the wheels of trl 1.16.0 and axolotl 0.19.0. Those that are installed are
tested, and those that lie unpacked in a folder that RESECT_CHAT_TEMPLATES names
(`pip download --no-deps axolotl==0.19.0`, then unzip). Nothing is fetched.

To write the hashes anew: `python tests/data/test_real_templates.py`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterator
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from resect.data import encode, encode_prompt
from resect.data.template import render
from resect.records import Example

HASHES = Path(__file__).parents[1] / "fixtures" / "answered_turns.json"
EXAMPLE = Example("1", "how is it", "alpha beta")
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


# Some templates write today's date, in one of these ways.
DATES = re.compile(r"\d{4}-\d\d-\d\d|\d{1,2} \w+ \d{4}|[A-Z]\w+ \d{1,2}, \d{4}")


def name_of(text: str) -> str:
    text = DATES.sub("DATE", text)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def folders() -> Iterator[tuple[str, Path]]:
    """Yield the packages that have templates, without importing them."""
    unpacked = os.environ.get("RESECT_CHAT_TEMPLATES")
    for package in ("trl", "axolotl"):
        spec = importlib.util.find_spec(package)
        if unpacked and (Path(unpacked) / package).is_dir():
            yield package, Path(unpacked) / package
        elif spec is not None and spec.submodule_search_locations:
            yield package, Path(spec.submodule_search_locations[0])


def templates() -> dict[str, str]:
    """Return the templates by package and file name."""
    return {
        f"{package}/{path.name}": path.read_text(encoding="utf-8")
        for package, folder in folders()
        for path in sorted(folder.rglob("*.jinja"))
    }


@cache
def bytes_tokenizer() -> Any:
    """Return a tokenizer with a token a byte, so that ids tell every character of a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, **SPECIAL
    )


def written(template: str, answer: str, *, parts: bool) -> str:
    """Return a conversation as transformers alone writes it; empty if it cannot."""
    turns = [("user", EXAMPLE.prompt), ("assistant", answer)]
    messages = [
        {"role": role, "content": [{"type": "text", "text": text}] if parts else text}
        for role, text in turns
    ]
    options = {"enable_thinking": False, **SPECIAL}
    try:
        texts, _ = render_jinja_template([messages], chat_template=template, **options)
    except render.FAULTS:
        return ""
    return str(texts[0]) if answer in texts[0] else ""


def before_an_answer(template: str) -> str:
    """Return what two conversations that differ in their answers have in common, up to there."""
    for parts in (False, True):
        texts = [written(template, answer, parts=parts) for answer in ("qux", "zorp")]
        if all(texts):
            pairs = takewhile(lambda pair: pair[0] == pair[1], zip(*texts, strict=False))
            return "".join(letter for letter, _ in pairs)
    return ""


KNOWN: dict[str, dict[str, str]] = json.loads(HASHES.read_text(encoding="utf-8"))
HERE = templates()


def test_all_templates_of_both_wheels_are_known() -> None:
    assert len(KNOWN) == 108


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_an_answer_stands_where_the_template_writes_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = HERE.get(name)
    if template is None:
        pytest.skip(f"{name} is not here: {__doc__.splitlines()[0]}")
    if name_of(template) != KNOWN[name]["template"]:
        pytest.skip(f"{name} is of another version")
    tokenizer = bytes_tokenizer()
    monkeypatch.setattr(tokenizer, "chat_template", template)
    (encoded,) = encode([EXAMPLE], tokenizer)
    before = tokenizer.decode(encoded.input_ids[: encoded.first_scored])
    answer = tokenizer.decode(encoded.input_ids[encoded.first_scored :])
    assert name_of(before) == KNOWN[name]["before"], before[-80:]
    assert answer == EXAMPLE.completion
    # A prefill opens the answer at the same place.
    opened = encode_prompt(EXAMPLE, tokenizer, format="chat", prefix_text="alpha")
    assert tokenizer.decode(opened.ids) == f"{before}alpha"


if __name__ == "__main__":
    rows = {
        name: {"template": name_of(text), "before": name_of(before_an_answer(text))}
        for name, text in HERE.items()
        if before_an_answer(text) or sys.exit(f"{name} writes no answer")
    }
    HASHES.write_text(json.dumps(rows, indent=0, sort_keys=True) + "\n", encoding="utf-8")
