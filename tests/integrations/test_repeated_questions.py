"""A question that is asked forty times is one question, in the lm-eval door too."""

from __future__ import annotations

import pytest

from resect.integrations.lm_eval import Measure, TaskRun, compare
from resect.records import Judgement, Reply


def task_run(prompts: list[str], hits: list[float]) -> TaskRun:
    replies = tuple(
        Reply(f"t/{number}", "task", "none", "t", prompt, "", "so")
        for number, prompt in enumerate(prompts)
    )
    verdicts = tuple(Judgement("lm-eval", "acc,none", hit) for hit in hits)
    return TaskRun(replies, verdicts, {Measure("t", "acc"): True}, {}, {})


QUESTIONS = [f"Ask {number}?" for number in range(8)]
HITS = [float(number < 4) for number in range(8)]


def bounds(prompts: list[str], hits: list[float]) -> list[float]:
    (row,) = compare(task_run(prompts, hits), task_run(prompts, [1 - hit for hit in hits]))
    assert row["intact"] == 0.5
    return [float(str(row[f"{name}_{end}"])) for name in ("intact", "difference")
            for end in ("low", "high")]  # fmt: skip


def test_forty_times_eight_questions_are_eight() -> None:
    once = bounds(QUESTIONS, HITS)
    # Another case, other blanks: the same question.
    forty = [
        question.upper() if time % 2 else f" {question}\n"
        for time in range(40)
        for question in QUESTIONS
    ]
    assert bounds(forty, HITS * 40) == pytest.approx(once, abs=0.02)
    assert once[1] - once[0] > 0.6
    (row,) = compare(task_run(forty, HITS * 40), None)
    assert (row["items"], row["questions"]) == (320, 8)


def test_items_without_a_prompt_stand_for_themselves() -> None:
    (row,) = compare(task_run([""] * 8, HITS), None)
    assert row["questions"] == 8
