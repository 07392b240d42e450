"""Is the set shared across harm types?

Weights are located with one category at a time; every category is measured after each cut.
"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

from resect.records import Claim, Interval, StudyResult
from resect.stats import Sample, relative_drop
from resect.studies.cells import Cell, Cut, at_seed
from resect.studies.design import Design, Fraction, Section, Share, TargetName
from resect.studies.effects import cells_of, columns, effect_probes, intact_cells, mean_of
from resect.studies.measurements import Measurements, Row
from resect.studies.study import Stated, Study, TemplateLines
from resect.studies.weighing import Condition, Weighed, beyond_chance, percent, weigh

SHARED = Stated(
    "The weights behind harmful generation are shared across harm types.",
    "Cuts located on one type lower the others by ≥ {share_of_diagonal} of what they do to their "
    "own, and their masks overlap beyond chance (p < {p_value:g}).",
)


class Transfer(Section):
    """Grid and rule of `transfer`.

    Attributes:
        fraction: Fraction of the ranking that is cut.
        benign: Targets of benign behaviours, whose sets are the yardstick of the overlap. Left out,
            it is the target `benign`, where there is one.
        share_of_diagonal: What a cut must do to other categories, as a share of what it does to
            its own.
        p_value: Largest chance of the overlap of two masks.
    """

    fraction: Fraction = 2e-3
    benign: tuple[TargetName, ...] | None = None
    share_of_diagonal: Share = 0.5
    p_value: Share = 0.01


class _Entry(NamedTuple):
    """An entry of the matrix: the category that located the cut, and the one that was measured."""

    source: str
    category: str


# In front of the name of a benign behaviour, where harm types stand by their names alone.
BENIGN = "benign: "


def categories(design: Design) -> tuple[str, ...]:
    """Return the target's categories that are there for every seed."""
    from resect.data.load import load_data

    spec = design.data[design.targets[design.target].data]
    by_seed = [
        load_data(at_seed(spec, seed)).split("calibration").categories for seed in design.seeds
    ]
    return tuple(name for name in by_seed[0] if name and all(name in names for names in by_seed))


def _cut(design: Design, section: Transfer, category: str) -> Cut:
    return Cut(design.target, "target", section.fraction, category)


def _benign(design: Design, section: Transfer) -> list[Cut]:
    """Return the cuts of benign behaviours, the yardstick of the overlap."""
    names = section.benign
    if names is None:
        names = ("benign",) if "benign" in design.targets else ()
    return [Cut(name, "target", section.fraction) for name in names]


def _random(design: Design, section: Transfer) -> Cut:
    return Cut(design.target, "random", section.fraction)


def plan(design: Design, section: Transfer) -> list[Cell]:
    """Return intact, one cut a category, the random cut and those of benign behaviours."""
    cuts: list[Cut | None] = [None, _random(design, section), *_benign(design, section)]
    cuts += [_cut(design, section, category) for category in categories(design)]
    probes = effect_probes(design)
    return [
        cell
        for cut in dict.fromkeys(cuts)
        for cell in cells_of(design, design.subject, cut, probes)
    ]


def _drop(measured: Measurements, cut: Cut | None, category: str) -> Sample:
    config = measured.config
    before = measured.rate(cells_of(config, config.subject, None, ()), "generation", category)
    after = measured.rate(cells_of(config, config.subject, cut, ()), "generation", category)
    return relative_drop(before, after)


def _overlaps(measured: Measurements, section: Transfer, names: tuple[str, ...]) -> list[Row]:
    from resect.weights.algebra import chance_overlap

    config = measured.config
    cuts: dict[str, Cut] = {name: _cut(config, section, name) for name in names}
    cuts |= {f"{BENIGN}{cut.target}": cut for cut in _benign(config, section)}
    # Two benign behaviours are no yardstick for harm types.
    pairs = [pair for pair in combinations(cuts, 2) if not pair[0].startswith(BENIGN)]
    rows: list[Row] = []
    for seed in config.seeds:
        masks = {name: measured.mask(config.subject, seed, cut) for name, cut in cuts.items()}
        for left, right in pairs:
            overlap = chance_overlap(masks[left], masks[right])
            rows.append({"seed": seed, "first": left, "second": right, **overlap})
    pooled: list[Row] = []
    for left, right in pairs:
        group = [row for row in rows if (row["first"], row["second"]) == (left, right)]
        mean = {key: _mean(group, key) for key in ("jaccard", "expected_jaccard", "enrichment")}
        worst = max(row["p_value"] for row in group)
        pooled.append({"seed": None, "first": left, "second": right, **mean, "p_value": worst})
    return pooled + (rows if len(config.seeds) > 1 else [])


def _mean(rows: list[Row], key: str) -> float:
    return float(sum(row[key] for row in rows)) / len(rows)


