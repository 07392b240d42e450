"""From intervals and thresholds to a verdict: the one ladder that every study uses.

A rule is one or more conditions, each an interval and a threshold. What decides is the bound that
faces the threshold: the lower one for "at least" and "above", the upper one for "at most" and
"below".

    not measurable    a condition has no estimate, or no bound that faces its threshold
    not supported     an estimate misses its threshold
    inconclusive      every estimate meets its threshold, a bound crosses it
    supported         every bound meets its threshold

The first line that fits is the verdict. `not measurable` stands first, so that what could not be
measured is never said to have failed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from resect.records import Interval, Requirement, Sense, State, VerdictWord
from resect.stats import Sample

# From what says least to what says most.
STRENGTH: tuple[VerdictWord, ...] = (
    "not measurable",
    "not supported",
    "inconclusive",
    "supported",
)


class _Threshold(NamedTuple):
    """How an interval is compared, and with what."""

    sense: Sense
    value: float


@dataclass(frozen=True)
class Condition:
    """One condition of a rule: an interval and exactly one threshold.

    Attributes:
        interval: What was measured.
        at_least: The lower bound must reach this.
        above: The lower bound must be above this.
        at_most: The upper bound must not exceed this.
        below: The upper bound must be below this.
        name: How a reason calls it; "" for the interval's name.
        misses: The reason if the estimate misses; `{names}` lists all that share this sentence.
        crosses: The reason if the estimate meets the threshold and the bound does not.
        over_models: Whether the models of a run have a value each; false for what is one number of
            them all, such as a p-value.
    """

    interval: Interval
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    name: str = ""
    misses: str = "The threshold is missed: {names}."
    crosses: str = "An interval crosses its threshold: {names}."
    over_models: bool = True

    def __post_init__(self) -> None:
        """Refuse a condition without a threshold, or with several."""
        if len(self._thresholds) != 1:
            raise ValueError(f"condition {self.interval.name!r} needs exactly one threshold")

    @property
    def _thresholds(self) -> list[_Threshold]:
        thresholds: dict[Sense, float | None] = {
            "at least": self.at_least,
            "above": self.above,
            "at most": self.at_most,
            "below": self.below,
        }
        return [_Threshold(s, value) for s, value in thresholds.items() if value is not None]

    @property
    def state(self) -> State:
        """How the estimate and the bound that faces the threshold lie to it."""
        return state_of(self.interval, *self._thresholds[0])

    @property
    def requirement(self) -> Requirement:
        """The condition as a claim keeps it."""
        sense, value = self._thresholds[0]
        return Requirement(self.interval, sense, value, self.state, self.over_models)


def state_of(interval: Interval, sense: Sense, threshold: float) -> State:
    """Return how an estimate and the bound that faces a threshold lie to it."""
    bound = interval.low if sense in ("at least", "above") else interval.high
    if interval.value is None or bound is None:
        return "unknown"
    if math.isnan(interval.value) or math.isnan(bound):
        return "unknown"
    if not _meets(interval.value, sense, threshold):
        return "misses"
    return "meets" if _meets(bound, sense, threshold) else "crosses"


def _meets(value: float, sense: Sense, threshold: float) -> bool:
    if sense == "at least":
        return value >= threshold
    if sense == "above":
        return value > threshold
    return value <= threshold if sense == "at most" else value < threshold


class Weighed(NamedTuple):
    """A verdict, why it is that in one sentence, and what was weighed."""

    verdict: VerdictWord
    reason: str
    requirements: tuple[Requirement, ...] = ()


def weigh(*conditions: Condition, supported: str, silent: str = "") -> Weighed:
    """Return the verdict on conditions that must all hold.

    Where several conditions decide, the reason is the sentence of the first one.

    Args:
        conditions: One or more, the most telling first.
        supported: The reason if all hold.
        silent: Why nothing can be weighed whatever the conditions say, "" if something can.
    """
    requirements = tuple(condition.requirement for condition in conditions)
    if silent:
        return Weighed("not measurable", silent, requirements)
    if unknown := _in_state(conditions, "unknown"):
        reason = f"There is no interval of: {_names(unknown)}."
        return Weighed("not measurable", reason, requirements)
    if missing := _in_state(conditions, "misses"):
        sentence = missing[0].misses
        sharing = [condition for condition in missing if condition.misses == sentence]
        reason = sentence.replace("{names}", _names(sharing))
        return Weighed("not supported", reason, requirements)
    if crossing := _in_state(conditions, "crosses"):
        sentence = crossing[0].crosses
        sharing = [condition for condition in crossing if condition.crosses == sentence]
        reason = sentence.replace("{names}", _names(sharing))
        return Weighed("inconclusive", reason, requirements)
    return Weighed("supported", supported, requirements)


def _in_state(conditions: Sequence[Condition], state: State) -> list[Condition]:
    return [condition for condition in conditions if condition.state == state]


def _names(conditions: Sequence[Condition]) -> str:
    return ", ".join(condition.name or condition.interval.name for condition in conditions)


def weakest(verdicts: Sequence[VerdictWord]) -> int:
    """Return the position of the verdict of a rule that all of several must meet."""
    return min(range(len(verdicts)), key=lambda index: (STRENGTH.index(verdicts[index]), index))


def ladder(states: Sequence[State]) -> VerdictWord:
    """Return the verdict on a rule whose conditions are in these states."""
    if "unknown" in states or not states:
        return "not measurable"
    if "misses" in states:
        return "not supported"
    return "inconclusive" if "crosses" in states else "supported"


def estimate(name: str, value: float | None) -> Interval:
    """Return a value that a rule weighs by itself, as an interval without width."""
    return Interval(name, value, value, value)


def beyond_chance(name: str, share: float, chance: float, *, p: float, level: float) -> Interval:
    """Return an overlap whose lower bound is above chance if, and only if, its test says so.

    Args:
        name: Of the interval.
        share: The overlap.
        chance: The overlap that is expected by chance.
        p: The p-value of the overlap.
        level: The overlap counts as more than chance if `p` is below this.
    """
    return Interval(name, share, share if p < level else min(share, chance), share)


def minus(sample: Sample, baseline: Sample, name: str) -> Interval:
    """Return the paired difference of two samples as an interval."""
    return (sample - baseline).interval(name)


def percent(value: float | None) -> str:
    """Return a fraction as a percentage for sentences."""
    return "unknown" if value is None or math.isnan(value) else f"{100 * value:.3g} %"
