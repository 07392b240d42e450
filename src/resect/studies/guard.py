"""What a cut may cost before anything is claimed of it: one guard for all studies.

Every rule on a cut has these conditions beside its own, all by the bound that faces the threshold:

    mean cost     utility falls by no more than the budget, in the mean over tasks
    worst task    nor does the task that loses most by more than `guard.worst_task`, or than the
                  budget where that is larger
    coherence     the share of incoherent replies rises by no more than `guard.incoherent`
    random cut    a random cut of the same size does less than `guard.random_share` of the effect

A cut that breaks the model lowers every rate, so without them any claim on a lower rate would hold
of a destroyed model. Nothing is measurable where the intact model lacks the harm or the utility.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from resect.records import Interval
from resect.stats import Sample, relative_drop
from resect.studies.cells import Cell, Cut
from resect.studies.design import Design
from resect.studies.effects import (
    cells_of,
    effect_probes,
    intact_of,
    utility_probe,
)
from resect.studies.halves import Half
from resect.studies.measurements import Measurements
from resect.studies.weighing import Condition, percent

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

BROKEN = ("incoherent",)


@dataclass(frozen=True)
class Cost:
    """What a cut costs.

    Attributes:
        utility: Relative drop of utility, mean over tasks.
        task: Relative drop of the task that loses most; each bound is the highest of all tasks,
            None if some task has none.
        worst: Name of that task.
        incoherent: Rise of the share of incoherent replies; None if nobody told them apart.
    """

    utility: Sample
    task: Interval
    worst: str
    incoherent: Sample | None

    def within(self, design: Design, budget: float) -> bool:
        """Return whether a cut may be chosen at this cost.

        By estimates, but for the worst task: of several tasks with few prompts each one always
        seems to lose much, so that a cut is passed over only if one is shown to.
        """
        return (
            self.utility.value <= budget
            and self._task_within(design, budget)
            and (self.incoherent is None or self.incoherent.value <= design.guard.incoherent)
        )

    def drawn_within(self, design: Design, budget: float) -> npt.NDArray[np.bool_]:
        """Return the same for each draw of the prompts [R]; the worst task is that of all."""
        fits = (self.utility.draws <= budget) & self._task_within(design, budget)
        if self.incoherent is not None:
            fits = fits & (self.incoherent.draws <= design.guard.incoherent)
        return fits

    def _task_within(self, design: Design, budget: float) -> bool:
        return self.task.low is None or self.task.low <= max(budget, design.guard.worst_task)


def guard_cells(design: Design, role: str, *cuts: Cut | None) -> list[Cell]:
    """Return what must be measured for the guard: the intact model and each cut, one a seed."""
    probes = effect_probes(design)
    variants = dict.fromkeys((None, *cuts))
    return [cell for cut in variants for cell in cells_of(design, role, cut, probes)]


def cost_of(
    measured: Measurements,
    cells: Sequence[Cell],
    half: Half = "",
    *,
    against: Sequence[Cell] | None = None,
    probe: str = "generation",
) -> Cost:
    """Return what a cut costs on one half of the prompts, one cell a seed.

    Args:
        measured: The run.
        cells: The cells of the cut.
        half: The prompts that are meant.
        against: What it is compared with; None for the intact model.
        probe: The probe whose replies must be coherent.
    """
    before = intact_of(cells) if against is None else against
    broken, usual = (
        measured.rate(variant, probe, half=half, outcomes=BROKEN) for variant in (cells, before)
    )
    utility = utility_probe(measured.config)
    rates = [measured.rate(variant, utility, half=half) for variant in (before, cells)]
    tasks = _task_drops(measured, cells, before, half)
    worst = max(tasks, key=lambda name: _value(tasks[name].value), default="")
    drop = tasks.get(worst, Interval("", None))
    return Cost(
        relative_drop(*rates),
        Interval(
            "drop of utility, worst task",
            drop.value,
            _highest([task.low for task in tasks.values()]),
            _highest([task.high for task in tasks.values()]),
        ),
        worst,
        None if math.isnan(usual.value) else broken - usual,
    )


def _task_drops(
    measured: Measurements, cells: Sequence[Cell], before: Sequence[Cell], half: Half
) -> dict[str, Interval]:
    """Return the relative drop of each task that the model could do before."""
    probe, least = utility_probe(measured.config), measured.config.least_rate
    drops: dict[str, Interval] = {}
    # Where no task has prompts enough to speak of, all of them together are the one task.
    for task in measured.categories(before, probe, half=half) or [""]:
        rate = measured.rate(before, probe, task, half=half)
        if rate.value >= (least if probe == "utility" else 0):
            after = measured.rate(cells, probe, task, half=half)
            drops[task] = relative_drop(rate, after).interval(task)
    return drops


def _highest(bounds: Sequence[float | None]) -> float | None:
    """Return the highest bound; None where one of them is not known."""
    known = [bound for bound in bounds if bound is not None]
    return max(known, default=None) if len(known) == len(bounds) else None


def _value(value: float | None) -> float:
    """Return a number that is the largest if there is none."""
    return math.inf if value is None or math.isnan(value) else value


def guard(
    measured: Measurements,
    cells: Sequence[Cell],
    claimed: Sample,
    random: Sample,
    *,
    budget: float | None = None,
    half: Half = "",
    random_share: float | None = None,
) -> tuple[Condition, ...]:
    """Return the conditions of the guard on one arm.

    Args:
        measured: The run.
        cells: The cells of the cut, one a seed.
        claimed: What the cut is claimed to do, as a relative drop.
        random: What a random cut of the same size does, on the same prompts.
        budget: Largest drop of utility; None for that of the configuration.
        half: The prompts that are meant.
        random_share: Largest share of it that the random cut may do; None as well.
    """
    limits = measured.config.guard
    random_share = limits.random_share if random_share is None else random_share
    share = percent(random_share)
    margin = claimed * random_share - random
    return (
        *affordable(measured.config, cost_of(measured, cells, half), budget),
        Condition(
            margin.interval("share of the effect, less that of a random cut"),
            above=0,
            misses=f"A random cut does {percent(random.value)}, which is not less than {share} of "
            f"{percent(claimed.value)}.",
            crosses=f"A random cut may do {share} of the effect.",
        ),
    )


def affordable(design: Design, cost: Cost, budget: float | None = None) -> list[Condition]:
    """Return the conditions on a cost; the budget is that of the configuration if None."""
    limits = design.guard
    budget = limits.utility_drop if budget is None else budget
    worst = max(budget, limits.worst_task)
    utility = cost.utility.interval("drop of utility, mean over tasks")
    conditions = [
        Condition(
            utility,
            at_most=budget,
            misses=f"The cut costs {percent(utility.value)} of utility.",
            crosses="The interval of the utility lost reaches beyond the budget.",
        ),
        Condition(
            cost.task,
            at_most=worst,
            misses=f"One task loses {percent(cost.task.value)}: {cost.worst or 'utility'}.",
            crosses=f"A task may lose more than {percent(worst)}.",
        ),
    ]
    return conditions + coherent(design, cost)


def coherent(design: Design, cost: Cost) -> list[Condition]:
    """Return the condition on coherence alone; none where nobody told broken replies apart."""
    if cost.incoherent is None:
        return []
    most = percent(design.guard.incoherent)
    rise = cost.incoherent.interval("rise of incoherent replies")
    return [
        Condition(
            rise,
            at_most=design.guard.incoherent,
            misses=f"The cut breaks {percent(rise.value)} of the replies.",
            crosses=f"The cut may break more than {most} of the replies.",
        )
    ]


def guarded(design: Design, budget: float | None = None, random_share: float | None = None) -> str:
    """Return what the guard asks for, as the end of a rule in words."""
    limits = design.guard
    random_share = limits.random_share if random_share is None else random_share
    budget = limits.utility_drop if budget is None else budget
    worst = percent(max(budget, limits.worst_task))
    return (
        f"Utility falls by at most {percent(budget)} in the mean and by at most {worst} in any "
        f"task{broken_replies(design)} (upper bounds), and a random cut of the same size does less "
        f"than {percent(random_share)} of it (bound of the difference)."
    )


def broken_replies(design: Design, joined: str = ", ") -> str:
    """Return what a rule asks of incoherent replies; "" where none are decoded."""
    if design.evaluation.measure == "likelihood":
        return ""
    return f"{joined}incoherent replies rise by at most {percent(design.guard.incoherent)}"


def coherently(design: Design) -> str:
    """Return the same in other words, as the end of a sentence."""
    if design.evaluation.measure == "likelihood":
        return ""
    return ", and replies are no less coherent than the guard allows"


def silent(measured: Measurements, cells: Sequence[Cell]) -> str:
    """Return why the intact models of these cells cannot be measured, "" if they can."""
    reasons = [measured.silent(intact_of(cells), "generation"), useless(measured, cells)]
    return " ".join(reason for reason in reasons if reason)


def useless(measured: Measurements, cells: Sequence[Cell]) -> str:
    """Return why the utility of the intact models cannot be measured, "" if it can."""
    intact = intact_of(cells)
    utility = utility_probe(measured.config)
    if utility == "utility":
        return measured.silent(intact, utility)
    if math.isnan(measured.rate(intact, utility).value):
        return "The likelihood of held-out text has no value."
    return ""
