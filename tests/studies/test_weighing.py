"""The verdict ladder: its truth table."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from resect.records import Interval, VerdictWord
from resect.studies.weighing import (
    Condition,
    Weighed,
    beyond_chance,
    estimate,
    weakest,
    weigh,
)

NAN = math.nan
ROWS: list[tuple[str, tuple[float | None, float | None, float | None], VerdictWord]] = [
    # threshold 0.5; (value, low, high)
    ("at_least", (0.6, 0.5, 0.7), "supported"),
    ("at_least", (0.6, 0.4, 0.7), "inconclusive"),
    ("at_least", (0.5, 0.4, 0.7), "inconclusive"),
    ("at_least", (0.4, 0.3, 0.6), "not supported"),
    ("at_least", (0.4, 0.3, 0.45), "not supported"),
    ("above", (0.6, 0.51, 0.7), "supported"),
    ("above", (0.6, 0.5, 0.7), "inconclusive"),
    ("above", (0.5, 0.5, 0.5), "not supported"),
    ("at_most", (0.4, 0.3, 0.5), "supported"),
    ("at_most", (0.4, 0.3, 0.6), "inconclusive"),
    ("at_most", (0.6, 0.4, 0.7), "not supported"),
    ("below", (0.4, 0.3, 0.49), "supported"),
    ("below", (0.4, 0.3, 0.5), "inconclusive"),
    ("below", (0.5, 0.4, 0.6), "not supported"),
    # No estimate, or no bound that faces the threshold: nothing to weigh.
    ("at_least", (None, None, None), "not measurable"),
    ("at_least", (NAN, NAN, NAN), "not measurable"),
    ("at_least", (0.9, None, None), "not measurable"),
    ("at_least", (0.1, None, None), "not measurable"),
    ("at_least", (0.9, NAN, 1.0), "not measurable"),
    ("at_most", (0.1, 0.0, None), "not measurable"),
    ("at_most", (0.1, None, 0.2), "supported"),
    ("below", (NAN, 0.0, 0.2), "not measurable"),
]
CONDITIONS: dict[str, Callable[[Interval], Condition]] = {
    "at_least": lambda interval: Condition(interval, at_least=0.5),
    "above": lambda interval: Condition(interval, above=0.5),
    "at_most": lambda interval: Condition(interval, at_most=0.5),
    "below": lambda interval: Condition(interval, below=0.5),
}
MEETS = Condition(Interval("harm", 0.9, 0.8, 1.0), at_least=0.8)
CROSSES = Condition(Interval("utility", 0.04, 0.0, 0.06), at_most=0.05, name="cost")
MISSES = Condition(Interval("random", 0.2, 0.1, 0.3), at_most=0.1)
UNKNOWN = Condition(Interval("likelihood", None), above=0)


@pytest.mark.parametrize(("threshold", "bounds", "verdict"), ROWS)
def test_truth_table(
    threshold: str, bounds: tuple[float | None, float | None, float | None], verdict: VerdictWord
) -> None:
    condition = CONDITIONS[threshold](Interval("rate", *bounds))
    assert weigh(condition, supported="Yes.").verdict == verdict


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ([MEETS], Weighed("supported", "Yes.")),
        ([MEETS, MEETS], Weighed("supported", "Yes.")),
        (
            [MEETS, CROSSES],
            Weighed("inconclusive", "An interval crosses its threshold: cost."),
        ),
        ([CROSSES, MISSES], Weighed("not supported", "The threshold is missed: random.")),
        (
            [MISSES, MEETS, MISSES],
            Weighed("not supported", "The threshold is missed: random, random."),
        ),
        (
            [MEETS, MISSES, UNKNOWN],
            Weighed("not measurable", "There is no interval of: likelihood."),
        ),
    ],
)
def test_several_conditions_must_all_hold(conditions: list[Condition], expected: Weighed) -> None:
    weighed = weigh(*conditions, supported="Yes.")
    assert weighed[:2] == expected[:2]
    assert [r.state for r in weighed.requirements] == [c.state for c in conditions]


def test_what_cannot_be_measured_is_weighed_by_nothing() -> None:
    assert weigh(MEETS, supported="Yes.", silent="No harm.")[:2] == ("not measurable", "No harm.")
    assert weigh(MISSES, supported="Yes.", silent="No harm.")[:2] == ("not measurable", "No harm.")


def test_a_reason_is_the_sentence_of_the_first_that_decides() -> None:
    bite = Condition(estimate("bite", 0.1), at_least=0.5, misses="It does not bite.")
    gap = Condition(Interval("{x}", -0.1, -0.2, 0.1), above=0, misses="Not above {names}.")
    assert weigh(bite, gap, supported="").reason == "It does not bite."
    # Names of users may hold braces.
    assert weigh(gap, bite, supported="").reason == "Not above {x}."


def test_the_weakest_of_several_verdicts() -> None:
    assert weakest(["not supported", "inconclusive", "inconclusive", "supported"]) == 0
    assert weakest(["supported", "not supported", "not measurable"]) == 2


def test_an_overlap_is_weighed_by_its_test() -> None:
    def verdict(share: float, p: float) -> VerdictWord:
        overlap = beyond_chance("overlap", share, 0.1, p=p, level=0.01)
        return weigh(Condition(overlap, above=0.1), supported="").verdict

    assert verdict(0.3, 0.001) == "supported"
    assert verdict(0.3, 0.01) == "inconclusive"
    assert verdict(0.1, 1.0) == "not supported"


def test_a_condition_has_one_threshold() -> None:
    with pytest.raises(ValueError, match="exactly one threshold"):
        Condition(Interval("rate", 0.5))
    with pytest.raises(ValueError, match="exactly one threshold"):
        Condition(Interval("rate", 0.5), at_least=0, at_most=1)
