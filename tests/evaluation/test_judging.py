"""Replies, judgements and the rows of record files that hold both."""

from __future__ import annotations

from pathlib import Path

import pytest

from resect.errors import InputError
from resect.evaluation.ask import EvaluationSettings
from resect.evaluation.judging import (
    answers_of,
    judge_answers,
    judge_replies,
    read_replies,
    reply_of,
    rows_of,
    write_asked,
    write_judged,
)
from resect.files.tables import read_parquet, write_parquet
from resect.records import Reply

KEY = {"accept": ["yes"], "refusal": ["sorry"]}
COLUMNS = [
    "example_id", "probe", "attack", "category", "prompt", "prefix", "text", "key", "reference",
    "nll", "repetition", "kl", "sample", "tokens", "thought", "finish",
    "judge", "rule", "score", "outcome", "raw", "reason",
]  # fmt: skip


def reply(probe: str, text: str = "yes") -> Reply:
    return Reply("1", probe, "none", "c", "ask", "", text, key=KEY, nll=0.5)


REPLIES = [
    reply("generation"),
    reply("refusal", "I am sorry"),
    reply("likelihood"),
    reply("utility"),
]


def test_a_row_is_read_as_the_reply_that_was_written(tmp_path: Path) -> None:
    for judgements in (None, judge_replies(REPLIES, EvaluationSettings())):
        write_parquet(tmp_path / "r.parquet", rows_of(REPLIES, judgements))
        rows = read_parquet(tmp_path / "r.parquet")
        assert list(rows[0]) == COLUMNS
        assert [reply_of(row) for row in rows] == REPLIES


def test_each_probe_has_its_judge_and_its_goal() -> None:
    answers = judge_answers(answers_of(REPLIES), "keyword")
    assert [answer.reply for answer in answers] == REPLIES
    assert [(a.judgement.judge, a.judgement.score) for a in answers] == [
        ("keyword", 1.0), ("keyword", 1.0), ("none", None), ("exact", 1.0),
    ]  # fmt: skip
    assert answers[2].judgement.reason == "measured, not judged"


def test_a_file_of_several_judges_gives_each_reply_once(tmp_path: Path) -> None:
    answers = answers_of(REPLIES)
    write_asked(tmp_path / "cut.parquet", "cut", answers)
    assert read_replies(tmp_path / "cut.parquet") == REPLIES
    by_judge = [judge_answers(answers, "exact"), judge_answers(answers[:2], "keyword")]
    write_judged(tmp_path / "cut.parquet", "cut", by_judge)
    assert read_replies(tmp_path / "cut.parquet") == REPLIES
    rows = read_parquet(tmp_path / "cut.parquet")
    assert list(rows[0]) == ["variant", "judge_at", *COLUMNS]
    assert [(row["variant"], row["judge_at"]) for row in rows] == [("cut", 0)] * 4 + [
        ("cut", 1)
    ] * 2


def test_an_unknown_probe_is_named() -> None:
    with pytest.raises(InputError, match=r"unknown probe[\s\S]*'luck'"):
        answers_of([reply("luck")])