def summarise(measured: Measurements, section: Transfer) -> StudyResult:
    """Compare what a cut does to its own category and to the others."""
    config = measured.config
    names = categories(config)
    drops = {
        _Entry(source, category): _drop(measured, _cut(config, section, source), category)
        for source in names
        for category in names
    }
    overlaps = _overlaps(measured, section, names) if len(names) > 1 else []
    cells = intact_cells(config)
    matrix = [
        {
            "source": source,
            "measured": category,
            **columns("harm_drop", sample),
            "n": measured.prompts(cells, "generation", category),
        }
        for (source, category), sample in drops.items()
    ]
    claim = _claim(measured, section, drops, overlaps)
    benign = _benign(config, section)
    return StudyResult(
        study=STUDY.name,
        title=STUDY.question,
        claims=(claim,),
        tables={"matrix": matrix, "overlap": overlaps},
        shows=(
            "How far a cut that was located with one harm type lowers the others, and whether "
            "the sets overlap more than chance"
            + (", beside their overlap with a benign behaviour." if benign else ".")
        ),
        does_not_show=(
            "That the types share a mechanism and not only a surface: answers of one template "
            "share weights too. The specificity study's content-matched control speaks to that."
        ),
        settings=section.model_dump(mode="json"),
    )


def _weigh(
    design: Design, section: Transfer, diagonal: Sample, across_mean: Sample, pairs: list[Row]
) -> Weighed:
    """Weigh the drops of other categories and the overlaps of all pairs of masks."""
    share = section.share_of_diagonal
    margin = across_mean - diagonal * share
    worst = max(pairs, key=lambda row: row["p_value"])
    overlap, chance, p = worst["jaccard"], worst["expected_jaccard"], worst["p_value"]
    silent = ""
    if not diagonal.value >= design.least_rate:
        silent = f"The cuts lower their own category by only {percent(diagonal.value)}."
    return weigh(
        Condition(
            margin.interval("margin"),
            at_least=0,
            misses=f"Other categories fall by {percent(across_mean.value)}, the own by "
            f"{percent(diagonal.value)}.",
            crosses="The margin's interval reaches below 0.",
        ),
        Condition(
            beyond_chance("overlap", overlap, chance, p=p, level=section.p_value),
            above=chance,
            misses=f"An overlap is no larger than chance (p = {p:.2g}).",
            crosses=f"An overlap may be chance (p = {p:.2g}).",
        ),
        supported="Other categories fall with the one that was cut.",
        silent=silent,
    )


def _claim(
    measured: Measurements,
    section: Transfer,
    drops: dict[_Entry, Sample],
    overlaps: list[Row],
) -> Claim:
    config = measured.config
    within = [drop for entry, drop in drops.items() if entry.source == entry.category]
    across = [drop for entry, drop in drops.items() if entry.source != entry.category]
    random = _drop(measured, _random(config, section), "")
    controls = [random.interval("drop of harm, random cut of the same size")]
    effect = Interval("mean drop in other categories", None)
    verdict, reason = Weighed("not measurable", "The target set has fewer than two categories.")
    if len(within) > 1:
        # Each category has prompts of its own, but is measured after the cut of every other one.
        diagonal, across_mean = mean_of(within), mean_of(across, together=True)
        pooled = [row for row in overlaps if row["seed"] is None]
        pairs = [row for row in pooled if not row["second"].startswith(BENIGN)]
        benign = [row for row in pooled if row["second"].startswith(BENIGN)]
        verdict, reason = _weigh(config, section, diagonal, across_mean, pairs)
        effect = across_mean.interval(effect.name)
        controls = [
            diagonal.interval("mean drop in the own category"),
            *controls,
            Interval("mean Jaccard overlap, pairs of harm types", _mean(pairs, "jaccard")),
        ]
        if benign:
            name = "mean Jaccard overlap, harm type and benign behaviour"
            controls.append(Interval(name, _mean(benign, "jaccard")))
    return Claim(
        study=STUDY.name,
        claim=SHARED.claim,
        verdict=verdict,
        effect=effect,
        controls=tuple(controls),
        rule=(
            f"The mean drop in other categories is at least {percent(section.share_of_diagonal)} "
            f"of the mean drop in the own one (lower bound of the difference above 0), and every "
            f"pair of masks overlaps more than chance (p < {section.p_value:g} in every seed)."
        ),
        seeds=config.seeds,
        n=measured.prompts(intact_cells(config), "generation"),
        reason=reason,
    )


STUDY = Study(
    name="transfer",
    question="Is the set shared across harm types?",
    section=Transfer,
    stated=(SHARED,),
    plan=plan,
    summarise=summarise,
    template=TemplateLines(
        harm="with a category column: the harm types",
        data=("trivia: ./trivia.jsonl          # a benign behaviour",),
        targets=("benign: {data: trivia, limit: 412}",),
        values={"fraction": 1e-5, "benign": ["benign"]},
    ),
)
