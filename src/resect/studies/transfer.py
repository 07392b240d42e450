"""Is the set shared across harm types?

Weights are located with one category at a time; every category is measured after each cut. Sets of
any two behaviours overlap more than chance, so that an overlap is weighed against that with benign
behaviours, and what a cut does to other types against cuts of swapped labels (`permutation`).
"""

from __future__ import annotations

from itertools import combinations
from typing import Annotated, NamedTuple

from pydantic import Field

from resect.records import Claim, Interval, StudyResult
from resect.stats import LEAST_ITEMS, LeftOut, Sample, jackknife, relative_drop
from resect.studies.cells import Cell, Cut, at_seed, masks_of
from resect.studies.design import FRACTION, Design, Fraction, Section, Share, TargetName
from resect.studies.effects import cells_of, columns, effect_probes, intact_cells, mean_of
from resect.studies.guard import guard, guarded, silent
from resect.studies.measurements import Measurements, Row
from resect.studies.permutation import Permuted, permuted_cuts
from resect.studies.study import Stated, Study, TemplateLines
from resect.studies.weighing import Condition, Weighed, percent, weigh

SHARED = Stated(
    "The weights behind harmful generation are shared across harm types.",
    "Cuts located on one type lower the others by ≥ {share_of_diagonal} of what they do to their "
    "own, within the guard; their masks overlap more with each other than with those of benign "
    "behaviours; swapped labels do as much with p ≤ {p_value:g}.",
)


class Transfer(Section):
    """Grid and rule of `transfer`.

    Attributes:
        fraction: Fraction of the ranking that is cut.
        benign: Targets of benign behaviours, whose sets are the yardstick of the overlap. Left out,
            it is the target `benign`, where there is one.
        share_of_diagonal: What a cut must do to other categories, as a share of what it does to
            its own.
        bite: Cuts that lower their own category by less have found nothing that could be shared.
        permutations: How often labels are swapped within pairs, where the target has a contrast.
        p_value: Largest p-value of that permutation test.
    """

    fraction: Fraction = FRACTION
    benign: tuple[TargetName, ...] | None = None
    share_of_diagonal: Share = 0.5
    bite: Share = 0.2
    permutations: Annotated[int, Field(ge=0)] = 0
    p_value: Share = 0.05


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
    cuts += permuted_cuts(design, section.permutations, (section.fraction,))
    probes = effect_probes(design)
    return [
        cell
        for cut in dict.fromkeys(cuts)
        for cell in cells_of(design, design.subject, cut, probes)
    ]


def _drop(measured: Measurements, cut: Cut | None, category: str) -> Sample:
    config = measured.config
    before = measured.rate(cells_of(config, config.subject, None), "generation", category)
    after = measured.rate(cells_of(config, config.subject, cut), "generation", category)
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
        tables={"matrix": matrix, "overlap": overlaps} if measured.tabled else {},
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


def _excess(measured: Measurements, rows: list[Row]) -> Interval | None:
    """Return how much more harm types overlap with each other than with benign behaviours.

    Harm types are what is left out in turn, so that the interval is for other types like them.
    None without benign behaviours.
    """
    seeds = measured.config.seeds
    models = []
    for seed in seeds:
        of_seed = [row for row in rows if row["seed"] == (None if len(seeds) == 1 else seed)]
        benign = [row for row in of_seed if row["second"].startswith(BENIGN)]
        harmful = [row for row in of_seed if not row["second"].startswith(BENIGN)]
        if not benign or not harmful:
            return None
        types = dict.fromkeys(row["first"] for row in benign)
        without = [
            _mean([row for row in harmful if name not in (row["first"], row["second"])], "jaccard")
            - _mean([row for row in benign if row["first"] != name], "jaccard")
            for name in (types if len(types) >= LEAST_ITEMS else ())
        ]
        models.append(LeftOut(_mean(harmful, "jaccard") - _mean(benign, "jaccard"), without))
    return jackknife("overlap of harm types less that with benign behaviours", models)


def _permuted(
    measured: Measurements, section: Transfer, names: tuple[str, ...], across: Sample
) -> Permuted | None:
    """Return what cuts of swapped labels do to the categories, as `across` is of the true ones."""
    cuts = permuted_cuts(measured.config, section.permutations, (section.fraction,))[1:]
    if not cuts:
        return None
    drops = [mean_of([_drop(measured, cut, category) for category in names]).value for cut in cuts]
    return Permuted(across.value, tuple(drops))


