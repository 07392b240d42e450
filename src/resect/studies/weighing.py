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
from typing import Literal, NamedTuple

from resect.records import Interval, VerdictWord
from resect.stats import Sample

State = Literal["unknown", "misses", "crosses", "meets"]

# From what says least to what says most.
STRENGTH: tuple[VerdictWord, ...] = (
    "not measurable",
    "not supported",
    "inconclusive",
    "supported",
)


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
    """

    interval: Interval
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    name: str = ""
    misses: str = "The threshold is missed: {names}."
    crosses: str = "An interval crosses its threshold: {names}."

    def __post_init__(self) -> None:
        """Refuse a condition without a threshold, or with several."""
        thresholds = (self.at_least, self.above, self.at_most, self.below)
        if sum(threshold is not None for threshold in thresholds) != 1:
            raise ValueError(f"condition {self.interval.name!r} needs exactly one threshold")

    @property
    def state(self) -> State:
        """How the estimate and the bound that faces the threshold lie to it."""
        rising = self.at_least is not None or self.above is not None
        value, bound = self.interval.value, self.interval.low if rising else self.interval.high
        if value is None or bound is None or math.isnan(value) or math.isnan(bound):
            return "unknown"
        if not self._meets(value):
            return "misses"
        return "meets" if self._meets(bound) else "crosses"

    def _meets(self, value: float) -> bool:
        return (
            (self.at_least is not None and value >= self.at_least)
            or (self.above is not None and value > self.above)
            or (self.at_most is not None and value <= self.at_most)
            or (self.below is not None and value < self.below)
        )


class Weighed(NamedTuple):
    """A verdict and why it is that, in one sentence."""

    verdict: VerdictWord
    reason: str


def weigh(*conditions: Condition, supported: str, silent: str = "") -> Weighed:
    """Return the verdict on conditions that must all hold.

    Where several conditions decide, the reason is the sentence of the first one.

    Args:
        conditions: One or more, the most telling first.
        supported: The reason if all hold.
        silent: Why nothing can be weighed whatever the conditions say, "" if something can.
    """
    if silent:
        return Weighed("not measurable", silent)
    if unknown := _in_state(conditions, "unknown"):
        return Weighed("not measurable", f"There is no interval of: {_names(unknown)}.")
    if missing := _in_state(conditions, "misses"):
        sentence = missing[0].misses
        sharing = [condition for condition in missing if condition.misses == sentence]
        return Weighed("not supported", sentence.replace("{names}", _names(sharing)))
    if crossing := _in_state(conditions, "crosses"):
        sentence = crossing[0].crosses
        sharing = [condition for condition in crossing if condition.crosses == sentence]
        return Weighed("inconclusive", sentence.replace("{names}", _names(sharing)))
    return Weighed("supported", supported)


def _in_state(conditions: Sequence[Condition], state: State) -> list[Condition]:
    return [condition for condition in conditions if condition.state == state]


def _names(conditions: Sequence[Condition]) -> str:
    return ", ".join(condition.name or condition.interval.name for condition in conditions)


def strongest(verdicts: Sequence[VerdictWord]) -> int:
    """Return the position of the verdict of a rule that any one of several may meet."""
    return max(range(len(verdicts)), key=lambda index: (STRENGTH.index(verdicts[index]), -index))


def weakest(verdicts: Sequence[VerdictWord]) -> int:
    """Return the position of the verdict of a rule that all of several must meet."""
    return min(range(len(verdicts)), key=lambda index: (STRENGTH.index(verdicts[index]), index))


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
