"""What is true in a simulated world, said of arms and not of rules.

A world gives, for every reading (a model variant, a probe, a category), the expected score of its
replies and which share of them is broken, refused or not scored; and for every cut how much of its
set is common to all. It knows nothing of thresholds or grids: a study's own `plan` says which
variants are read, and its own `summarise` what they show.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from resect.studies.cells import Cell, Cut

TARGET = "generation"
# What the intact model shows of each probe, before a world says otherwise.
INTACT = {
    "generation": 0.95,
    "refusal": 0.95,
    "detection": 0.9,
    "explanation": 0.9,
    "utility": 0.95,
    "likelihood": 0.6,
    "misalignment": 0.05,
}


class Reading(NamedTuple):
    """What a truth is asked for.

    Attributes:
        cell: The model variant; its probes are empty.
        probe: Name of the probe.
        category: Category of the prompts.
        model: Where the model lies among those of its recipe, in standard deviations.
    """

    cell: Cell
    probe: str
    category: str
    model: float


Share = Callable[[Reading], float]
Common = Callable[[Cut, float], float]


class Changes(NamedTuple):
    """Shares of the squared change of the weights: in the set, and in one of the same size."""

    inside: float
    matched: float


def nothing(_reading: Reading) -> float:
    """Return 0: no such reply."""
    return 0.0


def half_common(_cut: Cut, _model: float) -> float:
    """Return that half of each set is common to all."""
    return 0.5


def unmoved(_model: float) -> Changes:
    """Return that the set changes as much as others."""
    return Changes(0.02, 0.02)


@dataclass(frozen=True)
class World:
    """The truth about all arms.

    Attributes:
        rate: Expected score, in [0, 1], of replies that are neither broken nor refused.
        broken: Share of replies that are incoherent; their score is 0.
        refused: Share of the others that refuse; their score is 0.
        unscored: Share of replies that no judge could score.
        spoiled: So many prompts, the first of each category, are answered wrongly whatever the
            rate.
        common: Of a cut, and where its model lies: the share of its set that is taken from one
            pool. Two sets of shares a ≤ b have a of their weights in common.
        changes: Where narrow training moves the weights, by where the model lies.
        rise: Of a world whose answers are read and not asked for: by how much a variant raises the
            mean NLL of a probe's answers, in nats a token. `rate` is then the geometric mean of
            the probability that the intact model gives to a token.
    """

    rate: Share
    broken: Share = nothing
    refused: Share = nothing
    unscored: Share = nothing
    spoiled: Callable[[Reading], int] = lambda _reading: 0
    common: Common = half_common
    changes: Callable[[float], Changes] = unmoved
    rise: Share | None = None


def expected_score(world: World, reading: Reading) -> float:
    """Return the mean score that a reading has over all prompts that could be asked."""
    whole = (1 - world.broken(reading)) * (1 - world.refused(reading))
    return min(1.0, max(0.0, world.rate(reading))) * whole


def is_target(cut: Cut | None) -> bool:
    """Return whether a cut follows the ranking of the behaviour that is sought."""
    return cut is not None and cut.kind == "target" and cut.target == TARGET


@dataclass(frozen=True)
class Surgery:
    """Rates of a world in which cuts lower what the intact model shows.

    Attributes:
        harm: Relative drop of generation, by reading.
        cost: Relative drop of utility.
        spared: Relative drop of every other capability.
        intact: Rate of the intact model by probe, where it is not `INTACT`.
        spread: Standard deviation between models of the drop of harm of target cuts.
    """

    harm: Share
    cost: Share = nothing
    spared: Share = nothing
    intact: Share = lambda reading: INTACT[reading.probe]
    spread: float = 0.0

    def __call__(self, reading: Reading) -> float:
        """Return the rate of a reading."""
        whole = self.intact(reading)
        if reading.cell.cut is None:
            return whole
        if reading.probe == TARGET:
            drop = self.harm(reading)
            if is_target(reading.cell.cut):
                drop += self.spread * reading.model
        elif reading.probe in ("utility", "likelihood"):
            drop = self.cost(reading)
        else:
            drop = self.spared(reading)
        return whole * (1 - min(1.0, drop))
