"""What a judge is: a function of many replies, in their order, to a judgement each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from resect.evaluation.probes import Goal
from resect.records import Judgement, Reply

JudgeOne = Callable[[Reply, Goal], Judgement]
# Many replies at once, since a judge that is a model works in batches.
Judge = Callable[[Sequence[Reply], Sequence[Goal]], list[Judgement]]


def each(judge: JudgeOne) -> Judge:
    """Return a judge of many replies from a judge of one."""

    def judge_many(replies: Sequence[Reply], goals: Sequence[Goal]) -> list[Judgement]:
        return [judge(reply, goal) for reply, goal in zip(replies, goals, strict=True)]

    return judge_many
