"""Behaviour sets: what loads, what is refused, and how examples become tokens."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from resect.data import check_disjoint, encode, encode_prompt, load_data
from resect.data.encode import text_ids
from resect.errors import InputError
from resect.records import Example

ROWS = [
    {"prompt": f"how {n}", "completion": f"so {n} it goes", "category": "ab"[n % 2]}
    for n in range(10)
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


class _Words:
    """A tokenizer of words: ids are lengths, which is enough to see what was put where."""

    chat_template = "{{ messages }}"
    bos_token_id: int | None = None

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        assert add_special_tokens is False
        return {"input_ids": [len(word) for word in text.split()]}

    def apply_chat_template(self, messages: Any, **options: Any) -> dict[str, list[int]] | str:
        opening: list[int] = []
        if options.get("tokenize") is False:
            *asked, answer = (turn["content"] for turn in messages)
            return " ".join(["b" * 100, *asked, "e" * 101, f"{answer} end"])
        if options.get("continue_final_message"):
            *messages, last = messages
            opening = self(last["content"], add_special_tokens=False)["input_ids"]
        else:
            assert options["add_generation_prompt"] is True
        words = " ".join(turn["content"] for turn in messages)
        ids = self(words, add_special_tokens=False)["input_ids"]
        return {"input_ids": [100, *ids, 101, *opening]}

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return " ".join(map(str, ids))


def tokenizer_of_words() -> Any:
    return _Words()


def test_three_file_formats_give_the_same_set(tmp_path: Path) -> None:
    import csv

    import pyarrow as pa
    import pyarrow.parquet as pq

    lines = write(tmp_path / "a.jsonl", ROWS)
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["prompt", "completion", "category"])
        writer.writeheader()
        writer.writerows(ROWS)
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    sets = [load_data(lines), load_data(tmp_path / "a.csv"), load_data(tmp_path / "a.parquet")]
    assert len({loaded.hash for loaded in sets}) == 1
    assert sets[0].examples == sets[1].examples == sets[2].examples
    assert sets[0].categories == ("a", "b")


def test_message_lists_are_read(tmp_path: Path) -> None:
    row = {
        "prompt": [{"role": "system", "content": "be"}, {"role": "user", "content": "how"}],
        "completion": [{"role": "assistant", "content": "so"}],
    }
    example = load_data(write(tmp_path / "m.jsonl", [row])).examples[0]
    assert example.prompt == (("system", "be"), ("user", "how"))
    assert example.completion == "so"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("\n\n", "has no rows"),
        ("{]", "line 1 is not valid JSON"),
        ("[1]", "line 1 is not an object"),
        ('{"prompt": "a"}', "row 1 has no 'completion'"),
        (r'{"prompt": "a \ud83d", "completion": "b"}', "line 1 holds half of a character"),
        (r'{"prompt": "a", "completion": "b", "key": ["\uDE00"]}', "half of a character"),
        ('{"prompt": "", "completion": "b"}', "row 1 has no 'prompt'"),
        ('{"prompt": 3, "completion": "b"}', "neither text nor a list of messages"),
        ('{"prompt": "a", "completion": [{"role": "user", "content": "x"}]}', "one turn of the"),
        (
            '{"id": 1, "prompt": "a", "completion": "b"}\n'
            '{"id": 1, "prompt": "c", "completion": "d"}',
            "two rows with one id",
        ),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        load_data(path)


def test_missing_file_and_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such data file"):
        load_data(tmp_path / "none.jsonl")
    (tmp_path / "x.xml").write_text("x", encoding="utf-8")
    with pytest.raises(InputError, match="unknown data format"):
        load_data(tmp_path / "x.xml")


@pytest.mark.parametrize(
    ("column", "key"),
    [
        ("word", {"aliases": ["word"], "match": "contains"}),
        (["word", "words"], {"aliases": ["word", "words"], "match": "contains"}),
        ({"accept": ["a word"]}, {"accept": ["a word"]}),
        ('{"aliases": ["x"]}', {"aliases": ["x"]}),
        ("{word}", {"aliases": ["{word}"], "match": "contains"}),
        ("", {}),
        (None, {}),
    ],
)
def test_answer_keys_may_be_plain_texts(column: Any, key: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    row = {"prompt": "p", "completion": "word", "key": column}
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    (example,) = load_data(path).examples
    assert example.key == key


def test_a_number_is_no_answer_key(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "p", "completion": "c", "key": 7}\n', encoding="utf-8")
    with pytest.raises(InputError, match="a text, a list of texts"):
        load_data(path)


def test_splits_categories_and_limits(tmp_path: Path) -> None:
    rows = [row | {"split": "calibration" if n < 6 else "evaluation"} for n, row in enumerate(ROWS)]
    data = load_data(write(tmp_path / "a.jsonl", rows))
    assert len(data.split("calibration")) == 6
    assert len(data.split("evaluation").category("a")) == 2
    with pytest.raises(InputError, match="no rows of split 'other'"):
        data.split("other")
    with pytest.raises(InputError, match="allowed: a, b"):
        data.category("c")
    drawn, again = data.limit(4, seed=1), data.limit(4, seed=1)
    assert drawn.examples == again.examples
    assert len(drawn) == 4
    assert drawn.examples != data.limit(4, seed=2).examples
    assert drawn.hash != data.hash


def test_a_shared_prompt_is_an_error(tmp_path: Path) -> None:
    calibration = load_data(write(tmp_path / "a.jsonl", ROWS[:3]))
    evaluation = load_data(write(tmp_path / "b.jsonl", ROWS[2:]))
    with pytest.raises(InputError, match=r"3 in .*a.jsonl, 1 in .*b.jsonl"):
        check_disjoint(calibration, evaluation)
    check_disjoint(calibration, load_data(write(tmp_path / "c.jsonl", ROWS[3:])))


def test_encoding_scores_the_response_after_skip() -> None:
    example = Example("x", "how is", "so it goes")
    raw = encode([example], tokenizer_of_words(), format="raw", skip=1)[0]
    assert raw.input_ids == (3, 2, 2, 2, 4)
    assert raw.first_scored == 3
    assert raw.scored_tokens == 2
    chat = encode([example], tokenizer_of_words(), format="chat")[0]
    assert chat.input_ids == (100, 3, 2, 101, 2, 2, 4)
    assert chat.first_scored == 4


def test_encoding_refuses_what_cannot_be_scored() -> None:
    example = Example("x7", "how is", "so it goes")
    with pytest.raises(InputError, match="'x7' has no token to score"):
        encode([example], tokenizer_of_words(), skip=3)
    with pytest.raises(InputError, match="'x7' is longer than the model's context"):
        encode([example], tokenizer_of_words(), max_length=6)
    plain = tokenizer_of_words()
    plain.chat_template = ""
    with pytest.raises(InputError, match="no chat template"):
        encode([example], plain, format="chat")


def test_prefill_opens_the_answer() -> None:
    example = Example("x", "how is", "so it goes")
    prompt = encode_prompt(example, tokenizer_of_words(), format="chat", prefix_tokens=2)
    assert prompt.ids == (100, 3, 2, 101, 1, 1)  # the words of the fake tokenizer's text "2 2"
    assert prompt.prefix == "2 2"
    fixed = encode_prompt(example, tokenizer_of_words(), format="raw", prefix_text="certainly")
    assert fixed.ids == (3, 2, 9)


def test_prefix_of_an_attack_is_never_scored(tmp_path: Path) -> None:
    row = {"prompt": "how is", "completion": "so it goes on", "prefix_tokens": 2}
    data = load_data(write(tmp_path / "p.jsonl", [row]))
    for skip, start in ((0, 4), (1, 4), (3, 5)):
        assert (
            encode(data.examples, tokenizer_of_words(), format="raw", skip=skip)[0].first_scored
            == start
        )
    assert data.hash != load_data(write(tmp_path / "q.jsonl", [row | {"prefix_tokens": 0}])).hash
    with pytest.raises(InputError, match="'prefix_tokens' is no count"):
        load_data(write(tmp_path / "r.jsonl", [row | {"prefix_tokens": -1}]))
    with pytest.raises(InputError, match="no token to score"):
        encode([replace(data.examples[0], prefix_tokens=4)], tokenizer_of_words(), format="raw")


def test_prompts_alone_are_read_where_they_are_enough(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [{"prompt": "how is"}])
    with pytest.raises(InputError, match="has no 'completion'"):
        load_data(path)
    data = load_data(path, prompts_only=True)
    assert data.examples[0].completion == ""
    with pytest.raises(InputError, match=r"no token to score[\s\S]*resect data collect"):
        encode(data.examples, tokenizer_of_words(), format="raw")


def test_texts_are_for_perplexity_alone(tmp_path: Path) -> None:
    texts = load_data(write(tmp_path / "t.jsonl", [{"text": "so it goes"}, {"text": "and on"}]))
    (tmp_path / "t.txt").write_text("so it\n\ngoes", encoding="utf-8")
    whole = load_data(tmp_path / "t.txt").examples
    assert [e.completion for e in whole] == ["so it\n\ngoes"]
    plain = tokenizer_of_words()
    assert text_ids(plain, texts.examples[0]) == [2, 2, 4]
    assert text_ids(plain, Example("x", "how is", "so")) == [3, 2, 2]
    plain.bos_token_id = 7
    assert text_ids(plain, texts.examples[1]) == [7, 3, 2]
    with pytest.raises(InputError, match="'1' is a text without a prompt"):
        encode(texts.examples, tokenizer_of_words(), format="raw")


def test_json_arrays_and_packed_lines_give_the_same_set(tmp_path: Path) -> None:
    lines = load_data(write(tmp_path / "a.jsonl", ROWS))
    (tmp_path / "a.json").write_text(json.dumps(ROWS), encoding="utf-8")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    assert load_data(tmp_path / "a.json").hash == lines.hash
    assert load_data(tmp_path / "a.jsonl.gz").hash == lines.hash
    (tmp_path / "b.json").write_text("{}", encoding="utf-8")
    (tmp_path / "b.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(InputError, match="is not an array of objects"):
        load_data(tmp_path / "b.json")
    with pytest.raises(InputError, match="cannot read"):
        load_data(tmp_path / "b.jsonl.gz")


def test_message_lists_in_parquet_are_read(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    turns = [{"role": "system", "content": "be"}, {"role": "user", "content": "how"}]
    row = {"prompt": turns, "completion": [{"role": "assistant", "content": "so"}]}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "m.parquet")
    example = load_data(tmp_path / "m.parquet").examples[0]
    assert example.prompt == (("system", "be"), ("user", "how"))
    assert example.completion == "so"


def test_csv_keeps_quoted_line_ends_and_names_broken_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        'prompt,completion\n"how\r\nis\u2028it, you",so\n', encoding="utf-8", newline=""
    )
    assert load_data(path).examples[0].prompt == "how\r\nis\u2028it, you"
    for broken in ("how,so,on", "how"):
        path.write_text(f"prompt,completion\na,b\n{broken}\n", encoding="utf-8")
        with pytest.raises(InputError, match="line 3 has another number of fields"):
            load_data(path)


def test_whole_characters_are_read_from_two_escapes(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(r'{"prompt": "a \ud83d\ude00", "completion": "\\ud83d"}', encoding="utf-8")
    (example,) = load_data(path).examples
    assert example.prompt == "a \U0001f600"
    assert example.completion == r"\ud83d"
    path = tmp_path / "rows.json"
    path.write_text(r'[{"prompt": "a", "completion": "\ud83d"}]', encoding="utf-8")
    with pytest.raises(InputError, match="row 1 holds half of a character"):
        load_data(path)


def test_rows_without_a_split_among_others_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "resect.data.load")
    path = tmp_path / "rows.jsonl"
    for splits, said in ((["calibration", None, ""], True), ([None, None], False), (["a"], False)):
        rows = [{"prompt": "a", "completion": "b", "split": split} for split in splits]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        caplog.clear()
        load_data(path)
        assert ("2 of 3 rows have no split" in caplog.text) == said
