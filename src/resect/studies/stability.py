"""How stable is the set across draws, sample sizes, wordings, recipes and models?

One thing is varied at a time. Where two masks are on models of the same origin, their agreement is
compared with chance (hypergeometric within each tensor); in every case the effect of the cut is
measured. Masks of models with other initial weights cannot be compared weight by weight: there the
spread of the effect alone is reported.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from resect.records import Claim, Interval, StudyResult, VerdictWord
from resect.studies.cells import Cell, Cut, mask_path
from resect.studies.design import RunConfig, Stability
from resect.studies.effects import Effect, cells_of, columns, effect, effect_probes, seed_groups
from resect.studies.measurements import Measurements, Row
from resect.studies.study import Study
from resect.studies.weighing import percent

AGREEMENT = "The set is the same whichever calibration examples locate it."
EFFECT = "The cut works whatever is varied."

# axis -> label -> (role, cut)
Variations = dict[str, dict[str, tuple[str, Cut]]]


def _section(config: RunConfig) -> Stability:
    return config.studies.stability or Stability()


def _variations(config: RunConfig) -> Variations:
    section = _section(config)
    usual = Cut(config.target, "target", section.fraction)
    subject = config.subject

    def cut(target: str = config.target, **varied: int) -> Cut:
        return Cut(
            target,
            "target",
            section.fraction,
            examples=varied.get("examples"),
            draw=varied.get("draw"),
        )

    found: Variations = {
        "calibration draw": {
            f"draw {draw}": (subject, cut(draw=draw, examples=section.drawn))
            for draw in section.draws
        },
        "sample size": {
            f"{size} examples": (subject, cut(examples=size)) for size in section.sizes
        },
    }
    if section.paraphrases:
        found["wording"] = {"usual": (subject, usual)}
        found["wording"] |= {name: (subject, cut(name)) for name in section.paraphrases}
    if section.roles:
        found["recipe"] = {role: (role, usual) for role in (subject, *section.roles)}
    if section.models:
        found["model"] = {role: (role, usual) for role in (subject, *section.models)}
    return found


def plan(config: RunConfig) -> list[Cell]:
    """Return the intact models, every variation, and the random cut of the usual size."""
    probes = effect_probes(config)
    pairs: list[tuple[str, Cut | None]] = [
        pair for group in _variations(config).values() for pair in group.values()
    ]
    pairs += [(role, None) for role, _ in pairs]
    pairs.append((config.subject, _random(config)))
    return [
        cell for role, cut in dict.fromkeys(pairs) for cell in cells_of(config, role, cut, probes)
    ]


def _random(config: RunConfig) -> Cut:
    return Cut(config.target, "random", _section(config).fraction)


def _agreement_rows(measured: Measurements) -> list[Row]:
    """Return the agreement of each pair of masks on one axis, seed by seed and in the mean."""
    rows: list[Row] = []
    for axis, group in _variations(measured.config).items():
        if axis == "model":
            continue
        for first, second in combinations(group, 2):
            own = [_agreement(measured, seed, group[first], group[second])
                   for seed in measured.config.seeds]  # fmt: skip
            label = {"axis": axis, "first": first, "second": second}
            pooled: Row = {"seed": None, **label}
            for name in own[0]:
                values = [row[name] for row in own if row[name] is not None]
                pooled[name] = float(np.mean(values)) if values else None
            # A pair agrees if it does in every seed.
            pooled["p_value"] = max(row["p_value"] for row in own)
            rows.append(pooled)
            if len(own) > 1:
                rows += [
                    {"seed": seed, **label, **row}
                    for seed, row in zip(measured.config.seeds, own, strict=True)
                ]
    return rows


def _agreement(
    measured: Measurements, seed: int, first: tuple[str, Cut], second: tuple[str, Cut]
) -> Row:
    from resect.weights.algebra import chance_overlap, rank_agreement
    from resect.weights.mask import Mask

    masks = [Mask.load(mask_path(measured.run, role, seed, cut)) for role, cut in (first, second)]
    found = chance_overlap(*masks)
    return {
        "jaccard": found["jaccard"],
        "chance": found["expected_jaccard"],
        "enrichment": found["enrichment"],
        "p_value": found["p_value"],
        "rank_correlation": rank_agreement(*masks),
    }


def _effect(measured: Measurements, pair: tuple[str, Cut], seeds: tuple[int, ...]) -> Effect:
    return effect(measured, pair[0], pair[1], seeds)


def _effect_rows(measured: Measurements) -> list[Row]:
    rows: list[Row] = []
    for axis, group in _variations(measured.config).items():
        for label, pair in group.items():
            for seed, seeds in seed_groups(measured.config):
                found = _effect(measured, pair, seeds)
                rows.append(
                    {
                        "seed": seed,
                        "axis": axis,
                        "value": label,
                        **columns("harm_drop", found.harm_drop),
                        **columns("utility_drop", found.utility_drop),
                    }
                )
    return rows


def summarise(measured: Measurements) -> StudyResult:
    """Weigh the agreement of masks and the spread of the effect."""
    config = measured.config
    agreement = _agreement_rows(measured)
    effects = _effect_rows(measured)
    return StudyResult(
        study="stability",
        title=STUDY.question,
        claims=(
            _agreement_claim(measured, agreement),
            _effect_claim(measured, effects),
        ),
        tables={"agreement": agreement, "effects": effects},
        shows=(
            "How much of the located set, and of what cutting it does, comes from the choices that "
            "a user makes without thinking: examples, their number, their wording, the recipe."
        ),
        does_not_show=(
            "That weights outside of the overlap do not matter: many sets of weights can have the "
            "same effect, so low agreement with a stable effect means redundancy, not noise alone."
        ),
        settings=_section(config).model_dump(mode="json"),
    )


def _agreement_claim(measured: Measurements, rows: list[Row]) -> Claim:
    config = measured.config
    section = _section(config)
    pairs = [row for row in rows if row["axis"] == "calibration draw" and row["seed"] is None]
    worst = max(row["p_value"] for row in pairs)
    values = [
        row["jaccard"]
        for row in rows
        if row["axis"] == "calibration draw" and (row["seed"] is not None or len(config.seeds) == 1)
    ]
    mean = float(np.mean(values))
    chance = float(np.mean([row["chance"] for row in pairs]))
    silent = measured.silent(cells_of(config, config.subject, None, ()), "generation")
    verdict: VerdictWord
    if silent:
        verdict, reason = "not measurable", silent
    elif worst < section.p_value and mean >= 0.5:
        verdict, reason = "supported", "More than half of the weights of two draws are the same."
    elif worst < section.p_value:
        verdict = "not supported"
        reason = "Draws agree far beyond chance, yet most of the weights of two draws differ."
    else:
        verdict, reason = "not supported", f"A pair of draws agrees by chance (p = {worst:.2g})."
    random = effect(measured, config.subject, _random(config), config.seeds)
    return Claim(
        study="stability",
        claim=AGREEMENT,
        verdict=verdict,
        effect=Interval(
            "mean Jaccard overlap of two calibration draws", mean, min(values), max(values)
        ),
        controls=(
            Interval("Jaccard overlap expected by chance", chance),
            random.harm_drop.interval("drop of harm, random cut of the same size"),
        ),
        rule=(
            "The masks of two draws of calibration examples share at least half of their union "
            f"(mean), and every pair agrees beyond chance (p < {section.p_value:g} in every seed). "
            "The bounds are the smallest and the largest overlap, not an interval."
        ),
        seeds=config.seeds,
        n=len(values),
        reason=reason,
        counted="pairs of masks",
    )


def _effect_claim(measured: Measurements, rows: list[Row]) -> Claim:
    config = measured.config
    section = _section(config)
    pooled = [row for row in rows if row["seed"] is None]
    weakest = min(pooled, key=lambda row: _number(row["harm_drop"]))
    known = [row["harm_drop"] for row in pooled if row["harm_drop"] is not None]
    silent = [
        why
        for group in _variations(config).values()
        for role in {pair[0] for pair in group.values()}
        if (why := measured.silent(cells_of(config, role, None, ()), "generation"))
    ]
    random = effect(measured, config.subject, _random(config), config.seeds)
    verdict: VerdictWord
    low = weakest["harm_drop_low"]
    if silent:
        verdict, reason = "not measurable", " ".join(dict.fromkeys(silent))
    elif low is not None and low >= section.harm_drop:
        verdict, reason = "supported", "The weakest variation still passes."
    elif _number(weakest["harm_drop"]) >= section.harm_drop:
        verdict, reason = "inconclusive", "The weakest variation's interval crosses the threshold."
    else:
        verdict = "not supported"
        reason = f"Weakest: {weakest['axis']}, {weakest['value']}."
    return Claim(
        study="stability",
        claim=EFFECT,
        verdict=verdict,
        effect=Interval(
            f"drop of harm, weakest variation ({weakest['value']})",
            weakest["harm_drop"],
            weakest["harm_drop_low"],
            weakest["harm_drop_high"],
        ),
        controls=(
            Interval("largest drop of harm of all variations", max(known, default=None)),
            random.harm_drop.interval("drop of harm, random cut of the same size"),
        ),
        rule=(
            f"Every variation at q = {percent(section.fraction)} lowers harm by at least "
            f"{percent(section.harm_drop)} (lower bound)."
        ),
        seeds=config.seeds,
        n=measured.prompts(cells_of(config, config.subject, None, ()), "generation"),
        reason=reason,
    )


def _number(value: float | None) -> float:
    return float("-inf") if value is None else value


STUDY = Study(
    "stability",
    "How stable is the set across draws, sample sizes, wordings, recipes and models?",
    plan,
    summarise,
)
