"""How many questions a budget needs: the formula is what the guard's bound does."""

from __future__ import annotations

import pytest

from resect.stats import Resampler, relative_drop
from resect.studies.design import Guard
from resect.studies.halves import PromptOf
from resect.studies.needed import Needed, needed, questions_for


def bound(questions: int, accuracy: float) -> float:
    """Return the upper bound of the drop by a cut that changes no answer."""
    right = round(accuracy * questions)
    scores = [1.0] * right + [0.0] * (questions - right)
    rate = Resampler("needed").rate({"": scores})
    high = relative_drop(rate, rate).interval("drop").high
    assert high is not None
    return high


@pytest.mark.parametrize("accuracy", [1.0, 0.8, 0.5])
@pytest.mark.parametrize("budget", [0.05, 0.1, 0.2])
def test_the_number_is_where_the_bound_meets_the_budget(accuracy: float, budget: float) -> None:
    count = questions_for(accuracy, budget)
    assert count is not None
    # The spread of the accuracy itself adds a little, which the formula leaves out.
    assert bound(count, accuracy) <= 1.1 * budget
    assert bound(round(0.8 * count), accuracy) > budget


def test_at_full_accuracy_it_is_exact() -> None:
    assert questions_for(1.0, 0.1) == 36
    assert bound(36, 1.0) <= 0.1 < bound(35, 1.0)


@pytest.mark.parametrize(("accuracy", "budget"), [(0.0, 0.05), (0.8, 0.0)])
def test_some_budgets_need_more_than_there_can_be(accuracy: float, budget: float) -> None:
    assert questions_for(accuracy, budget) is None
    assert "no number of questions" in str(of({"a": 40}, budget=budget, accuracy=accuracy))


def of(tasks: dict[str, int], *, budget: float = 0.05, accuracy: float | None = 1.0) -> Needed:
    """Return what so many questions of each task need; no two of them are alike."""
    rows = [
        PromptOf(task, f"alpha{task}{n} beta{task}{n}")
        for task, count in tasks.items()
        for n in range(count)
    ]
    return needed(rows, budget, Guard(), alike=0.5, accuracy=accuracy)


def test_what_is_missing_is_counted_by_task_and_as_a_whole() -> None:
    enough = of({"a": 74, "b": 74})
    assert (enough.whole, enough.task, enough.missing) == (144, 72, 0)
    assert str(enough).endswith("enough")
    # One task short of 12, and all together short of 20.
    assert of({"a": 64, "b": 60}).missing == 20
    assert of({"a": 200, "b": 60}).missing == 12
    assert "12 are missing" in str(of({"a": 200, "b": 60}))
    # Tasks that are too small to be one count together.
    small = of({f"t{n}": 4 for n in range(40)})
    assert list(small.tasks) == [""]
    assert small.missing == 0


def test_questions_that_say_the_same_count_once() -> None:
    rows = [PromptOf("", f"alpha{n % 8} beta{n % 8}") for n in range(160)]
    said = needed(rows, 0.05, Guard(), alike=0.5, accuracy=1.0)
    assert said.tested == 4


def test_an_accuracy_that_nobody_measured_is_called_assumed() -> None:
    assert "80 %, which is assumed" in str(of({"a": 400}, accuracy=None))
    assert "assumed" not in str(of({"a": 400}, accuracy=0.8))
