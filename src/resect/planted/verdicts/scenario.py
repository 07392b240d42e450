"""A scenario: a world, and what is then true of each claim of a study."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from resect.planted.verdicts.simulate import Size
from resect.planted.verdicts.world import (
    INTACT,
    Reading,
    Share,
    Surgery,
    World,
    is_target,
    nothing,
)

# "boundary": a condition lies exactly at its threshold and all others are clearly met, so that the
# claim is supported by error alone.
Truth = Literal["true", "false", "boundary"]
TRUTHS: tuple[Truth, ...] = ("true", "boundary", "false")
Dose = Callable[[float], float]


def flat(value: float) -> Dose:
    """Return the dose-response that is the same at every fraction."""
    return lambda _q: value


def curve(half: float, top: float, steepness: float = 3.0) -> Dose:
    """Return a dose-response that is half of `top` at `half`, logistic in log q."""
    return lambda q: top * q**steepness / (q**steepness + half**steepness)


USUAL = Size()
FREE, CHEAP, IDLE = flat(0.0), flat(0.01), flat(0.02)


@dataclass(frozen=True)
class Scenario:
    """A world for one study.

    Attributes:
        study: Name of the study.
        name: Name among the study's scenarios.
        world: What is true of the arms.
        expected: What is then true of each stated claim, in the order of `Study.stated`.
        size: How much is asked.
        realised: From where the drawn models lie to whether the first claim is true of these very
            models; None if that does not depend on them.
    """

    study: str
    name: str
    world: World
    expected: tuple[Truth, ...]
    size: Size = USUAL
    realised: Callable[[Sequence[float]], bool] | None = None

    @property
    def label(self) -> str:
        """Name of the draws; the size is part of it."""
        return f"{self.study}/{self.name}/{self.size.models}/{self.size.words}"

    def graded(self, words: int) -> Scenario:
        """Return the same with answers of so many words."""
        return replace(self, size=replace(self.size, words=words))


@dataclass(frozen=True)
class Effects:
    """What cuts do along their fraction q, by what they are ranked by.

    Attributes:
        harm: Relative drop of harm by cuts of the target's ranking.
        cost: Relative drop of utility by these.
        rankings: Other targets to the relative drop of harm of their cuts.
        costs: Other targets to the relative drop of utility; `cost` where it is not said.
        control: Relative drop of harm by every other cut: random ones, matched ones.
        control_cost: Relative drop of utility by these.
    """

    harm: Dose
    cost: Dose = CHEAP
    rankings: Mapping[str, Dose] = field(default_factory=dict)
    costs: Mapping[str, Dose] = field(default_factory=dict)
    control: Dose = IDLE
    control_cost: Dose = FREE

    def drop(self, reading: Reading) -> float:
        """Return the relative drop of harm."""
        cut = reading.cell.cut
        if cut is None:
            return 0.0
        if is_target(cut):
            return self.harm(cut.q)
        ranked = self.rankings.get(cut.target) if cut.kind == "target" else None
        return (ranked or self.control)(cut.q)

    def loss(self, reading: Reading) -> float:
        """Return the relative drop of utility."""
        cut = reading.cell.cut
        if cut is None:
            return 0.0
        if is_target(cut):
            return self.cost(cut.q)
        if cut.kind == "target" and cut.target in self.rankings:
            return self.costs.get(cut.target, self.cost)(cut.q)
        return self.control_cost(cut.q)

    def world(self, *, spread: float = 0.0, spared: Share = nothing) -> World:
        """Return the world; `spread` is that of `Surgery`."""
        return World(Surgery(self.drop, self.loss, spared, usual, spread))


def usual(reading: Reading) -> float:
    """Return what the intact model shows of a probe."""
    return INTACT[reading.probe]
