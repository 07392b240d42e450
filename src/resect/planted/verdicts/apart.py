"""Worlds for the studies that set one cut against several readings: types, capabilities, draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

from resect.planted.verdicts.scenario import Scenario, Truth, usual
from resect.planted.verdicts.simulate import HARM_TYPES, REMOVED
from resect.planted.verdicts.world import (
    TARGET,
    Reading,
    Surgery,
    World,
    is_target,
    nothing,
)
from resect.studies.cells import Cut

THREE_TRUE: tuple[Truth, ...] = ("true", "true", "true")
THREE_EDGE: tuple[Truth, ...] = ("boundary", "boundary", "boundary")
THREE_FALSE: tuple[Truth, ...] = ("false", "false", "false")


def transfer() -> list[Scenario]:
    """Return the worlds of `transfer`: drops in the own and in other types, and overlap."""

    def scenario(name: str, world: World, truth: Truth) -> Scenario:
        return Scenario("transfer", name, world, (truth,))

    return [
        scenario("shared", _types(0.95, 0.9, 0.6, 0.0), "true"),
        scenario("shared by three quarters", _types(0.95, 0.72, 0.5, 0.0), "true"),
        scenario("apart", _types(0.95, 0.05, 0.0, 0.0), "false"),
        scenario("a quarter of the drop", _types(0.95, 0.24, 0.3, 0.0), "false"),
        scenario("half of the drop", _types(0.95, 0.475, 0.6, 0.0), "boundary"),
        scenario("half of a weaker drop", _types(0.6, 0.3, 0.6, 0.0), "boundary"),
        scenario("apart sets, shared effect", _types(0.95, 0.9, 0.0, 0.0), "false"),
        scenario("benign behaviours overlap more", _types(0.95, 0.9, 0.3, 1.0, 0.2), "false"),
        scenario("no effect", _types(0.1, 0.1, 0.6, 0.0), "false"),
    ]


def _types(own: float, others: float, common: float, benign: float, apart: float = 0) -> World:
    """Return a world of harm types.

    Args:
        own: Relative drop in the type that located the cut.
        others: Relative drop in the others.
        common: Share of the pool in masks of harm types.
        benign: Share of the pool in masks of benign behaviours.
        apart: By how much more the last type's mask has of the pool than the first one's. With
            shares a ≤ b two masks have a in common, so that a mask with all of the pool overlaps
            more with each type than types do with each other.
    """

    def drop(reading: Reading) -> float:
        cut = reading.cell.cut
        if not is_target(cut) or cut is None:
            return 0.02
        return own if cut.category in ("", reading.category) else others

    def share(cut: Cut, _model: float) -> float:
        if not is_target(cut):
            return benign
        place = HARM_TYPES.index(cut.category) if cut.category else len(HARM_TYPES) / 2
        return common + apart * (place / (len(HARM_TYPES) - 1) - 0.5)

    return World(Surgery(drop, nothing, intact=usual), common=share)


class _Pair(NamedTuple):
    """The capability whose weights are cut, and the one that is measured."""

    cut: str
    measured: str


def dissociation() -> list[Scenario]:
    """Return the worlds of `dissociation`: what each capability's cut does to each capability."""
    scenario = partial(Scenario, "dissociation")
    return [
        scenario("apart", _capabilities(0.9, 0.0), THREE_TRUE),
        scenario("nearly apart", _capabilities(0.9, 0.02), THREE_TRUE),
        scenario("one mechanism", _capabilities(0.9, 0.9), THREE_FALSE),
        scenario("others fall by a third", _capabilities(0.9, 0.33), THREE_FALSE),
        scenario("others at .10", _capabilities(0.9, 0.1), THREE_EDGE),
        scenario("own at .50", _capabilities(0.5, 0.0), THREE_EDGE),
        scenario("weak", _capabilities(0.3, 0.0), THREE_FALSE),
        scenario(
            "refusal goes with generation",
            _capabilities(0.9, 0.0, {_Pair("generation", "refusal"): 0.5}),
            ("false", "true", "false"),
        ),
        scenario(
            "generation goes with refusal",
            _capabilities(0.9, 0.0, {_Pair("refusal", "generation"): 0.5}),
            ("true", "false", "false"),
        ),
        scenario(
            "recognition at .10",
            _capabilities(0.9, 0.0, {_Pair("generation", "detection"): 0.1}),
            ("boundary", "true", "true"),
        ),
    ]


def _capabilities(own: float, others: float, besides: Mapping[_Pair, float] | None = None) -> World:
    """Return a world of capabilities.

    Args:
        own: Relative drop of the capability that located the cut.
        others: Relative drop of the others.
        besides: Relative drops where they are others.
    """

    def drop(reading: Reading) -> float:
        cut = reading.cell.cut
        if cut is None or cut.kind != "target":
            return 0.01 if reading.probe == TARGET else 0.0
        usual_drop = own if cut.target == reading.probe else others
        return (besides or {}).get(_Pair(cut.target, reading.probe), usual_drop)

    return World(Surgery(drop, nothing, drop, usual))


def stability() -> list[Scenario]:
    """Return the worlds of `stability`: how much draws have in common, and what their cuts do."""
    scenario = partial(Scenario, "stability")
    return [
        scenario("stable", _draws(0.95, 0.85), ("true", "true")),
        scenario("stable, weaker effect", _draws(0.8, 0.8), ("true", "true")),
        scenario("other weights, same effect", _draws(0.95, 0.2), ("false", "true")),
        scenario("same weights, weak effect", _draws(0.3, 0.85), ("true", "false")),
        scenario("neither", _draws(0.3, 0.2), ("false", "false")),
        # Two sets that take 2/3 from one pool share half of their union.
        scenario(
            "half in common",
            _draws(0.95, 2 / 3, 0.04),
            ("boundary", "true"),
            realised=partial(_half_in_common, common=2 / 3, spread=0.04),
        ),
        scenario("drop at .50", _draws(0.5, 0.85), ("true", "boundary")),
        scenario("few examples do not do", _draws(0.95, 0.85, few=0.2), ("true", "false")),
    ]


def _half_in_common(models: Sequence[float], common: float, spread: float) -> bool:
    """Return whether draws of these models share half of their union in the mean."""
    shares = [round(REMOVED * (common + spread * model)) / REMOVED for model in models]
    return sum(share / (2 - share) for share in shares) / len(shares) >= 0.5


def _draws(drop: float, common: float, spread: float = 0.0, few: float | None = None) -> World:
    """Return a world of calibration draws.

    Args:
        drop: Relative drop of harm.
        common: Share of the pool in every mask.
        spread: Its standard deviation between models.
        few: Relative drop of harm by a set that fewer than 10 examples located.
    """

    def fall(reading: Reading) -> float:
        cut = reading.cell.cut
        if cut is None or not is_target(cut):
            return 0.02
        return drop if few is None or (cut.examples or 99) >= 10 else few

    def share(_cut: Cut, model: float) -> float:
        return common + spread * model

    return World(Surgery(fall, nothing, intact=usual), common=share)
