"""Is the set shared across harm types?

Weights are located with one category at a time; every category is measured after each cut.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

from resect.data.load import load_data
from resect.records import Claim, Interval, StudyResult, VerdictWord
from resect.stats import Sample, relative_drop
from resect.studies.cells import Cell, Cut, at_seed, mask_path
from resect.studies.design import RunConfig, Transfer
from resect.studies.effects import cells_of, columns, effect_probes, mean_of
from resect.studies.measurements import Measurements, Row
from resect.studies.study import Study
from resect.studies.weighing import percent

CLAIM = "The weights behind harmful generation are shared across harm types."


def _section(config: RunConfig) -> Transfer:
    return config.studies.transfer or Transfer()


def categories(config: RunConfig) -> tuple[str, ...]:
    """Return the target's categories that are there for every seed."""
    place = config.data[config.targets[config.target].data]
    found = [
        load_data(at_seed(place, seed)).split("calibration").categories for seed in config.seeds
    ]
    return tuple(name for name in found[0] if name and all(name in other for other in found))


def _cut(config: RunConfig, category: str) -> Cut:
    return Cut(config.target, "target", _section(config).fraction, category)


def _benign(config: RunConfig) -> Cut | None:
    """Return the cut of a benign behaviour, the yardstick for mask overlap, where there is one."""
    study = config.studies.specificity
    name = study.benign if study is not None else "benign"
    return Cut(name, "target", _section(config).fraction) if name in config.targets else None


def _random(config: RunConfig) -> Cut:
    return Cut(config.target, "random", _section(config).fraction)


def plan(config: RunConfig) -> list[Cell]:
    """Return intact, one cut a category, the random cut and the benign behaviour's cut."""
    cuts = [None, _random(config), _benign(config)]
    cuts += [_cut(config, category) for category in categories(config)]
    probes = effect_probes(config)
    return [
        cell
        for cut in dict.fromkeys(cuts)
        for cell in cells_of(config, config.subject, cut, probes)
    ]


def _drop(measured: Measurements, cut: Cut | None, category: str) -> Sample:
    config = measured.config
    before = measured.rate(cells_of(config, config.subject, None, ()), "generation", category)
    after = measured.rate(cells_of(config, config.subject, cut, ()), "generation", category)
    return relative_drop(before, after)


def _overlaps(measured: Measurements, names: tuple[str, ...]) -> list[Row]:
    from resect.weights.algebra import chance_overlap
    from resect.weights.mask import Mask

    config = measured.config
    cuts: dict[str, Cut] = {name: _cut(config, name) for name in names}
    if (benign := _benign(config)) is not None:
        cuts[f"benign: {benign.target}"] = benign
    rows: list[Row] = []
    for seed in config.seeds:
        masks = {
            name: Mask.load(mask_path(measured.run, config.subject, seed, cut))
            for name, cut in cuts.items()
        }
        for first, second in combinations(masks, 2):
            found = chance_overlap(masks[first], masks[second])
            rows.append({"seed": seed, "first": first, "second": second, **found})
    pooled: list[Row] = []
    for first, second in combinations(cuts, 2):
        group = [row for row in rows if (row["first"], row["second"]) == (first, second)]
        mean = {key: _mean(group, key) for key in ("jaccard", "expected_jaccard", "enrichment")}
        worst = max(row["p_value"] for row in group)
        pooled.append({"seed": None, "first": first, "second": second, **mean, "p_value": worst})
    return pooled + (rows if len(config.seeds) > 1 else [])


def _mean(rows: list[Row], key: str) -> float:
    return float(sum(row[key] for row in rows)) / len(rows)


