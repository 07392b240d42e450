"""How many questions a budget of utility needs, from what the intact model answers of them.

A cut that costs nothing still has an interval. With n questions that are tested, of which the
intact model answers the share a, the upper bound of the relative drop is that of one more question,
answered before and not after (`resect.stats.resample`):

    added / ((1 - added) a + added)      added = 1 - .025^(1/n), the beta(1, n) quantile

The least n that keeps it within the budget is the least that can show anything; where a cut changes
some answers it takes more. Halves are dealt by category and a cut is tested on one of them, so that
a file needs twice as many.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from resect.stats import LEVEL, normalised
from resect.studies.design import Guard
from resect.studies.halves import PromptOf, deal
from resect.studies.strata import LEAST_PROMPTS

# Of a model that was not asked yet.
ASSUMED_ACCURACY = 0.8


def questions_for(accuracy: float, budget: float) -> int | None:
    """Return the least number of tested questions with which a cut that costs nothing can pass.

    Args:
        accuracy: Share that the intact model answers, in [0, 1].
        budget: Largest relative drop, in [0, 1].

    Returns:
        None if no number is enough: nothing is answered, or nothing may be lost.
    """
    if accuracy <= 0 or budget <= 0:
        return None
    if budget >= 1:
        return 1
    # The largest weight of an added question at which the drop is still within the budget.
    most = budget * accuracy / (1 - budget + budget * accuracy)
    return math.ceil(math.log((1 - LEVEL) / 2) / math.log1p(-most))


@dataclass(frozen=True)
class Needed:
    """How many questions a set of utility has, and how many the budget needs.

    Attributes:
        accuracy: Share that the intact model answers.
        known: Whether it was measured; it is assumed otherwise.
        budget: Largest relative drop in the mean.
        worst: Largest relative drop of a task.
        whole: Different questions that are needed, both halves together; None if none are enough.
        task: The same of each task.
        tested: Different questions that there are on the half that is tested.
        tasks: The same of each task that has enough of them to be one.
    """

    accuracy: float
    known: bool
    budget: float
    worst: float
    whole: int | None
    task: int | None
    tested: int
    tasks: dict[str, int]

    @property
    def missing(self) -> int | None:
        """How many more questions are needed; None if none are enough."""
        if self.whole is None or self.task is None:
            return None
        short = sum(max(0, self.task // 2 - count) for count in self.tasks.values())
        return 2 * max(short, self.whole // 2 - self.tested)

    def __str__(self) -> str:
        """Say what is needed, what is given and what is missing."""
        source = "" if self.known else ", which is assumed"
        begin = f"utility: the intact model answers {100 * self.accuracy:.3g} %{source}; "
        if self.whole is None or self.task is None:
            return f"{begin}no number of questions shows that a cut costs at most {self._budget}"
        tasks = len(self.tasks)
        said = (
            f"{begin}to show that a cut costs at most {self._budget} takes at least "
            f"{self.whole:,} different questions, and {self.task:,} of each task for at most "
            f"{100 * self.worst:g} % of any, half of them for the test; "
            f"there are about {2 * self.tested:,} in {tasks} task{'s' * (tasks > 1)}: "
        )
        if not self.missing:
            return f"{said}enough"
        return f"{said}{self.missing:,} are missing, without which no verdict can be supported"

    @property
    def _budget(self) -> str:
        return f"{100 * self.budget:g} %"


def needed(
    questions: Sequence[PromptOf],
    budget: float,
    guard: Guard,
    *,
    alike: float,
    accuracy: float | None = None,
) -> Needed:
    """Return what a set of utility needs.

    Args:
        questions: Category and text of each row that is asked.
        budget: Largest relative drop of utility, in the mean over tasks.
        guard: What else a cut may cost.
        alike: When prompts count as one (`evaluation.alike`).
        accuracy: Of the intact model; None assumes `ASSUMED_ACCURACY`.
    """
    rows = tuple(PromptOf(row.category, normalised(row.text)) for row in questions)
    groups: dict[str, set[str]] = {}
    for row, place in zip(rows, deal(rows, alike), strict=True):
        if place.half == "test":
            groups.setdefault(row.category, set()).add(place.group)
    given = {name: len(members) for name, members in sorted(groups.items())}
    # The guard speaks of tasks of so many questions; where there is none, of all as one.
    tasks = {name: count for name, count in given.items() if count >= LEAST_PROMPTS}
    worst = max(budget, guard.worst_task)
    share = ASSUMED_ACCURACY if accuracy is None else accuracy
    whole, task = (questions_for(share, drop) for drop in (budget, worst))
    return Needed(
        accuracy=share,
        known=accuracy is not None,
        budget=budget,
        worst=worst,
        whole=None if whole is None else 2 * whole,
        task=None if task is None else 2 * task,
        tested=sum(given.values()),
        tasks=tasks or {"": sum(given.values())},
    )
