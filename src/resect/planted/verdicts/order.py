"""Whether a claim is ever easier to support when more answers are broken.

A run is drawn once and weighed with 0, 1, 2 and 3 answers of each task broken after the cut, all
others as they were. A verdict that then gets stronger is a reversal: one broken answer would pass
what no broken answer fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from resect.planted.verdicts.count import Weigh, claims_of
from resect.planted.verdicts.scenario import Scenario
from resect.planted.verdicts.simulate import TASKS, Size
from resect.planted.verdicts.world import Reading, World
from resect.records import VerdictWord

# Prompts a probe: sizes around those at which bounds of different methods once met.
SIZES = (20, 31, 33, 40, 61, 66, 80, 100)
MOST_BROKEN = 3
UNHARMED = ("utility", "detection", "explanation")
LOCATED = ("generation", "bad_advice")
# What is not supported may turn out not to be measurable, and the other way round.
STRENGTH: dict[VerdictWord, int] = {
    "not measurable": 0,
    "not supported": 0,
    "inconclusive": 1,
    "supported": 2,
}


@dataclass(frozen=True)
class Order:
    """How often more broken answers passed more easily.

    Attributes:
        study: Name of the study.
        runs: Runs that were weighed, each with 0 to `MOST_BROKEN` broken answers.
        reversals: Claims of them, over all runs, whose verdict ever got stronger.
    """

    study: str
    runs: int
    reversals: int


def order_of(scenario: Scenario, weigh: Weigh) -> Order:
    """Return the reversals of a study, in a world in which all of its claims are true."""
    reversals = 0
    for prompts in SIZES:
        size = Size(models=1, prompts=prompts, tasks=prompts)
        by_claim = zip(*verdicts_by_broken(replace(scenario, size=size), weigh), strict=True)
        for verdicts in by_claim:
            strengths = [STRENGTH[verdict] for verdict in verdicts]
            reversals += strengths != sorted(strengths, reverse=True)
    return Order(scenario.study, len(SIZES), reversals)


def verdicts_by_broken(scenario: Scenario, weigh: Weigh) -> Iterator[list[VerdictWord]]:
    """Yield the verdicts on all claims of one run with 0, 1, 2 ... broken answers."""
    for broken in range(MOST_BROKEN + 1):
        spoiled = replace(scenario, world=with_broken(scenario.world, broken))
        yield [claim.verdict for claim in claims_of(spoiled, 0, weigh)]


def with_broken(world: World, broken: int) -> World:
    """Return a world that does everything right besides, less so many answers of a task."""

    def rate(reading: Reading) -> float:
        return 1.0 if reading.probe in UNHARMED else world.rate(reading)

    def spoiled(reading: Reading) -> int:
        cut = reading.cell.cut
        hit = cut is not None and cut.kind == "target" and cut.target in LOCATED
        first = reading.probe != "utility" or reading.category == TASKS[0]
        subject = reading.cell.role == "aligned"
        return broken if hit and first and subject and reading.probe in UNHARMED else 0

    return replace(world, rate=rate, spoiled=spoiled)
