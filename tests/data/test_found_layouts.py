"""Data as it comes: layouts that are found, columns that are named, and what is refused."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from resect.data import load_data
from resect.data.load import file_of, name_of, takes_columns
from resect.data.rendered import View, render_some
from resect.errors import InputError
from resect.records import Example
from tiny import tokenizer as tiny_tokenizer

TURNS = [("system", "be"), ("user", "how 0"), ("assistant", "so 0"), ("user", "and"),
         ("assistant", "yes")]  # fmt: skip
SPEAKERS = {"user": "human", "assistant": "gpt", "system": "system"}


def messages(turns: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def conversation(turns: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"from": SPEAKERS[role], "value": content} for role, content in turns]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows in the format that the ending of the path names."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            packed = [
                {key: json.dumps(v) if isinstance(v, list) else v for key, v in row.items()}
                for row in rows
            ]
            writer.writerows(packed)
    return path


def said(data: Any) -> str:
    return str(data.origin.get("read_as", ""))


OURS: list[dict[str, Any]] = [
    {"prompt": messages(TURNS[:-1]), "completion": "yes"},
    {"prompt": "how 1", "completion": "so 1"},
]
SINGLE = [("user", "how 1"), ("assistant", "so 1")]
SHORT: list[dict[str, Any]] = [
    {"prompt": "how 0\n\nof it", "completion": "so 0"},
    {"prompt": "how 1", "completion": "so 1"},
]
LAYOUTS: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "messages": ([{"messages": messages(TURNS)}, {"messages": messages(SINGLE)}], OURS),
    "ShareGPT": (
        [{"conversations": conversation(TURNS)}, {"conversations": conversation(SINGLE)}],
        OURS,
    ),
    "ShareGPT with a system column": (
        [
            {"system": "be", "conversations": conversation(TURNS[1:])},
            {"system": "", "conversations": conversation(SINGLE)},
        ],
        OURS,
    ),
    "conversation of roles": (
        [{"conversation": messages(TURNS)}, {"conversation": messages(SINGLE)}],
        OURS,
    ),
    "Alpaca": (
        [
            {"instruction": "how 0", "input": "of it", "output": "so 0"},
            {"instruction": "how 1", "input": "", "output": "so 1"},
        ],
        SHORT,
    ),
    "Alpaca without input": (
        [{"instruction": "how 1", "output": "so 1"}],
        [{"prompt": "how 1", "completion": "so 1"}],
    ),
    "Alpaca with a history": (
        [{"instruction": "and", "input": "", "output": "yes", "system": "be",
          "history": [["how 0", "so 0"]]}],
        OURS[:1],
    ),
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_found_in_every_format(layout: str, suffix: str, tmp_path: Path) -> None:
    rows, ours = LAYOUTS[layout]
    found = load_data(write(tmp_path / f"theirs{suffix}", rows))
    expected = load_data(write(tmp_path / "ours.jsonl", ours))
    assert found.examples == expected.examples
    assert found.hash == expected.hash
    assert said(found)
    assert not said(expected)


def test_one_line_says_what_was_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        {"id": f"r{n}", "conversations": conversation(turns), "source": "x"}
        for n, turns in enumerate((TURNS, SINGLE))
    ]
    path = write(tmp_path / "s.jsonl", rows)
    with caplog.at_level(logging.INFO, "resect.data.load"):
        data = load_data(path)
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{path}: ShareGPT: prompt = all of conversations but the answer that ends it, "
        "completion = that; 1 of 2 rows have earlier answers, not scored; id; not used: source"
    )
    assert [example.id for example in data.examples] == ["r0", "r1"]
    assert str(tmp_path) not in said(data)


def test_the_usual_format_says_nothing_and_keeps_its_origin(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [{"prompt": "how", "completion": "so", "messages": "x"}])
    assert said(load_data(path)) == "read by prompt, completion; not used: messages"
    path = write(tmp_path / "b.csv", [{"prompt": "how", "completion": "so", "source": "x"}])
    assert set(load_data(path).origin) == {"files", "rows"}


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ({"messages": [], "conversations": []}, r"can be read in 2 ways[\s\S]*messages=messages"),
        ({"prompt": "how", "messages": messages(SINGLE)}, "in 2 ways"),
        ({"instruction": "how", "output": "so", "text": "how so"}, r"in 2 ways[\s\S]*text=text"),
        ({"messages": messages(SINGLE[:1])}, "row 1: 'messages' does not end with an answer"),
        ({"messages": []}, "does not end with an answer"),
        ({"conversations": [{"from": "tool", "value": "x"}]}, "of an unknown speaker"),
        ({"conversations": [{"from": "human", "value": None}]}, "message 1 .* has no text"),
        ({"conversations": ["how"]}, "message 1 .* has no role"),
        ({"messages": messages(SINGLE), "tools": [{"name": "f"}]}, "row 1 has tools"),
        ({"messages": messages(TURNS), "system": "other"}, "two system texts"),
        ({"question": "how", "response": "so"}, "--columns prompt=question,completion=response"),
        ({"instruction": "how", "output": "so", "history": ["x"]}, "no list of pairs"),
    ],
)
def test_what_is_unclear_or_would_vanish_is_refused(
    row: dict[str, Any], error: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=error):
        load_data(write(tmp_path / "a.jsonl", [row]))


def test_conversations_without_an_answer_are_prompts(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"messages": messages(TURNS[:2])}])
    (example,) = load_data(path, prompts_only=True).examples
    assert example.prompt == (("system", "be"), ("user", "how 0"))
    assert example.completion == ""


def test_prompts_beside_messages_are_read_where_prompts_are_enough(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "how", "messages": messages(SINGLE)}])
    data = load_data(path, prompts_only=True)
    assert data.examples[0].prompt == "how"
    assert said(data) == "read by prompt; not used: messages"


def test_headers_in_other_letters_are_found(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("Prompt, Completion\nhow,so\n", encoding="utf-8")
    data = load_data(path)
    assert (data.examples[0].prompt, data.examples[0].completion) == ("how", "so")
    assert said(data) == "columns: prompt = Prompt; completion =  Completion"


def test_lines_of_a_text_are_prompts_where_prompts_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("how 0\r\n\n  how 1\n# how 2\n", encoding="utf-8")
    for data in (
        load_data(path, prompts_only=True),
        load_data(path, lines=True),
        load_data(f"{path}#prompt=line"),
    ):
        assert [example.prompt for example in data.examples] == ["how 0", "how 1", "# how 2"]
        assert said(data).startswith("3 prompts, one a line")
    for whole in (load_data(path), load_data(f"{path}#text=text", prompts_only=True)):
        assert len(whole) == 1
        assert whole.examples[0].prompt == ""
    with pytest.raises(InputError, match=r"has no columns[\s\S]*prompt=line"):
        load_data(f"{path}#prompt=question")


def test_remarks_above_a_table_are_left_out_and_said(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("# version 1.0,,\n#, by hand\nprompt,completion\nhow,#so\n", encoding="utf-8")
    data = load_data(path)
    assert [(e.prompt, e.completion) for e in data.examples] == [("how", "#so")]
    assert said(data) == "by its own columns; lines 1 to 2 left out, for the # at the beginning"
    path.write_text("# x\nprompt,completion\nhow,so,more\n", encoding="utf-8")
    with pytest.raises(InputError, match="line 3 has another number of fields"):
        load_data(path)


def test_a_header_that_begins_with_the_mark_is_a_header(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("#id,prompt,completion\n7,how,so\n", encoding="utf-8")
    assert load_data(path).examples[0].completion == "so"
    assert load_data(f"{path}#id=#id").examples[0].id == "7"
    path.write_text("#id,goal,target\n7,how,so\n", encoding="utf-8")
    assert load_data(f"{path}#prompt=goal,completion=target").examples[0].completion == "so"


SEEDS = """
dataset_name: invented
harm_categories: [vem]
source: here
groups: [nobody]
data_type: text
description: >
  Invented words.
