"""A study over several models: what each says alone, and two statements about all of them.

*Of these models*: the study's own claim, over the prompts of all models. It is not supported where
too many of them say, each by itself, that it is not, and not measurable where fewer than most of
them could be measured. A claim that rests on an interval over models has no single model to ask.

*Of their recipe*: every condition of the rule again, as a mean over models with an interval for
other models of the same recipe (`resect.stats.of_recipe`), from five models on. What is one number
of all models, such as a p-value, stands as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from resect.records import Claim, Interval, OfRecipe, Requirement, StudyResult
from resect.stats import LEAST_MODELS, of_recipe
from resect.studies.judged import stated_in
from resect.studies.measurements import Measurements
from resect.studies.study import SectionType, Study
from resect.studies.weighing import ladder, state_of


def over_models(
    measured: Measurements, study: Study[SectionType], section: SectionType
) -> StudyResult:
    """Return a study's result over all seeds, with what each seed alone says and the recipe."""
    result = stated_in(study.summarise(measured, section), measured.error)
    seeds = measured.config.seeds
    if len(seeds) == 1:
        return result
    alone = {str(s): study.summarise(measured.of_seed(s), section).claims for s in seeds}
    claims = [
        _joined(
            claim,
            {seed: claims[index] for seed, claims in alone.items()},
            measured.config.most_dissent,
        )
        for index, claim in enumerate(result.claims)
    ]
    return replace(result, claims=tuple(claims))


def _joined(claim: Claim, alone: Mapping[str, Claim], most_dissent: float) -> Claim:
    """Return the claim with what each model says by itself."""
    claim = replace(
        claim,
        by_seed={seed: single.verdict for seed, single in alone.items()},
        recipe=_of_recipe(claim, list(alone.values())),
    )
    return agreed(claim, most_dissent)


def agreed(claim: Claim, most_dissent: float) -> Claim:
    """Return the claim as weaker where its models disagree, or where most cannot be measured."""
    if is_over_models(claim):
        return claim
    silent = [seed for seed, verdict in claim.by_seed.items() if verdict == "not measurable"]
    against = [seed for seed, verdict in claim.by_seed.items() if verdict == "not supported"]
    models = len(claim.by_seed)
    if models and 2 * len(silent) >= models and claim.verdict != "not measurable":
        reason = f"Only {models - len(silent)} of {models} models can be measured."
        return replace(claim, verdict="not measurable", reason=f"{reason} {claim.reason}")
    if claim.verdict != "supported" or len(against) <= most_dissent * models:
        return claim
    which = f"seed {against[0]}" if len(against) == 1 else f"seeds {', '.join(against)}"
    reason = f"Models disagree: the rule holds over all seeds and fails on {which} alone."
    return replace(claim, verdict="inconclusive", reason=f"{reason} {claim.reason}")


def is_over_models(claim: Claim) -> bool:
    """Return whether a claim rests on intervals over models alone, which no single model has."""
    return bool(claim.requirements) and not any(item.over_models for item in claim.requirements)


def _of_recipe(claim: Claim, alone: Sequence[Claim]) -> OfRecipe | None:
    """Return the claim on the recipe, None where fewer than `LEAST_MODELS` were asked."""
    measured = [single for single in alone if single.verdict != "not measurable"]
    if len(alone) < LEAST_MODELS:
        return None
    if is_over_models(claim):
        return OfRecipe(claim.verdict, claim.reason, claim.effect, len(alone))
    if len(measured) < LEAST_MODELS:
        reason = f"Only {len(measured)} models can be measured; it takes {LEAST_MODELS}."
        unknown = Interval(claim.effect.name, None)
        return OfRecipe("not measurable", reason, unknown, len(measured))
    effect = of_recipe([single.effect.value for single in measured], claim.effect)
    requirements = [
        _requirement_of_recipe(requirement, number, measured)
        for requirement, number in _numbered(claim.requirements)
    ]
    verdict = ladder([requirement.state for requirement in requirements])
    decisive = [r for r in requirements if r.state == DECISIVE.get(verdict)]
    names = ", ".join(requirement.interval.name for requirement in decisive)
    return OfRecipe(
        verdict,
        f"{REASONS[verdict]}{names}.",
        effect or Interval(claim.effect.name, claim.effect.value),
        len(measured),
    )


DECISIVE = {"not measurable": "unknown", "not supported": "misses", "inconclusive": "crosses"}
REASONS = {
    "not measurable": "Without an interval over models: ",
    "not supported": "The mean over models misses: ",
    "inconclusive": "Other models of the recipe may miss: ",
    "supported": "Every condition holds",
}


def _numbered(requirements: Sequence[Requirement]) -> list[tuple[Requirement, int]]:
    """Return requirements with how many of their name stand before them."""
    seen: Counter[str] = Counter()
    numbered = []
    for requirement in requirements:
        numbered.append((requirement, seen[requirement.interval.name]))
        seen[requirement.interval.name] += 1
    return numbered


def _requirement_of_recipe(
    requirement: Requirement, number: int, alone: Sequence[Claim]
) -> Requirement:
    """Return one condition on the mean over models; `number` tells it from others of its name."""
    if not requirement.over_models:
        return requirement
    values: list[float | None] = []
    for single in alone:
        same = [
            item.interval.value
            for item in single.requirements
            if item.interval.name == requirement.interval.name
        ]
        values.append(same[number] if number < len(same) else None)
    interval = of_recipe(values, requirement.interval)
    interval = interval or Interval(requirement.interval.name, None)
    state = state_of(interval, requirement.sense, requirement.threshold)
    return replace(requirement, interval=interval, state=state)
