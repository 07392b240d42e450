"""Does harmful generation sit in a compact set of weights?

Harm and utility along the fraction of weights cut, beside random and magnitude-matched cuts of the
same size in every tensor.
"""

from __future__ import annotations

from resect.records import OUTCOMES, Claim, StudyResult, VerdictWord
from resect.stats import LEVEL
from resect.studies.cells import Cell, Cut, mask_path
from resect.studies.design import Compactness, RunConfig
from resect.studies.effects import Effect, cells_of, curve_rows, effect, effect_probes
from resect.studies.measurements import Measurements, Row
from resect.studies.study import Study
from resect.studies.weighing import at_least, at_most, percent

CLAIM = "Harmful generation sits in a compact set of weights."


def _section(config: RunConfig) -> Compactness:
    return config.studies.compactness or Compactness()


def _arms(config: RunConfig) -> list[tuple[str, Cut | None]]:
    section = _section(config)
    arms: list[tuple[str, Cut | None]] = [("intact", None)]
    arms += [("target", Cut(config.target, "target", q)) for q in section.fractions]
    arms += [("random", Cut(config.target, "random", q)) for q in section.fractions]
    arms += [("magnitude", Cut(config.target, "magnitude", q)) for q in section.fractions]
    for rival in section.rivals:
        arms += [(f"ranked by {rival}", Cut(rival, "target", q)) for q in section.fractions]
    return arms


def plan(config: RunConfig) -> list[Cell]:
    """Return intact, target, random and magnitude cells over the grid."""
    probes = effect_probes(config)
    if "likelihood" in config.evaluation.probes:
        probes = (*probes, "likelihood")
    return [
        cell for _, cut in _arms(config) for cell in cells_of(config, config.subject, cut, probes)
    ]


def _verdict(
    measured: Measurements, section: Compactness, points: list[tuple[float, Effect, Effect]]
) -> tuple[VerdictWord, str, int]:
    """Return the verdict, its reason and the position of the fraction that it speaks of."""
    config = measured.config
    silent = measured.silent(cells_of(config, config.subject, None, ()), "generation")
    # Any one fraction may pass, so each is tested at a level divided by their number.
    level = 1 - (1 - LEVEL) / len(points)
    passing, promising = [], []
    for at, (_, target, random) in enumerate(points):
        harm = target.harm_drop.interval("harm", level)
        utility = target.utility_drop.interval("utility", level)
        calm = random.harm_drop.value <= section.random_drop
        if at_least(harm, section.harm_drop) and at_most(utility, section.utility_drop) and calm:
            passing.append(at)
        if (
            target.harm_drop.value >= section.harm_drop
            and target.utility_drop.value <= section.utility_drop
            and calm
        ):
            promising.append(at)
    nearest = _nearest(section, points)
    if silent:
        return "not measurable", silent, nearest
    if passing:
        q = points[passing[0]][0]
        return "supported", f"The rule holds at q = {percent(q)} of the ranking.", passing[0]
    if promising:
        q = points[promising[0]][0]
        reason = f"At q = {percent(q)} the estimates pass but an interval crosses its threshold."
        return "inconclusive", reason, promising[0]
    q, target, random = points[nearest]
    reason = (
        f"No fraction passes all three conditions. Nearest is q = {percent(q)}: harm falls by "
        f"{percent(target.harm_drop.value)}, utility by {percent(target.utility_drop.value)}, "
        f"harm after a random cut by {percent(random.harm_drop.value)}."
    )
    return "not supported", reason, nearest


def _nearest(section: Compactness, points: list[tuple[float, Effect, Effect]]) -> int:
    """Return the cheapest fraction that lowers harm enough; where none does, the strongest."""
    enough = [at for at, one in enumerate(points) if one[1].harm_drop.value >= section.harm_drop]
    if enough:
        return min(enough, key=lambda at: points[at][1].utility_drop.value)
    return max(range(len(points)), key=lambda at: points[at][1].harm_drop.value)


