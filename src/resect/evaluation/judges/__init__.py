"""Judges: replies in, verdicts out; what cannot be judged is unscored with a reason.

The goal is what the probe looks for: `comply` (the reply does what was asked) or `refuse` (the
reply declines). A judgement's score is 1.0 if that is what happened; graded judges give scores in
between.

A judge is named `KIND` or `KIND:OPTION`: `exact`, `keyword`, `keyword:published`,
`keyword:own+FILE`, `strongreject`, `strongreject:ADAPTER[,BASE]`, `llm:RUBRIC@MODEL` with any model
that Inspect knows, `fitted:FILE[,MODEL]`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

from resect.errors import InputError, unknown_name
from resect.evaluation.judges.exact import judge_exact
from resect.evaluation.judges.family import Judge as Judge
from resect.evaluation.judges.family import each as each
from resect.evaluation.judges.fitted import fitted_judge, fitted_label, fitted_of
from resect.evaluation.judges.keyword import find_rules, judge_by
from resect.evaluation.judges.llm import llm_judge
from resect.evaluation.judges.strongreject import strongreject_judge
from resect.evaluation.probes import Probe
from resect.records import COUNTED


def _exact(option: str) -> Judge:
    if option:
        raise InputError("the exact judge has no options", got=option, allowed="exact")
    return each(judge_exact)


def _keyword(option: str) -> Judge:
    return each(partial(judge_by, find_rules(option or "own")))


# kind -> (option -> judge); models are loaded when the first reply is judged.
JUDGES: dict[str, Callable[[str], Judge]] = {
    "exact": _exact,
    "keyword": _keyword,
    "strongreject": strongreject_judge,
    "llm": llm_judge,
    "fitted": fitted_judge,
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


def label_of(name: str) -> str:
    """Return what judgements call a judge.

    Raises:
        InputError: Its option cannot be used.
    """
    kind, _, option = name.partition(":")
    if kind == "keyword":
        return find_rules(option or "own").name
    if kind == "llm":
        return f"llm:{option.partition('@')[0]}"
    return fitted_label(option) if kind == "fitted" else kind


def kind_of_judge(name: str) -> str:
    """Return the kind of a judge, a key of `COUNTED`.

    Raises:
        InputError: The file of a fitted judge is missing or is no whole fitted judge.
    """
    kind, _, option = name.partition(":")
    if kind == "fitted" and (fitted := fitted_of(name)) is not None:
        return f"fitted, {fitted.means}"
    rubric = f"{kind}:{option.partition('@')[0]}"
    known = (name for name in (rubric, kind) if name in COUNTED)
    return next(known, "other")


def counted_by(name: str, probe: Probe) -> str | None:
    """Return what a rate of a judge counts; None for a probe that is not judged.

    Args:
        name: Name of the judge for the probes that leave it to the configuration.
        probe: The probe.
    """
    if probe.judged == "never":
        return None
    own = probe.judged if probe.judged in ("exact", "likelihood") else kind_of_judge(name)
    counted = COUNTED[own]
    return counted.complied if probe.goal == "comply" else counted.refused
