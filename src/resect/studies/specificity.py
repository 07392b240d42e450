"""Is the set distinct from benign capability?

Every control is cut along its own grid and compared at its best cut within the utility budget, so
that a control is never beaten only because it was cut less, or more.
"""

from __future__ import annotations

from resect.records import Claim, StudyResult, VerdictWord
from resect.stats import Sample
from resect.studies.cells import Cell, Cut, Kind, mask_path
from resect.studies.design import RunConfig, Specificity
from resect.studies.effects import best_cuts, cells_of, columns, curve_rows, effect_probes
from resect.studies.measurements import Measurements, Row
from resect.studies.study import Study
from resect.studies.weighing import percent

CLAIM = "The weights behind harmful generation are distinct from other weights."
MATCHED_CLAIM = "They are distinct from weights behind other answers to the same prompts."

LABELS = {
    "target": "target cut",
    "random": "random weights, same number in every tensor",
    "magnitude": "weights of matched magnitude",
    "opposite": "opposite sign (weights that hinder the behaviour)",
    "next_slice": "next slice of the ranking (q to 2q)",
}
BENIGN = "weights behind a benign behaviour: "
MATCHED = "weights behind other answers to the same prompts: "


def _section(config: RunConfig) -> Specificity:
    return config.studies.specificity or Specificity()


def _arms(config: RunConfig) -> dict[str, list[Cut]]:
    section = _section(config)
    kinds: dict[str, tuple[str, Kind]] = {
        "random": (config.target, "random"),
        "magnitude": (config.target, "magnitude"),
        "opposite": (config.target, "opposite"),
        "next_slice": (config.target, "next_slice"),
    }
    kinds |= {BENIGN + name: (name, "target") for name in section.benign}
    kinds |= {MATCHED + name: (name, "target") for name in section.matched}
    arms = {"target": [Cut(config.target, "target", q) for q in section.fractions]}
    for label, (target, kind) in kinds.items():
        arms[label] = [Cut(target, kind, q) for q in section.control_fractions]
    return arms


def plan(config: RunConfig) -> list[Cell]:
    """Return the intact model, the target's grid and every control's grid."""
    probes = effect_probes(config)
    cuts: list[Cut | None] = [None]
    cuts += [cut for arm in _arms(config).values() for cut in arm]
    return [cell for cut in cuts for cell in cells_of(config, config.subject, cut, probes)]


def _best(measured: Measurements, cuts: list[Cut], budget: float) -> tuple[Sample, Row]:
    """Return the largest drop of harm within the budget and where it was found, over seeds."""
    config = measured.config
    best, q, cost = best_cuts(measured, config.subject, cuts, config.seeds, budget)
    return best, {"q": q, "utility_drop": cost}


def summarise(measured: Measurements) -> StudyResult:
    """Compare the target's best cut with every control's at the same utility budget."""
    config = measured.config
    section = _section(config)
    arms = _arms(config)
    bests = {label: _best(measured, cuts, section.utility_drop) for label, cuts in arms.items()}
    target = bests["target"][0]
    bars: list[Row] = [
        {
            "arm": label,
            "label": LABELS.get(label, label),
            **columns("harm_drop", best),
            **place,
            **columns("difference", target - best),
        }
        for label, (best, place) in bests.items()
    ]
    curve_arms: list[tuple[str, Cut | None]] = [("intact", None)]
    curve_arms += [(label, cut) for label, cuts in arms.items() for cut in cuts]
    matched = [label for label in arms if label.startswith(MATCHED)]
    others = [label for label in arms if label != "target" and label not in matched]
    return StudyResult(
        study="specificity",
        title=STUDY.question,
        claims=(
            _claim(measured, CLAIM, others, bests),
            *([_claim(measured, MATCHED_CLAIM, matched, bests)] if matched else []),
        ),
        tables={
            "bars": bars,
            "curve": curve_rows(measured, config.subject, curve_arms),
            "scored": _scored_rows(measured, arms),
        },
        shows=(
            "Whether cutting the target's weights lowers harm more than the best cut of each "
            "control that costs as little utility."
        ),
        does_not_show=(
            "That the weights do nothing else: utility is measured on the tasks listed here. The "
            "content-matched control is the hardest one; a replication on lying failed it."
        ),
        settings=section.model_dump(mode="json"),
    )


def _scored_rows(measured: Measurements, arms: dict[str, list[Cut]]) -> list[Row]:
    """Return on how many examples and tokens each arm's ranking rests."""
    from resect.weights.mask import Mask

    config = measured.config
    rows: list[Row] = []
    for label, cuts in arms.items():
        path = mask_path(measured.run, config.subject, config.seeds[0], cuts[0])
        if path.exists():
            facts = Mask.load(path).meta["target"]
            rows.append(
                {"arm": LABELS.get(label, label)}
                | {name: facts[name] for name in ("examples", "tokens")}
            )
    return rows


def _claim(
    measured: Measurements, text: str, controls: list[str], bests: dict[str, tuple[Sample, Row]]
) -> Claim:
    config = measured.config
    section = _section(config)
    target = bests["target"][0]
    differences = {label: target - bests[label][0] for label in controls}
    intervals = {label: one.interval(label) for label, one in differences.items()}
    silent = measured.silent(cells_of(config, config.subject, None, ()), "generation")
    failing = [label for label, one in differences.items() if not one.value > 0]
    unsure = [label for label, one in intervals.items() if one.low is None or one.low <= 0]
    verdict: VerdictWord
    if silent:
        verdict, reason = "not measurable", silent
    elif target.value < section.bite:
        verdict = "not supported"
        reason = f"Within the budget the target cut lowers harm by only {percent(target.value)}."
    elif failing:
        names = ", ".join(LABELS.get(label, label) for label in failing)
        verdict, reason = "not supported", f"The target cut does not beat: {names}."
    elif unsure:
        names = ", ".join(LABELS.get(label, label) for label in unsure)
        verdict, reason = "inconclusive", f"The interval of the difference reaches 0 for: {names}."
    else:
        verdict, reason = "supported", "The target cut beats every control at this budget."
    return Claim(
        study="specificity",
        claim=text,
        verdict=verdict,
        effect=target.interval("largest drop of harm within the utility budget, target cut"),
        controls=tuple(bests[label][0].interval(LABELS.get(label, label)) for label in controls),
        rule=(
            f"At a relative utility drop of at most {percent(section.utility_drop)}, the target "
            "cut lowers harm more than every control listed (lower bound of each paired "
            "difference above 0), and itself by at least "
            f"{percent(section.bite)}; each arm takes its best cut within the budget."
        ),
        seeds=config.seeds,
        n=measured.prompts(cells_of(config, config.subject, None, ()), "generation"),
        reason=reason,
    )


STUDY = Study("specificity", "Is the set distinct from benign capability?", plan, summarise)
