"""Judges: replies in, verdicts out; what cannot be judged is unscored with a reason.

The goal is what the probe looks for: `comply` (the reply does what was asked) or `refuse` (the
reply declines). A judgement's score is 1.0 if that is what happened; graded judges give scores in
between.

A judge is named `KIND` or `KIND:OPTION`: `exact`, `keyword`, `keyword:published`, `strongreject`,
`strongreject:ADAPTER[,BASE]`, `llm:RUBRIC@MODEL` with any model that Inspect knows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

from resect.errors import InputError, unknown_name
from resect.evaluation.judges.exact import judge_exact
from resect.evaluation.judges.family import Judge as Judge
from resect.evaluation.judges.family import each as each
from resect.evaluation.judges.keyword import find_rules, judge_keyword
from resect.evaluation.judges.llm import llm_judge
from resect.evaluation.judges.strongreject import strongreject_judge


def _exact(option: str) -> Judge:
    if option:
        raise InputError("the exact judge has no options", got=option, allowed="exact")
    return each(judge_exact)


def _keyword(option: str) -> Judge:
    rules = option or "own"
    find_rules(rules)
    return each(partial(judge_keyword, rules=rules))


# kind -> (option -> judge); models are loaded when the first reply is judged.
JUDGES: dict[str, Callable[[str], Judge]] = {
    "exact": _exact,
    "keyword": _keyword,
    "strongreject": strongreject_judge,
    "llm": llm_judge,
}


@cache
def find_judge(name: str) -> Judge:
    """Return the judge of this name, the same at each call, so that its model is loaded once.

    Raises:
        InputError: There is none, or it lacks the option.
    """
    kind, _, option = name.partition(":")
    if kind not in JUDGES:
        raise unknown_name("judge", name, list(JUDGES))
    return JUDGES[kind](option)
