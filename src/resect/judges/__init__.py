"""Judges: a reply in, a verdict out; what cannot be judged is unscored with a reason.

`asked` says what the probe looks for: `comply` (the reply does what was asked) or `refuse` (the
reply declines). A verdict's score is 1.0 if that is what happened.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from resect.errors import unknown_name
from resect.judges.exact import judge_exact
from resect.judges.keyword import judge_keyword
from resect.records import Reply, Verdict

Asked = Literal["comply", "refuse"]
Judge = Callable[[Reply, Asked], Verdict]

JUDGES: dict[str, Judge] = {"exact": judge_exact, "keyword": judge_keyword}


def find_judge(name: str) -> Judge:
    """Return the judge of this name.

    Raises:
        InputError: There is none.
    """
    if name not in JUDGES:
        raise unknown_name("judge", name, list(JUDGES))
    return JUDGES[name]
