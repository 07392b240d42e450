"""A file that repeats its questions: the interval is that of the questions."""

from __future__ import annotations

import pytest

from resect.evaluation.judging import Answer
from resect.evaluation.probes import find_probe
from resect.evaluation.rates import Rate, summarise
from resect.records import Judgement, Reply


def answers(repeats: int, hits: int = 4, samples: int = 1) -> list[Answer]:
    """Return answers to eight questions, each so many times in the file; the first ones hit."""
    return [
        Answer(
            Reply(
                example_id=f"{copy}-{number}",
                probe="generation",
                attack="none",
                category="harm",
                # Case and white space make no other question.
                prompt=f"Question  {number}" if copy % 2 else f"question {number}",
                prefix="",
                text="reply",
                sample=sample,
            ),
            find_probe("generation"),
            Judgement("exact", "exact", float(number < hits)),
        )
        for copy in range(repeats)
        for number in range(8)
        for sample in range(samples)
    ]


def rate(row: Rate) -> tuple[float | None, ...]:
    return row["rate"], row["low"], row["high"]


def drop(row: Rate) -> tuple[float | None, ...]:
    return row["drop"], row["drop_low"], row["drop_high"]


@pytest.mark.parametrize("samples", [1, 3])
def test_forty_copies_of_eight_questions_say_as_much_as_eight(samples: int) -> None:
    once = summarise("exact", {"intact": answers(1), "cut": answers(1, hits=1)})
    forty = summarise(
        "exact",
        {
            "intact": answers(40, samples=samples),
            "cut": answers(40, hits=1, samples=samples),
        },
    )
    assert [row["scored"] for row in forty] == [320 * samples] * 2
    for row, same in zip(once, forty, strict=True):
        assert rate(same) == pytest.approx(rate(row))
    assert drop(forty[1]) == pytest.approx(drop(once[1]))
    low, high = rate(forty[0])[1:]
    assert low is not None
    assert high is not None
    assert high - low > 0.6