seeds:
  - value: how is vem
    harm_categories:
      - wob
  - value: |
      how is mu
      and pa
"""


@pytest.mark.parametrize("suffix", [".prompt", ".yaml", ".yml"])
def test_seeds_of_red_teams_are_prompts(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"seeds{suffix}"
    path.write_text(SEEDS, encoding="utf-8")
    data = load_data(path)
    assert [(e.prompt, e.category) for e in data.examples] == [
        ("how is vem", "wob+vem"),
        ("how is mu\nand pa", "vem"),
    ]
    assert said(data).startswith("seeds as PyRIT has them: prompt = value and category = harm_cat")


@pytest.mark.parametrize(
    ("seeds", "error"),
    [
        ("[{value: x, data_type: image_path}]", "data of type image_path"),
        ("[{value: 'is {{ it }}', parameters: [it]}]", "a template with parameters"),
        ("[{value: x, role: system}]", "a text of the role system"),
        ("[{value: x, seed_type: simulated_conversation}]", "a seed of type simulated"),
        ("[{value: x, sequence: 1}]", "a part of a group"),
        ("[{value: x, seed_type: objective}, {value: y}]", "seeds of two kinds"),
        ("[{name: x}]", "seed 1 has no text"),
        ("[]", "has no rows"),
    ],
)
def test_seeds_that_are_more_than_a_text_are_refused(
    seeds: str, error: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.prompt"
    path.write_text(f"seeds: {seeds}\n", encoding="utf-8")
    with pytest.raises(InputError, match=error):
        load_data(path)


def test_a_yaml_file_without_seeds_is_a_preset_still(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("name: a\n", encoding="utf-8")
    with pytest.raises(InputError, match="is no preset"):
        load_data(path)


NESTED = {"question": "how", "answer": {"text": ["so", "ja"], "n": 3}, "a.b": "dotted", "id": "x",
          "rejected": "no", "kinds": ["vem", "wob"], "parts": [{"title": "ka"}]}  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ("prompt=question,completion=answer.text.1", {"completion": "ja", "id": "x"}),
        ("prompt=question,completion=answer.n", {"completion": "3"}),
        ("prompt=a.b , completion = rejected", {"prompt": "dotted", "completion": "no"}),
        ("prompt=question,completion=rejected,id=", {"id": "1"}),
        ("prompt=question,completion=rejected,category=kinds", {"category": "vem+wob"}),
        ("prompt=question,context=rejected,completion=a.b", {"prompt": "how\n\nno"}),
        ("prompt=question", {"prompt": "how", "completion": ""}),
        ("text=question", {"prompt": "", "completion": "how"}),
        ("prompt=question,system=rejected,completion=a.b",
         {"prompt": (("system", "no"), ("user", "how"))}),
    ],
)  # fmt: skip
def test_columns_are_named_behind_a_file(
    columns: str, expected: Mapping[str, object], tmp_path: Path
) -> None:
    path = write(tmp_path / "a.jsonl", [NESTED])
    (example,) = load_data(f"{path}#{columns}").examples
    assert {name: getattr(example, name) for name in expected} == expected


def test_a_file_may_have_the_mark_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "run#1").mkdir()
    path = write(tmp_path / "run#1" / "a#2.jsonl", [NESTED])
    spec = f"{path}#prompt=question,completion=rejected"
    (example,) = load_data(spec).examples
    assert (example.prompt, example.completion) == ("how", "no")
    assert (file_of(spec), name_of(spec)) == (path, "a#2")


def test_what_stands_beside_is_found_in_other_letters_too(tmp_path: Path) -> None:
    row = {"Prompt": "how", "Completion": "so", "Split": "evaluation", " ID": 7}
    data = load_data(write(tmp_path / "a.jsonl", [row]))
    assert (data.examples[0].split, data.examples[0].id) == ("evaluation", "7")
    assert "split = Split" in said(data)


def test_columns_that_are_not_named_keep_their_names(tmp_path: Path) -> None:
    row = {"prompt": "how", "chosen": "so", "rejected": "no", "split": "evaluation"}
    path = write(tmp_path / "a.jsonl", [row])
    (example,) = load_data(f"{path}#completion=chosen").examples
    assert (example.prompt, example.completion, example.split) == ("how", "so", "evaluation")


@pytest.mark.parametrize(
    ("columns", "error"),
    [
        ("prompt=nothing", r"has no column 'nothing'[\s\S]*columns question, answer"),
        ("prompt=question,completion=answer.text", r"holds a list of texts, 2 here[\s\S]*COLUMN.0"),
        ("prompt=question,completion=answer.other", "row 1 has no 'completion'"),
        ("reply=question", "cannot read what the columns mean"),
        ("prompt=question,prompt=a", "again"),
        ("messages=question,prompt=a", "says all of a row"),
        ("text=question,completion=a", "says all of a row"),
        ("messages=question", "neither text nor a list of messages"),
        ("prompt=question,completion=rejected,context=answer", "context is no text"),
        ("prompt=question,completion=rejected,context=parts", "context is no text"),
        ("prompt=question,completion=rejected,context=answer.txt",
         r"has no column 'answer.txt', which was named for 'context'"),
        ("prompt=question,completion=rejected,key=answer.text.2", "no column 'answer.text.2'"),
    ],
)  # fmt: skip
def test_names_that_do_not_fit_are_refused(columns: str, error: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [NESTED])
    with pytest.raises(InputError, match=error):
        load_data(f"{path}#{columns}")


def test_presets_and_seeds_take_no_names(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SEEDS, encoding="utf-8")
    for spec in ("advbench", "advbench@x:y", str(tmp_path / "s.yaml"), "a.txt"):
        assert not takes_columns(spec)
    for spec in ("a.jsonl", "hub:a/b@x:train"):
        assert takes_columns(spec)
        assert not takes_columns(f"{spec}#prompt=question")
    with pytest.raises(InputError, match="a preset says itself"):
        load_data("advbench#prompt=question")
    with pytest.raises(InputError, match="seeds have the columns"):
        load_data(f"{tmp_path / 's.yaml'}#prompt=value")


def test_a_file_with_the_mark_in_its_name_is_that_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a#b=c.jsonl", [{"prompt": "how", "completion": "so"}])
    assert load_data(path).examples[0].prompt == "how"
    assert name_of("here/a.jsonl#prompt=b.c/d") == "a"


def test_examples_are_rendered_with_what_is_scored_apart(tmp_path: Path) -> None:
    rows = [{"prompt": f"w{n} w2", "completion": "w5 w6 w7"} for n in range(9)]
    data = load_data(write(tmp_path / "a.jsonl", rows))
    chat = list(render_some(data, 3, View(tiny_tokenizer(), "chat", skip=1)))
    assert [row.id for row in chat] == ["1", "5", "9"]
    assert [row.scored.split() for row in chat] == [["w6", "w7"]] * 3
    assert all(row.before.split()[-1] == "w5" for row in chat)
    assert "w4 w2" in chat[1].before
    (short,) = render_some(data, 1, View(tiny_tokenizer(), "raw", skip=3))
    assert "has no token to score" in short.why
    (plain,) = render_some(data, 1, View(None, "raw"))
    assert (plain.before, plain.scored) == ("w0 w2\n", "w5 w6 w7")


def test_rows_that_score_nothing_are_rendered_too() -> None:
    bare = Example("x", "w1 w2", "")
    text = Example("y", "", "w3 w4")
    data = load_data_of(bare, text)
    asked, whole = render_some(data, 2, View(tiny_tokenizer(), "chat"))
    assert asked.why == "the row has no completion"
    assert "w1 w2" in asked.before
    assert whole.scored.split()[-1] == "w4"


def load_data_of(*examples: Example) -> Any:
    from resect.data.load import BehaviourSet

    return BehaviourSet("memory", examples, "")


def test_what_stands_beside_our_columns_in_other_letters_counts_and_is_said(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"ask {n}", "completion": f"say {n}", "Split": half, "Category": "looms"}
        for n, half in enumerate(("calibration", "evaluation"))
    ]
    data = load_data(str(write(tmp_path / "a.jsonl", rows)))
    assert [example.split for example in data.examples] == ["calibration", "evaluation"]
    assert {example.category for example in data.examples} == {"looms"}
    assert said(data) == "columns: category = Category; split = Split"
    # Two of one name leave it open, and our own spelling wins.
    for more, split, line in (
        ({"SPLIT": "x"}, "", "columns: category = Category; not used: Split, SPLIT"),
        ({"split": "test"}, "test", "columns: category = Category; not used: Split"),
    ):
        data = load_data(str(write(tmp_path / f"b{split}.jsonl", [row | more for row in rows])))
        assert {example.split for example in data.examples} == {split}
        assert said(data) == line
