"""From a scenario to counts of verdicts: simulate, let the study summarise, read the words."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from resect.planted.verdicts.ground import design_of, section_of, write_sets
from resect.planted.verdicts.quick import QuickResampler
from resect.planted.verdicts.scenario import Scenario, Truth
from resect.planted.verdicts.simulate import Simulated, planned_of
from resect.records import Claim, StudyResult, VerdictWord
from resect.studies import STUDIES, Measurements, Study
from resect.studies.design import Section

# What a run does with the measurements of a study, as `resect.runs.run` does it.
Weigh = Callable[[Measurements, Study[Any], Section], StudyResult]
# Of the drawn models; of these before each is looked at alone; of all models of their recipe.
Statement = Literal["models", "pooled", "recipe"]


@dataclass(frozen=True)
class Count:
    """How often a claim got a verdict in worlds of one truth.

    Attributes:
        claim: The claim in words.
        stated: Its position among the stated claims of the study.
        truth: What is true of it.
        verdict: One of the four words.
        number: How many runs.
        statement: Whether the verdict is on the drawn models, on these before each is looked at
            alone, or on their recipe.
    """

    claim: str
    stated: int
    truth: Truth
    verdict: VerdictWord
    number: int
    statement: Statement = "models"


def count_verdicts(scenario: Scenario, draws: Sequence[int], weigh: Weigh) -> list[Count]:
    """Return how often each claim got each verdict, and where there are models enough its recipe.

    Args:
        scenario: The world, the study and the size.
        draws: Numbers of the runs; a number and the scenario's label give the same run everywhere.
        weigh: What a run does with a study's measurements.
    """
    study = STUDIES[scenario.study]
    counts: Counter[Count] = Counter()
    for measured, claims in _weighed(scenario, draws, weigh):
        for claim, stated in zip(claims, positions(study, claims), strict=True):
            truth = truth_of(scenario, stated, measured)
            counts[Count(claim.claim, stated, truth, claim.verdict, 0)] += 1
            if claim.recipe is not None:
                truth, verdict = scenario.expected[stated], claim.recipe.verdict
                counts[Count(claim.claim, stated, truth, verdict, 0, "recipe")] += 1
    return [replace(count, number=number) for count, number in counts.items()]


def claims_of(scenario: Scenario, draw: int, weigh: Weigh) -> tuple[Claim, ...]:
    """Return what a study claims of one run."""
    (run,) = _weighed(scenario, [draw], weigh)
    return run.claims


class _Run(NamedTuple):
    """A run and what is claimed of it."""

    measured: Simulated
    claims: tuple[Claim, ...]


def _weighed(scenario: Scenario, draws: Sequence[int], weigh: Weigh) -> Iterator[_Run]:
    study, section = STUDIES[scenario.study], section_of(scenario.study)
    with tempfile.TemporaryDirectory() as folder:
        write_sets(scenario.size, Path(folder))
        design = design_of(scenario.size, Path(folder), scenario.study)
        planned = planned_of(study.plan(design, section))
        for draw in draws:
            measured = Simulated(
                design,
                scenario.world,
                size=scenario.size,
                planned=planned,
                label=scenario.label,
                draw=draw,
            ).with_resamplers(_resamplers(same_prompts=scenario.size.same_prompts))
            yield _Run(measured, weigh(measured, study, section).claims)


@cache
def _resamplers(*, same_prompts: bool) -> dict[str, QuickResampler]:
    """Return what all runs of this process share, by probe; `same_prompts` keeps kinds apart."""
    del same_prompts
    return {}


def truth_of(scenario: Scenario, stated: int, measured: Simulated) -> Truth:
    """Return what is true of a claim in a drawn run."""
    if stated or scenario.realised is None:
        return scenario.expected[stated]
    models = [measured.model(seed) for seed in measured.config.seeds]
    return "true" if scenario.realised(models) else "false"


def positions(study: Study[Any], claims: Sequence[Claim]) -> Iterator[int]:
    """Yield for each claim of a result which of the study's stated claims it makes.

    Raises:
        ValueError: It makes none of them.
    """
    for claim in claims:
        for number, stated in enumerate(study.stated):
            if claim.claim.startswith(stated.claim):
                yield number
                break
        else:
            raise ValueError(f"{study.name} has not stated {claim.claim!r}")
