"""Chat messages: parts and packed columns are read, and nothing that a turn says is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from resect.data import load_data
from resect.errors import InputError
from resect.files import read_parquet

ASKED = {"role": "user", "content": "how"}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "content",
    [
        "how is it",
        [{"type": "text", "text": "how is it"}],
        [{"type": "text", "text": "how "}, {"type": "text", "text": "is it", "image_url": None}],
        ["how is it"],
    ],
)
def test_parts_are_read_as_their_text(content: object, tmp_path: Path) -> None:
    row = {
        "prompt": [{"role": "user", "content": content}],
        "completion": [{"role": "assistant", "content": content, "tool_calls": None}],
    }
    (example,) = load_data(write(tmp_path / "a.jsonl", row)).examples
    assert example.prompt == (("user", "how is it"),)
    assert example.completion == "how is it"


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"content": None}, "message 1 of 'completion' has no text"),
        ({}, "message 1 of 'completion' has no text"),
        ({"content": 3}, "is no text"),
        ({"content": {"text": "so"}}, "is no text"),
        ({"content": [{"type": "image_url", "image_url": "x"}]}, "a part that is no text"),
        ({"content": [{"type": "text", "text": "so", "image": "x"}]}, "a part that is no text"),
        ({"content": "so", "tool_calls": [{"name": "f"}]}, "says more than its content"),
        ({"content": "so", "reasoning_content": "hm"}, "says more than its content"),
        ({"content": "so", "role": None}, "has no role"),
    ],
)
def test_what_would_vanish_is_refused(message: dict[str, Any], error: str, tmp_path: Path) -> None:
    row = {"prompt": [ASKED], "completion": [{"role": "assistant", **message}]}
    with pytest.raises(InputError, match=error):
        load_data(write(tmp_path / "a.jsonl", row))


def test_tools_of_a_row_are_refused(tmp_path: Path) -> None:
    row = {"prompt": [ASKED], "completion": "so", "tools": [{"name": "f"}]}
    with pytest.raises(InputError, match="row 1 has tools"):
        load_data(write(tmp_path / "a.jsonl", row))


@pytest.mark.parametrize("number", [0, 1, 0.5, False])
def test_a_number_is_no_completion_whatever_it_is(number: object, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"prompt": "how", "completion": number})
    with pytest.raises(InputError, match=r"neither text nor a list of messages[\s\S]*as text"):
        load_data(path)


def test_an_answer_of_empty_parts_is_missing(tmp_path: Path) -> None:
    row = {"prompt": "how", "completion": [{"role": "assistant", "content": []}]}
    with pytest.raises(InputError, match="has no 'completion'"):
        load_data(write(tmp_path / "a.jsonl", row))


def test_an_id_or_category_of_zero_is_one(tmp_path: Path) -> None:
    rows = [{"id": n, "category": n, "prompt": f"how {n}", "completion": "so"} for n in (0, 1)]
    examples = load_data(write(tmp_path / "a.jsonl", *rows)).examples
    assert [(example.id, example.category) for example in examples] == [("0", "0"), ("1", "1")]


# What `datasets` 5.2 writes of rows whose prompts are now text, now messages: text of JSON, marked
# by Arrow's type.
MIXED: list[dict[str, Any]] = [
    {"prompt": "how", "completion": "so"},
    {"prompt": [{"role": "user", "content": [{"type": "text", "text": "how"}]}], "completion": "x"},
]


@pytest.mark.parametrize("stored", [True, False], ids=["arrow's type", "parquet's type"])
def test_packed_columns_are_read_as_the_lines_they_were(stored: bool, tmp_path: Path) -> None:
    packed = pa.array([json.dumps(row["prompt"]) for row in MIXED]).cast(pa.json_())
    table = pa.table({"prompt": packed, "completion": [row["completion"] for row in MIXED]})
    pq.write_table(table, tmp_path / "m.parquet", store_schema=stored)
    lines = load_data(write(tmp_path / "m.jsonl", *MIXED))
    assert load_data(tmp_path / "m.parquet").examples == lines.examples


def test_packed_values_within_lists_and_structures_are_read(tmp_path: Path) -> None:
    turns = [json.dumps(ASKED), None]
    packed = pa.array(turns).cast(pa.json_())
    columns = {
        "turns": pa.ListArray.from_arrays(pa.array([0, 2]), packed),
        "more": pa.StructArray.from_arrays([packed[:1]], ["turn"]),
    }
    pq.write_table(pa.table(columns), tmp_path / "n.parquet")
    assert read_parquet(tmp_path / "n.parquet") == [
        {"turns": [ASKED, None], "more": {"turn": ASKED}}
    ]


def test_a_broken_packed_value_is_one_message(tmp_path: Path) -> None:
    table = pa.table({"prompt": pa.array(["{"]).cast(pa.json_()), "completion": ["so"]})
    pq.write_table(table, tmp_path / "b.parquet")
    with pytest.raises(InputError, match="cannot read"):
        load_data(tmp_path / "b.parquet")


def test_a_column_of_another_name_gets_a_next_step(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"question": "how"})
    with pytest.raises(InputError, match=r"has no 'prompt'[\s\S]*rename the columns"):
        load_data(path)


def test_presets_read_numbers_and_parts(tmp_path: Path) -> None:
    (tmp_path / "sums.yaml").write_text(
        "name: sums\ntitle: Sums\nhome: here\nlicence: none\ncite: none\nchecked: here\n"
        "columns: {prompt: question, completion: answer}\n",
        encoding="utf-8",
    )
    parts = [{"type": "text", "text": "two minus two"}]
    write(tmp_path / "sums.jsonl", {"question": parts, "answer": 0})
    (example,) = load_data(tmp_path / "sums.yaml", data_dir=tmp_path).examples
    assert (example.prompt, example.completion) == ("two minus two", "0")