def summarise(measured: Measurements) -> StudyResult:
    """Compare what a cut does to its own category and to the others."""
    config = measured.config
    section = _section(config)
    names = categories(config)
    drops = {(a, b): _drop(measured, _cut(config, a), b) for a in names for b in names}
    overlaps = _overlaps(measured, names) if len(names) > 1 else []
    cells = cells_of(config, config.subject, None, ())
    matrix = [
        {
            "source": source,
            "measured": other,
            **columns("harm_drop", sample),
            "n": measured.prompts(cells, "generation", other),
        }
        for (source, other), sample in drops.items()
    ]
    claim = _claim(measured, drops, overlaps)
    return StudyResult(
        study="transfer",
        title=STUDY.question,
        claims=(claim,),
        tables={"matrix": matrix, "overlap": overlaps},
        shows=(
            "How far a cut that was located with one harm type lowers the others, and whether "
            "the sets overlap more than chance, beside their overlap with a benign behaviour."
        ),
        does_not_show=(
            "That the types share a mechanism and not only a surface: answers of one template "
            "share weights too. The specificity study's content-matched control speaks to that."
        ),
        settings=section.model_dump(mode="json"),
    )


def _weigh(
    measured: Measurements, diagonal: Sample, rest: Sample, worst: float
) -> tuple[VerdictWord, str]:
    """Return the verdict and its reason; `worst` is the largest p-value of the overlaps."""
    section = _section(measured.config)
    share = section.share_of_diagonal
    margin = Sample(rest.value - share * diagonal.value, rest.draws - share * diagonal.draws)
    low = margin.interval("margin").low
    if not diagonal.value >= measured.config.least_rate:
        return (
            "not measurable",
            f"The cuts lower their own category by only {percent(diagonal.value)}.",
        )
    if low is not None and low >= 0 and worst < section.p_value:
        return "supported", "Other categories fall with the one that was cut."
    if margin.value >= 0:
        return (
            "inconclusive",
            f"The margin's interval reaches below 0, or an overlap is chance (p = {worst:.2g}).",
        )
    return (
        "not supported",
        f"Other categories fall by {percent(rest.value)}, the own by {percent(diagonal.value)}.",
    )


def _claim(
    measured: Measurements, drops: dict[tuple[str, str], Sample], overlaps: list[Row]
) -> Claim:
    config = measured.config
    section = _section(config)
    own = [sample for (a, b), sample in drops.items() if a == b]
    other = [sample for (a, b), sample in drops.items() if a != b]
    random = _drop(measured, _random(config), "")
    common: dict[str, Any] = {
        "study": "transfer",
        "claim": CLAIM,
        "rule": (
            f"The mean drop in other categories is at least {percent(section.share_of_diagonal)} "
            f"of the mean drop in the own one (lower bound of the difference above 0), and every "
            f"pair of masks overlaps more than chance (p < {section.p_value:g} in every seed)."
        ),
        "seeds": config.seeds,
        "n": measured.prompts(cells_of(config, config.subject, None, ()), "generation"),
    }
    random_control = random.interval("drop of harm, random cut of the same size")
    if len(own) < 2:
        return Claim(
            verdict="not measurable",
            effect=Interval("mean drop in other categories", None),
            controls=(random_control,),
            reason="The target set has fewer than two categories.",
            **common,
        )
    diagonal, rest = mean_of(own), mean_of(other)
    pairs = [row for row in overlaps if row["seed"] is None and "benign: " not in row["second"]]
    benign = [row for row in overlaps if row["seed"] is None and "benign: " in row["second"]]
    worst = max(row["p_value"] for row in pairs)
    verdict, reason = _weigh(measured, diagonal, rest, worst)
    controls = [
        diagonal.interval("mean drop in the own category"),
        random_control,
        Interval("mean Jaccard overlap, pairs of harm types", _mean(pairs, "jaccard")),
    ]
    if benign:
        controls.append(
            Interval(
                "mean Jaccard overlap, harm type and benign behaviour", _mean(benign, "jaccard")
            )
        )
    return Claim(
        verdict=verdict,
        effect=rest.interval("mean drop in other categories"),
        controls=tuple(controls),
        reason=reason,
        **common,
    )


STUDY = Study("transfer", "Is the set shared across harm types?", plan, summarise)
