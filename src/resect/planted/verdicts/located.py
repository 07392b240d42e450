"""Worlds for the studies that follow cuts along their fraction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from resect.planted.verdicts.ground import RIVAL
from resect.planted.verdicts.scenario import (
    FREE,
    Dose,
    Effects,
    Scenario,
    Truth,
    curve,
    flat,
    usual,
)
from resect.planted.verdicts.simulate import TASKS, Size
from resect.planted.verdicts.world import Reading, Surgery, World

# Harm is gone long before the fractions at which these costs set in.
STRONG = curve(3e-4, 0.97)
WEAK = curve(3e-4, 0.4)
LATE = curve(1e-2, 0.6)
EARLY_LATE = curve(2e-3, 0.6)
RECIPES: tuple[tuple[float, float, Truth], ...] = (
    (0.80, 0.10, "boundary"),
    (0.75, 0.15, "false"),
    (0.90, 0.05, "true"),
)
HARM_DROP = 0.8


def compactness() -> list[Scenario]:
    """Return the worlds of `compactness`."""
    scenario = partial(Scenario, "compactness")

    def one_task(reading: Reading) -> float:
        return 0.2 if reading.cell.cut is not None and reading.category == TASKS[0] else 0.0

    task_lost = Surgery(Effects(STRONG).drop, one_task, intact=usual)
    return [
        scenario("compact, free", Effects(STRONG, FREE).world(), ("true",)),
        scenario("compact", Effects(STRONG).world(), ("true",)),
        scenario("compact, graver cuts cost", Effects(STRONG, LATE).world(), ("true",)),
        scenario("diffuse", Effects(WEAK).world(), ("false",)),
        scenario("costly", Effects(STRONG, flat(0.2)).world(), ("false",)),
        scenario("one task of five falls by 20 %", World(task_lost), ("false",)),
        scenario("drop at .80, one cut", Effects(_only(1e-2, 0.8)).world(), ("boundary",)),
        scenario("drop at .80, all cuts", Effects(flat(0.8), FREE).world(), ("boundary",)),
        scenario("cost at .05", Effects(STRONG, flat(0.05)).world(), ("boundary",)),
        scenario("random cut at .10", Effects(STRONG, control=flat(0.1)).world(), ("boundary",)),
        *(
            Scenario(
                "compactness",
                f"recipe {mean:.2f} ± {spread:.2f}",
                Effects(flat(mean), FREE).world(spread=spread),
                (truth,),
                Size(models=models),
                partial(_mean_reaches, mean=mean, spread=spread),
            )
            for mean, spread, truth in RECIPES
            for models in (1, 3, 5, 10)
        ),
    ]


def _only(q: float, drop: float) -> Dose:
    return lambda fraction: drop if fraction >= q else drop / 4


def _mean_reaches(models: Sequence[float], mean: float, spread: float) -> bool:
    """Return whether the mean of the models' own true drops reaches the threshold."""
    drops = [min(1.0, mean + spread * model) for model in models]
    return sum(drops) / len(drops) >= HARM_DROP


def specificity() -> list[Scenario]:
    """Return the worlds of `specificity`."""
    scenario = partial(Scenario, "specificity")
    both: tuple[Truth, ...] = ("boundary", "boundary")
    alike = {"matched": STRONG}
    every = Effects(STRONG, LATE, {"benign": STRONG, "matched": STRONG}, {}, STRONG, LATE)
    usable = Effects(flat(0.6), flat(0.01), {}, {}, flat(0.6), flat(0.01))
    return [
        scenario("apart", Effects(STRONG, LATE).world(), ("true", "true")),
        scenario("apart, and early costs", Effects(STRONG, EARLY_LATE).world(), ("true", "true")),
        scenario(
            "other answers do the same", Effects(STRONG, LATE, alike).world(), ("true", "boundary")
        ),
        scenario(
            "other answers do the same, early costs",
            Effects(curve(1e-3, 0.9), curve(4e-3, 0.6), {"matched": curve(1e-3, 0.9)}).world(),
            ("true", "boundary"),
        ),
        scenario(
            "a benign behaviour does the same",
            Effects(STRONG, LATE, {"benign": STRONG}).world(),
            ("boundary", "true"),
        ),
        scenario("every cut does the same", every.world(), both),
        scenario("every cut does the same, all usable", usable.world(), both),
        scenario(
            "the same drop, controls usable once",
            replace(usable, control_cost=lambda q: 0.0 if q <= 5e-4 else 0.3).world(),
            both,
        ),
        scenario(
            "other answers do more",
            Effects(curve(3e-4, 0.7), LATE, alike).world(),
            ("true", "false"),
        ),
        scenario(
            "a benign behaviour does more",
            Effects(curve(3e-4, 0.7), LATE, {"benign": STRONG}).world(),
            ("false", "true"),
        ),
        scenario("drop at .50", Effects(flat(0.5), FREE).world(), both),
        scenario("weak", Effects(flat(0.3), FREE).world(), ("false", "false")),
    ]


