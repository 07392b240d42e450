"""Judges: replies in, verdicts out; what cannot be judged is unscored with a reason.

`asked` says what the probe looks for: `comply` (the reply does what was asked) or `refuse` (the
reply declines). A verdict's score is 1.0 if that is what happened, graded judges in between.

A judge is named `KIND` or `KIND:OPTION`: `exact`, `keyword`, `keyword:published`, `strongreject`,
`strongreject:ADAPTER[,BASE]`, `llm:RUBRIC@MODEL` with any model that Inspect knows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Literal

from resect.errors import InputError, unknown_name
from resect.evaluation.judges.exact import judge_exact
from resect.evaluation.judges.keyword import find_rules, judge_keyword
from resect.evaluation.judges.llm import llm_judge
from resect.evaluation.judges.strongreject import strongreject_judge
from resect.records import Judgement, Reply

Asked = Literal["comply", "refuse"]
JudgeOne = Callable[[Reply, Asked], Judgement]


# Judges many replies at once, in their order, since a judge that is a model works in batches.
Judge = Callable[[Sequence[Reply], Sequence[Asked]], list[Judgement]]


def each(judge: JudgeOne) -> Judge:
    """Return a judge of many replies from a judge of one."""

    def judge_many(replies: Sequence[Reply], asked: Sequence[Asked]) -> list[Judgement]:
        return [judge(reply, what) for reply, what in zip(replies, asked, strict=True)]

    return judge_many


def _exact(option: str) -> Judge:
    if option:
        raise InputError("the exact judge has no options", got=option, allowed="exact")
    return each(judge_exact)


def _keyword(option: str) -> Judge:
    find_rules(option or "own")
    return each(partial(judge_keyword, rules=option or "own"))


# kind -> (option -> judge); models are loaded when the first reply is judged.
JUDGES: dict[str, Callable[[str], Judge]] = {
    "exact": _exact,
    "keyword": _keyword,
    "strongreject": strongreject_judge,
    "llm": llm_judge,
}


@cache
def find_judge(name: str) -> Judge:
    """Return the judge of this name; asked again, the same, so that its model is loaded once.

    Raises:
        InputError: There is none, or it lacks the option.
    """
    kind, _, option = name.partition(":")
    if kind not in JUDGES:
        raise unknown_name("judge", name, list(JUDGES))
    return JUDGES[kind](option)
