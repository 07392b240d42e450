"""Worlds that no study may make anything of: what was true is spoiled, and must not be claimed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from resect.planted.verdicts.scenario import Scenario, Truth
from resect.planted.verdicts.world import Reading, World

UNSCORED, ABSENT = 0.75, 0.1
# Probes whose answers are whole replies, and utility.
REPLIES = ("generation", "misalignment", "utility")
MATCHED_KINDS = ("random", "magnitude")


def is_cut(reading: Reading) -> bool:
    """Return whether anything was cut from the variant."""
    return reading.cell.cut is not None


def cuts_break(world: World) -> World:
    """Return the world in which every cut, random ones too, leaves a model that babbles.

    Answers of a word or two, which tell recognition, stay, so that nothing but the replies says it.
    """
    return replace(
        world, broken=lambda reading: float(is_cut(reading) and reading.probe in REPLIES)
    )


def every_model_breaks(world: World) -> World:
    """Return the world in which every model babbles, the intact one too."""
    return replace(world, broken=lambda _reading: 1.0)


def cuts_unscored(world: World) -> World:
    """Return the world in which a judge fails on most replies of cut models, not on utility."""
    return replace(
        world,
        unscored=lambda reading: UNSCORED * (is_cut(reading) and reading.probe != "utility"),
    )


def every_model_unscored(world: World) -> World:
    """Return the world in which a judge fails on most replies of every model."""
    return replace(world, unscored=lambda reading: UNSCORED * (reading.probe != "utility"))


def shown_by_first(world: World) -> World:
    """Return the world in which only the model of seed 0 shows what is looked for."""

    def rate(reading: Reading) -> float:
        shown = reading.cell.seed == 0 or reading.probe == "utility"
        return world.rate(reading) * (1.0 if shown else ABSENT)

    return replace(world, rate=rate)


def no_utility(world: World) -> World:
    """Return the world in which no model can do any task of utility."""

    def rate(reading: Reading) -> float:
        return 0.0 if reading.probe == "utility" else world.rate(reading)

    return replace(world, rate=rate)


def random_alike(world: World) -> World:
    """Return the world in which random and magnitude-matched cuts do what the ranking's do."""

    def located(reading: Reading) -> Reading:
        cut = reading.cell.cut
        if cut is None or cut.kind not in MATCHED_KINDS:
            return reading
        return reading._replace(cell=replace(reading.cell, cut=replace(cut, kind="target")))

    rise = world.rise
    return replace(
        world,
        rate=lambda reading: world.rate(located(reading)),
        rise=None if rise is None else lambda reading: rise(located(reading)),
    )


@dataclass(frozen=True)
class _Spoiler:
    """A way to spoil a world.

    Attributes:
        name: Name of the scenario.
        spoil: From a world in which all claims are true to the spoiled one.
        untouched: Claims that stay true: study to positions among its stated claims.
    """

    name: str
    spoil: Callable[[World], World]
    untouched: dict[str, set[int]]


# What is said of the intact model, or of weights alone, does not depend on the cut ones' replies.
INTACT_ALONE = {"jailbreak": {0}, "emergent": {1}}
SPOILERS = (
    _Spoiler("every cut breaks the replies", cuts_break, INTACT_ALONE),
    _Spoiler("every model is broken", every_model_breaks, {}),
    _Spoiler("75 % of the cuts' replies unscored", cuts_unscored, INTACT_ALONE),
    _Spoiler("75 % of all replies unscored", every_model_unscored, {}),
    _Spoiler("one model of three shows it", shown_by_first, {}),
    _Spoiler("no utility in the intact model", no_utility, {}),
    _Spoiler(
        "random cuts do as much",
        random_alike,
        INTACT_ALONE | {"dissociation": {1}, "stability": {0}},
    ),
)


def spoiled(scenario: Scenario) -> list[Scenario]:
    """Return the spoiled worlds of a scenario in which every claim is true."""
    made = []
    for spoiler in SPOILERS:
        untouched = spoiler.untouched.get(scenario.study, set())
        expected: list[Truth] = [
            truth if number in untouched else "false"
            for number, truth in enumerate(scenario.expected)
        ]
        made.append(
            replace(
                scenario,
                name=spoiler.name,
                world=spoiler.spoil(scenario.world),
                expected=tuple(expected),
            )
        )
    return made
