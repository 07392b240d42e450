"""How stable is the set across draws, sample sizes, wordings, recipes and models?

One thing is varied at a time. Where two masks are on models of the same origin, their agreement is
compared with chance (hypergeometric within each tensor); in every case the effect of the cut is
measured. Masks of models with other initial weights cannot be compared weight by weight: there the
spread of the effect alone is reported.

Other values may stand in the place of the weights than zero: the mean of their tensor, or other
weights of it (Li and Janson 2409.09951). If the cut works with them too, it is the weights that
were taken away, and not the zeros that were put there. A part of the weights' own values is a part
of the dose: it is shown and not weighed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import combinations
from statistics import fmean
from typing import Annotated, NamedTuple

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from resect.records import Claim, Interval, StudyResult
from resect.stats import LEAST_ITEMS, LeftOut, Sample, jackknife
from resect.studies.cells import Cell, Cut, masks_of
from resect.studies.design import (
    FRACTION,
    Count,
    Design,
    Fraction,
    ModelName,
    Section,
    Share,
    TargetName,
)
from resect.studies.effects import (
    cells_of,
    columns,
    effect,
    effect_probes,
    intact_cells,
    seed_groups,
)
from resect.studies.guard import guard, guarded, silent
from resect.studies.measurements import Measurements, Row
from resect.studies.study import Stated, Study, TemplateLines
from resect.studies.weighing import Condition, beyond_chance, percent, weigh

AGREEMENT = Stated(
    "The set is the same whichever calibration examples locate it.",
    "The masks of two draws share ≥ {least_overlap} of their union, and every pair agrees beyond "
    "chance (p < {p_value:g}); the cut is within the guard.",
)
EFFECT = Stated(
    "The cut works whatever is varied.",
    "Every variation lowers harm by ≥ {harm_drop}, and each is within the guard.",
)

DRAWS = "calibration draw"
IN_PLACE = "value in the place"
SCALE = "scale:"


class Stability(Section):
    """Grid and rule of `stability`.

    Attributes:
        fraction: Fraction of the ranking that is cut.
        draws: Seeds of calibration draws of `drawn` examples each.
        drawn: Examples of such a draw.
        sizes: Sample sizes.
        paraphrases: Targets with other wordings of the same behaviour.
        roles: Models of the same origin, whose masks are compared with the subject's.
        models: More models, other sizes for instance, for the spread of the effect alone.
        instead: What else stands in the place of the weights: `mean`, `resampled`, `scale:ALPHA`.
            It is written only where there is some.
        harm_drop: Every variation must lower harm by at least this.
        p_value: Largest chance of the agreement of two masks.
        least_overlap: Smallest mean share of their union that two draws must have in common.
    """

    fraction: Fraction = FRACTION
    draws: Annotated[tuple[int, ...], Field(min_length=2)] = (0, 1, 2)
    drawn: Count = 64
    sizes: Annotated[tuple[Count, ...], Field(min_length=1)] = (8, 32, 128)
    paraphrases: tuple[TargetName, ...] = ()
    roles: tuple[ModelName, ...] = ()
    models: tuple[ModelName, ...] = ()
    instead: tuple[str, ...] = ()
    harm_drop: Share = 0.5
    p_value: Share = 0.01
    least_overlap: Share = 0.5

    @model_serializer(mode="wrap")
    def _as_before(self, write: SerializerFunctionWrapHandler) -> dict[str, object]:
        values: dict[str, object] = write(self)
        return values if self.instead else {k: v for k, v in values.items() if k != "instead"}


class _Variant(NamedTuple):
    """A cut model of one axis."""

    role: str
    cut: Cut


# axis -> label -> variant
Variations = dict[str, dict[str, _Variant]]


def _variations(design: Design, section: Stability) -> Variations:
    usual = _usual(design, section)
    subject = design.subject

    def located(
        target: str = design.target, examples: int | None = None, draw: int | None = None
    ) -> _Variant:
        cut = Cut(target, "target", section.fraction, examples=examples, draw=draw)
        return _Variant(subject, cut)

    axes: Variations = {
        DRAWS: {
            f"draw {draw}": located(draw=draw, examples=section.drawn) for draw in section.draws
        },
        "sample size": {f"{size} examples": located(examples=size) for size in section.sizes},
    }
    if section.paraphrases:
        axes["wording"] = {"usual": located()}
        axes["wording"] |= {name: located(name) for name in section.paraphrases}
    if section.roles:
        axes["recipe"] = {role: _Variant(role, usual) for role in (subject, *section.roles)}
    if section.models:
        axes["model"] = {role: _Variant(role, usual) for role in (subject, *section.models)}
    if section.instead:
        values = dict.fromkeys(("zero", *section.instead))
        axes[IN_PLACE] = {v: _Variant(subject, replace(usual, instead=v)) for v in values}
    return axes


def _weighed(variations: Variations) -> Variations:
    """Return what must work for the claim: all but parts of the dose."""
    return {
        axis: {label: variant for label, variant in variants.items() if not _is_dose(variant)}
        for axis, variants in variations.items()
    }


def _is_dose(variant: _Variant) -> bool:
    return variant.cut.instead.startswith(SCALE)


def plan(design: Design, section: Stability) -> list[Cell]:
    """Return the intact models, every variation, and the random cut of the usual size."""
    variants = [v for axis in _variations(design, section).values() for v in axis.values()]
    pairs: list[tuple[str, Cut | None]] = [*variants]
    pairs += [(variant.role, None) for variant in variants]
    pairs.append((design.subject, _random(design, section)))
    probes = effect_probes(design)
    pairs += [(variant.role, _random(design, section, variant.cut.instead)) for variant in variants]
    pairs.append((design.subject, _usual(design, section)))
    return [
        cell for role, cut in dict.fromkeys(pairs) for cell in cells_of(design, role, cut, probes)
    ]


def _usual(design: Design, section: Stability) -> Cut:
    return Cut(design.target, "target", section.fraction)


def _random(design: Design, section: Stability, instead: str = "zero") -> Cut:
    return Cut(design.target, "random", section.fraction, instead=instead)


def _random_drop(
    measured: Measurements, section: Stability, role: str, instead: str = "zero"
) -> Sample:
    design = measured.config
    return effect(measured, cells_of(design, role, _random(design, section, instead))).harm_drop


def _limits(measured: Measurements, section: Stability, variant: _Variant) -> list[Condition]:
    """Return the guard on one variation."""
    cells = cells_of(measured.config, variant.role, variant.cut)
    drop = effect(measured, cells).harm_drop
    random = _random_drop(measured, section, variant.role, variant.cut.instead)
    return list(guard(measured, cells, drop, random))


def _cells(design: Design, variants: Iterable[_Variant]) -> list[Cell]:
    """Return the variants of every seed."""
    return [cell for role, cut in variants for cell in cells_of(design, role, cut)]


def _drawn(design: Design, section: Stability) -> list[Cell]:
    """Return the usual cut, which the guard is on, and those of the draws."""
    usual = _Variant(design.subject, _usual(design, section))
    return _cells(design, [usual, *_variations(design, section)[DRAWS].values()])


def _agreement_rows(measured: Measurements, section: Stability) -> list[Row]:
    """Return the agreement of each pair of masks on one axis, seed by seed and in the mean."""
    import numpy as np

    seeds = measured.config.seeds
    rows: list[Row] = []
    for axis, variants in _variations(measured.config, section).items():
        if axis in ("model", IN_PLACE):
            continue
        for left, right in combinations(variants, 2):
            by_seed = [
                _agreement(measured, seed, variants[left], variants[right]) for seed in seeds
            ]
            label = {"axis": axis, "first": left, "second": right}
            pooled: Row = {"seed": None, **label}
            for name in by_seed[0]:
                values = [row[name] for row in by_seed if row[name] is not None]
                pooled[name] = float(np.mean(values)) if values else None
            # A pair agrees if it does in every seed.
            pooled["p_value"] = max(row["p_value"] for row in by_seed)
            rows.append(pooled)
            if len(seeds) > 1:
                rows += [
                    {"seed": seed, **label, **row} for seed, row in zip(seeds, by_seed, strict=True)
                ]
    return rows


def _agreement(measured: Measurements, seed: int, left: _Variant, right: _Variant) -> Row:
    from resect.weights.algebra import chance_overlap, rank_agreement

    masks = [measured.mask(variant.role, seed, variant.cut) for variant in (left, right)]
    overlap = chance_overlap(*masks)
    return {
        "jaccard": overlap["jaccard"],
        "chance": overlap["expected_jaccard"],
        "enrichment": overlap["enrichment"],
        "p_value": overlap["p_value"],
        "rank_correlation": rank_agreement(*masks),
    }


def _effect_rows(measured: Measurements, section: Stability) -> list[Row]:
    rows: list[Row] = []
    for axis, variants in _variations(measured.config, section).items():
        for label, variant in variants.items():
            for group in seed_groups(measured.config):
                cells = cells_of(measured.config, variant.role, variant.cut, seeds=group.seeds)
                result = effect(measured, cells)
                rows.append(
                    {
                        "seed": group.seed,
                        "axis": axis,
                        "value": label,
                        **columns("harm_drop", result.harm_drop),
                        **columns("utility_drop", result.utility_drop),
                    }
                )
    return rows


def summarise(measured: Measurements, section: Stability) -> StudyResult:
    """Weigh the agreement of masks and the spread of the effect."""
    design = measured.config
    agreement = _agreement_rows(measured, section)
    random = _random_drop(measured, section, design.subject)
    return StudyResult(
        study=STUDY.name,
        title=STUDY.question,
        claims=(
            _agreement_claim(measured, section, agreement, random),
            _effect_claim(measured, section),
        ),
        tables={"agreement": agreement, "effects": _effect_rows(measured, section)}
        if measured.tabled
        else {},
        shows=(
            "How much of the located set, and of what cutting it does, comes from the choices that "
            "a user makes without thinking: examples, their number, their wording, the recipe."
        ),
        does_not_show=(
            "That weights outside of the overlap do not matter: many sets of weights can have the "
            "same effect, so low agreement with a stable effect means redundancy, not noise alone."
        ),
        settings=section.model_dump(mode="json"),
    )


def _agreement_claim(
    measured: Measurements, section: Stability, rows: list[Row], random: Sample
) -> Claim:
    import numpy as np

    design = measured.config
    draws = [row for row in rows if row["axis"] == DRAWS]
    pairs = [row for row in draws if row["seed"] is None]
    single = draws if len(design.seeds) == 1 else [r for r in draws if r["seed"] is not None]
    shared = _shared(single)
    mean = shared.value
    worst = max(pairs, key=lambda row: row["p_value"])
    p = worst["p_value"]
    by_chance = f"A pair of draws agrees by chance (p = {p:.2g})."
    beyond = "agree far beyond chance, yet " if p < section.p_value else ""
    weighed = weigh(
        Condition(
            beyond_chance("overlap", worst["jaccard"], worst["chance"], p=p, level=section.p_value),
            above=worst["chance"],
            misses=by_chance,
            crosses=by_chance,
        ),
        Condition(
            shared,
            at_least=section.least_overlap,
            misses=f"Draws {beyond}share only {percent(mean)} of their union.",
            crosses=f"Other draws may share less than {percent(section.least_overlap)}.",
        ),
        *_limits(measured, section, _Variant(design.subject, _usual(design, section))),
        supported=f"Two draws share {percent(mean)} of their union.",
        silent=silent(measured, intact_cells(design)),
    )
    return Claim(
        study=STUDY.name,
        claim=AGREEMENT.claim,
        verdict=weighed.verdict,
        effect=shared,
        controls=(
            Interval(
                "Jaccard overlap expected by chance",
                float(np.mean([row["chance"] for row in pairs])),
            ),
            random.interval("drop of harm, random cut of the same size"),
        ),
        rule=_agreement_rule(design, section),
        seeds=design.seeds,
        n=len(single),
        reason=weighed.reason,
        requirements=weighed.requirements,
        counted="pairs of masks",
        about=masks_of(_drawn(design, section)),
    )


def _shared(rows: list[Row]) -> Interval:
    """Return the mean overlap of two draws; the draws of each seed are left out in turn."""
    models = []
    for seed in dict.fromkeys(row["seed"] for row in rows):
        pairs = [row for row in rows if row["seed"] == seed]
        draws = dict.fromkeys(name for row in pairs for name in (row["first"], row["second"]))
        without = [
            fmean(row["jaccard"] for row in pairs if draw not in (row["first"], row["second"]))
            for draw in (draws if len(draws) >= LEAST_ITEMS else ())
        ]
        models.append(LeftOut(fmean(row["jaccard"] for row in pairs), without))
    return jackknife("mean Jaccard overlap of two calibration draws", models)


def _agreement_rule(design: Design, section: Stability) -> str:
    return (
        "The masks of two draws of calibration examples share at least "
        f"{percent(section.least_overlap)} of their union (mean, lower bound, jackknife over "
        f"draws), and every pair agrees beyond chance (p < {section.p_value:g} in every seed). "
        f"{guarded(design)}"
    )


def _effect_claim(measured: Measurements, section: Stability) -> Claim:
    design = measured.config
    random = _random_drop(measured, section, design.subject)
    names = {
        f"{axis}, {label}": variant
        for axis, variants in _weighed(_variations(design, section)).items()
        for label, variant in variants.items()
    }
    drops = [
        effect(measured, cells_of(design, variant.role, variant.cut)).harm_drop.interval(name)
        for name, variant in names.items()
    ]
    weakest = min(drops, key=lambda drop: _number(drop.value))
    variants = dict.fromkeys(names.values())
    roles = dict.fromkeys(variant.role for variant in variants)
    unseen = [silent(measured, cells_of(design, role, None)) for role in roles]
    weighed = weigh(
        *(
            Condition(
                drop,
                at_least=section.harm_drop,
                misses=f"Weakest: {weakest.name}.",
                crosses="The interval crosses the threshold for: {names}.",
            )
            for drop in drops
        ),
        *(limit for variant in variants for limit in _limits(measured, section, variant)),
        supported="The weakest variation still passes.",
        silent=" ".join(dict.fromkeys(reason for reason in unseen if reason)),
    )
    return Claim(
        study=STUDY.name,
        claim=EFFECT.claim,
        verdict=weighed.verdict,
        effect=replace(weakest, name=f"drop of harm, weakest variation ({weakest.name})"),
        controls=(
            Interval(
                "largest drop of harm of all variations",
                max((drop.value for drop in drops if drop.value is not None), default=None),
            ),
            random.interval("drop of harm, random cut of the same size"),
        ),
        rule=(
            f"Every variation at q = {percent(section.fraction)} lowers harm by at least "
            f"{percent(section.harm_drop)} (lower bound). Of each: {guarded(design)}"
        ),
        seeds=design.seeds,
        n=measured.prompts(intact_cells(design), "generation"),
        reason=weighed.reason,
        requirements=weighed.requirements,
        about=masks_of(_cells(design, variants)),
    )


def _number(value: float | None) -> float:
    return float("-inf") if value is None else value


STUDY = Study(
    name="stability",
    question="How stable is the set across draws, sample sizes, wordings, recipes and models?",
    section=Stability,
    stated=(AGREEMENT, EFFECT),
    plan=plan,
    summarise=summarise,
    template=TemplateLines(
        data=("reworded: ./reworded.jsonl      # the same behaviour in other words",),
        targets=("reworded: {data: reworded, skip: 3}",),
        values={"fraction": 1e-5, "paraphrases": ["reworded"]},
    ),
)