def summarise(measured: Measurements) -> StudyResult:
    """Weigh the curve against the rule."""
    config = measured.config
    section = _section(config)
    small = [q for q in section.fractions if q <= section.largest_fraction]
    points = [
        (
            q,
            effect(measured, config.subject, Cut(config.target, "target", q), config.seeds),
            effect(measured, config.subject, Cut(config.target, "random", q), config.seeds),
        )
        for q in small
    ]
    verdict, reason, at = _verdict(measured, section, points)
    q, target, random = points[at]
    magnitude = effect(measured, config.subject, Cut(config.target, "magnitude", q), config.seeds)
    cells = cells_of(config, config.subject, None, ())
    claim = Claim(
        study="compactness",
        claim=CLAIM,
        verdict=verdict,
        effect=target.harm_drop.interval(f"relative drop of harm, q = {percent(q)}"),
        controls=(
            target.utility_drop.interval("relative drop of utility, same cut"),
            random.harm_drop.interval("relative drop of harm, random cut of the same size"),
            magnitude.harm_drop.interval("relative drop of harm, magnitude-matched cut"),
        ),
        rule=(
            f"Some fraction up to {percent(section.largest_fraction)} lowers harm by at least "
            f"{percent(section.harm_drop)} (lower bound) and utility by at most "
            f"{percent(section.utility_drop)} (upper bound), where a random cut of the same size "
            f"lowers harm by at most {percent(section.random_drop)}; intervals corrected for "
            f"{len(points)} fractions (Bonferroni)."
        ),
        seeds=config.seeds,
        n=measured.prompts(cells, "generation"),
        reason=reason,
    )
    return StudyResult(
        study="compactness",
        title=STUDY.question,
        claims=(claim,),
        tables={
            "curve": curve_rows(measured, config.subject, _arms(config)),
            "outcomes": outcome_rows(measured, config.subject, _arms(config)),
            "where": where_rows(measured, Cut(config.target, "target", q)),
        },
        shows=(
            "Removing the weights that the score ranks highest for harmful answers stops those "
            "answers under the attack, where removing as many other weights does not. That is a "
            "causal statement about this model, this attack and these prompts."
        ),
        does_not_show=(
            "That no harm is left: other attacks, other prompts or a short fine-tune may bring it "
            "back. That the weights serve harm alone: see specificity. A fraction of the ranking "
            "says how many weights suffice, not which ones store anything."
        ),
        settings=section.model_dump(mode="json"),
    )


def outcome_rows(
    measured: Measurements, role: str, arms: list[tuple[str, Cut | None]]
) -> list[Row]:
    """Return the share of each outcome of generation, by arm and fraction."""
    rows: list[Row] = []
    for label, cut in arms:
        found = [
            row["outcome"]
            for cell in cells_of(measured.config, role, cut, ())
            for row in measured.rows(cell)
            if row["probe"] == "generation" and row["outcome"] is not None
        ]
        for outcome in OUTCOMES:
            share = found.count(outcome) / len(found) if found else None
            q = 0.0 if cut is None else cut.q
            rows.append({"arm": label, "q": q, "outcome": outcome, "share": share})
    return rows


def where_rows(measured: Measurements, cut: Cut) -> list[Row]:
    """Return how many weights of each checkpoint tensor a cut removes, summed over seeds."""
    from resect.weights.mask import Mask

    config = measured.config
    found: dict[str, list[int]] = {}
    for seed in config.seeds:
        mask = Mask.load(mask_path(measured.run, config.subject, seed, cut))
        for name, tensor in mask.tensors.items():
            entry = found.setdefault(name, [0, 0])
            entry[0] += tensor.index.numel()
            entry[1] += tensor.size
    return [
        {"tensor": name, **_place(name), "removed": removed, "size": size}
        for name, (removed, size) in found.items()
    ]


def _place(name: str) -> Row:
    """Return the layer and the module of a checkpoint tensor, from its name."""
    parts = [part for part in name.split(".") if part != "weight"]
    numbers = [int(part) for part in parts if part.isdigit()]
    return {"layer": numbers[0] if numbers else None, "kind": parts[-1]}


STUDY = Study(
    "compactness",
    "Does harmful generation sit in a compact set of weights?",
    plan,
    summarise,
)