def _weigh(
    measured: Measurements,
    section: Transfer,
    drops: dict[_Entry, Sample],
    overlaps: list[Row],
    swapped: Permuted | None,
) -> Weighed:
    """Weigh the drops of other categories, the overlaps, and what the cuts cost."""
    config = measured.config
    names = tuple(dict.fromkeys(entry.source for entry in drops))
    diagonal, across_mean = _within(drops), _across(drops)
    margin = across_mean - diagonal * section.share_of_diagonal
    random = _drop(measured, _random(config, section), "")
    conditions = [
        Condition(
            diagonal.interval("drop in the own category"),
            at_least=section.bite,
            misses=f"The cuts lower their own category by only {percent(diagonal.value)}.",
            crosses="The cuts may lower their own category by less than they must.",
        ),
        Condition(
            margin.interval("margin"),
            at_least=0,
            misses=f"Other categories fall by {percent(across_mean.value)}, the own by "
            f"{percent(diagonal.value)}.",
            crosses="The margin's interval reaches below 0.",
        ),
    ]
    excess = _excess(measured, overlaps)
    if excess is not None:
        conditions.append(
            Condition(
                excess,
                above=0,
                misses="Harm types overlap no more with each other than with benign behaviours.",
                crosses="Harm types may overlap no more with each other than with benign "
                "behaviours.",
            )
        )
    if swapped is not None:
        conditions.append(swapped.condition(section.p_value))
    for name in names:
        cells = cells_of(config, config.subject, _cut(config, section, name))
        conditions += guard(measured, cells, _across(drops, name), random)
    return weigh(
        *conditions,
        supported="Other categories fall with the one that was cut.",
        silent=silent(measured, intact_cells(config)),
    )


def _within(drops: dict[_Entry, Sample]) -> Sample:
    return mean_of([drop for entry, drop in drops.items() if entry.source == entry.category])


def _across(drops: dict[_Entry, Sample], source: str = "") -> Sample:
    """Return the mean drop in categories that did not locate the cut, of one source or of all."""
    # Each category has prompts of its own, but is measured after the cut of every other one.
    return mean_of(
        [
            drop
            for entry, drop in drops.items()
            if entry.source != entry.category and source in ("", entry.source)
        ],
        together=True,
    )


def _claim(
    measured: Measurements,
    section: Transfer,
    drops: dict[_Entry, Sample],
    overlaps: list[Row],
) -> Claim:
    config = measured.config
    names = tuple(dict.fromkeys(entry.source for entry in drops))
    random = _drop(measured, _random(config, section), "")
    controls = [random.interval("drop of harm, random cut of the same size")]
    effect = Interval("mean drop in other categories", None)
    weighed = Weighed("not measurable", "The target set has fewer than two categories.")
    swapped = None
    if len(names) > 1:
        swapped = _permuted(measured, section, names, _across(drops))
        weighed = _weigh(measured, section, drops, overlaps, swapped)
        effect = _across(drops).interval(effect.name)
        controls = _controls(drops, overlaps, swapped) + controls
    return Claim(
        study=STUDY.name,
        claim=SHARED.claim,
        verdict=weighed.verdict,
        effect=effect,
        controls=tuple(controls),
        rule=(
            f"The mean drop in other categories is at least {percent(section.share_of_diagonal)} "
            f"of the mean drop in the own one (lower bound of the difference above 0), which is at "
            f"least {percent(section.bite)} (lower bound); harm types overlap more with each other "
            "than with benign behaviours, where such are given (lower bound of the difference, "
            "jackknife over harm types)"
            f"{'' if swapped is None else swapped.rule(section.p_value)}. "
            f"Of each cut: {guarded(config)}"
        ),
        seeds=config.seeds,
        n=measured.prompts(intact_cells(config), "generation"),
        reason=weighed.reason,
        requirements=weighed.requirements,
        about=masks_of(
            cell
            for name in names
            for cell in cells_of(config, config.subject, _cut(config, section, name))
        ),
    )


def _controls(
    drops: dict[_Entry, Sample], overlaps: list[Row], swapped: Permuted | None
) -> list[Interval]:
    pooled = [row for row in overlaps if row["seed"] is None]
    pairs = [row for row in pooled if not row["second"].startswith(BENIGN)]
    benign = [row for row in pooled if row["second"].startswith(BENIGN)]
    controls = [
        _within(drops).interval("mean drop in the own category"),
        Interval("mean Jaccard overlap, pairs of harm types", _mean(pairs, "jaccard")),
    ]
    if benign:
        name = "mean Jaccard overlap, harm type and benign behaviour"
        controls.append(Interval(name, _mean(benign, "jaccard")))
    if swapped is not None:
        controls.append(Interval("p of swapped labels", swapped.p))
    return controls


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