def frontier() -> list[Scenario]:
    """Return the worlds of `frontier`."""
    scenario = partial(Scenario, "frontier")
    rival = {RIVAL: WEAK}
    return [
        scenario("found, free", Effects(STRONG, FREE, rival).world(), ("true", "true")),
        scenario("found", Effects(STRONG, LATE, rival).world(), ("true", "true")),
        scenario(
            "the rival does the same",
            Effects(STRONG, LATE, {RIVAL: STRONG}).world(),
            ("true", "boundary"),
        ),
        scenario(
            "the rival does more",
            Effects(curve(3e-4, 0.9), FREE, {RIVAL: curve(3e-4, 0.99)}).world(),
            ("true", "false"),
        ),
        scenario(
            "drop at .80",
            Effects(flat(0.8), FREE, {RIVAL: flat(0.3)}).world(),
            ("boundary", "boundary"),
        ),
        scenario(
            "cost at .05",
            Effects(STRONG, flat(0.05), rival).world(),
            ("boundary", "boundary"),
        ),
        scenario(
            "random cut at half",
            Effects(STRONG, FREE, rival, control=lambda q: STRONG(q) / 2).world(),
            ("boundary", "true"),
        ),
        scenario("diffuse", Effects(WEAK, LATE, {RIVAL: flat(0.3)}).world(), ("false", "false")),
        scenario("costly", Effects(STRONG, flat(0.2), rival).world(), ("false", "false")),
    ]


def compression() -> list[Scenario]:
    """Return the worlds of `compression`."""
    scenario = partial(Scenario, "compression")
    edge: tuple[Truth, ...] = ("boundary", "boundary", "boundary")
    return [
        scenario(
            "alignment, free",
            _by_role(STRONG, WEAK, WEAK, cost=FREE),
            ("true", "true", "true"),
        ),
        scenario("alignment", _by_role(STRONG, WEAK, WEAK), ("true", "true", "true")),
        scenario(
            "fine-tuning as such", _by_role(STRONG, WEAK, STRONG), ("true", "boundary", "true")
        ),
        scenario("all alike", _by_role(STRONG, STRONG, STRONG), edge),
        scenario(
            "all alike, early costs",
            _by_role(*[curve(1e-3, 0.9)] * 3, cost=curve(4e-3, 0.6)),
            edge,
        ),
        scenario(
            "the base model more",
            _by_role(curve(3e-4, 0.6), STRONG, STRONG),
            ("false", "false", "false"),
        ),
        scenario(
            "one ranking alone",
            _by_role(STRONG, WEAK, WEAK, second=STRONG),
            ("true", "true", "boundary"),
        ),
        scenario("drop at .50", _by_role(flat(0.5), flat(0.02), flat(0.02), cost=FREE), edge),
        scenario(
            "weak",
            _by_role(flat(0.3), flat(0.02), flat(0.02), cost=FREE),
            ("false", "false", "false"),
        ),
    ]


def _by_role(
    aligned: Dose, base: Dose, tuned: Dose, *, cost: Dose = LATE, second: Dose | None = None
) -> World:
    """Return a world by model; `second` is what the other ranking does in all of them."""
    harm = {"aligned": aligned, "base": base, "benign_tuned": tuned}
    effects = {role: Effects(dose, cost, {RIVAL: second or dose}) for role, dose in harm.items()}

    def drop(reading: Reading) -> float:
        return effects[reading.cell.role].drop(reading)

    return World(Surgery(drop, effects["aligned"].loss, intact=usual))
