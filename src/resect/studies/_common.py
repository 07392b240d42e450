"""What studies share: reading measurements, rates with intervals, curve rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resect.cells import Cell, Cut, record_path
from resect.config import RunConfig
from resect.errors import InputError
from resect.records import Interval, StudyResult
from resect.stats import Resampler, Sample, average, best_within, relative_drop
from resect.store import read_parquet

Row = dict[str, Any]
# Of a category; see `_with_enough`.
LEAST_PROMPTS = 5


@dataclass(frozen=True)
class Study:
    """One question: what must be measured, and what the measurements say.

    Attributes:
        name: Name in configs and on the command line.
        question: For headings.
        plan: Configuration to cells; pure.
        summarise: Measurements to a result; reads records, never models.
    """

    name: str
    question: str
    plan: Callable[[RunConfig], list[Cell]]
    summarise: Callable[[Measurements], StudyResult]


class Measurements:
    """The records of a run, read by cell."""

    def __init__(self, config: RunConfig, run: Path):
        """Open a run; files are read when they are asked for."""
        self.config = config
        self.run = run
        self._rows: dict[str, list[Row]] = {}
        self._resamplers: dict[str, Resampler] = {}

    def of_seed(self, seed: int) -> Measurements:
        """Return what the same run has measured of one seed; what was read stays read."""
        found = Measurements(self.config.model_copy(update={"seeds": (seed,)}), self.run)
        found._rows, found._resamplers = self._rows, self._resamplers
        return found

    def rows(self, cell: Cell) -> list[Row]:
        """Return a cell's rows in the order of its examples.

        Raises:
            InputError: The cell is not recorded yet.
        """
        if cell.key not in self._rows:
            path = record_path(self.run, cell)
            if not path.exists():
                raise InputError(
                    f"{self.run} lacks the measurement of {cell}", fix="run the study with --resume"
                )
            self._rows[cell.key] = sorted(
                read_parquet(path), key=lambda row: (row["probe"], row["example_id"])
            )
        return self._rows[cell.key]

    def strata(
        self,
        cells: Iterable[Cell],
        probe: str,
        category: str = "",
        keep: Callable[[Row], bool] | None = None,
    ) -> dict[str, list[float | None]]:
        """Return scores by stratum (seed, category) of the rows that a probe gave.

        Args:
            cells: Cells of one arm.
            probe: Name of the probe.
            category: Rows of this category alone; "" for all.
            keep: Rows for which it is true alone; None for all.
        """
        found: dict[str, list[float | None]] = {}
        for cell in cells:
            for row in self.rows(cell):
                if row["probe"] != probe or category not in ("", row["category"]):
                    continue
                if keep is None or keep(row):
                    stratum = f"{cell.seed}/{row['category']}"
                    found.setdefault(stratum, []).append(_score(row))
        return _with_enough(found)

    def resampler(self, probe: str) -> Resampler:
        """Return what resamples a probe's prompts: together, if all seeds are asked the same."""
        if probe not in self._resamplers:
            place = self.config.data[self.config.evaluation.probes[probe]]
            self._resamplers[probe] = Resampler(probe, together="{seed}" not in place)
        return self._resamplers[probe]

    def rate(
        self,
        cells: Iterable[Cell],
        probe: str,
        category: str = "",
        keep: Callable[[Row], bool] | None = None,
    ) -> Sample:
        """Return the rate of hits over cells of one arm, with paired bootstrap draws."""
        return self.resampler(probe).rate(self.strata(cells, probe, category, keep))

    def prompts(self, cells: Iterable[Cell], probe: str, category: str = "") -> int:
        """Return how many different scored prompts stand behind a rate."""
        strata = self.strata(cells, probe, category)
        scored = {name: [score is not None for score in own] for name, own in strata.items()}
        return self.resampler(probe).trials(scored)

    def share(
        self, cells: Iterable[Cell], probe: str, outcomes: Collection[str], category: str = ""
    ) -> Sample:
        """Return the share of replies with one of the outcomes, with paired bootstrap draws."""
        found: dict[str, list[float | None]] = {}
        for cell in cells:
            for row in self.rows(cell):
                if row["probe"] == probe and category in ("", row["category"]):
                    known = row["outcome"]
                    hit = None if known is None else float(known in outcomes)
                    found.setdefault(f"{cell.seed}/{row['category']}", []).append(hit)
        return self.resampler(probe).rate(_with_enough(found))

    def silent(self, cells: Iterable[Cell], probe: str, category: str = "") -> str:
        """Return why a behaviour of the intact model cannot be measured, "" if it can."""
        cells = list(cells)
        scores = [one for group in self.strata(cells, probe, category).values() for one in group]
        unscored = sum(score is None for score in scores) / len(scores) if scores else 1.0
        if unscored > self.config.most_unscored:
            return f"The judge could not score {percent(unscored)} of the replies to {probe}."
        rate = self.rate(cells, probe, category).value
        if not rate >= self.config.least_rate:
            return f"The intact model shows {probe} in only {percent(rate)}."
        return ""

    def mean(self, cells: Iterable[Cell], probe: str, column: str) -> float | None:
        """Return the mean of a column over the rows that have it."""
        values = [
            row[column]
            for cell in cells
            for row in self.rows(cell)
            if row["probe"] == probe and row[column] is not None
        ]
        return float(np.mean(values)) if values else None


def _with_enough(strata: dict[str, list[float | None]]) -> dict[str, list[float | None]]:
    """Return strata of at least `LEAST_PROMPTS`; smaller categories of a seed are one stratum.

    A bootstrap within a stratum of one or two prompts has no spread to speak of.
    """
    found: dict[str, list[float | None]] = {}
    for name, scores in strata.items():
        few = len(scores) < LEAST_PROMPTS
        key = f"{name.partition('/')[0]}/\N{HORIZONTAL ELLIPSIS}" if few else name
        found.setdefault(key, []).extend(scores)
    return found


def _score(row: Row) -> float | None:
    if row["probe"] == "likelihood":
        # Utility without exact-match sets: the probability of a reference token, geometric mean.
        return math.exp(-row["nll"])
    score: float | None = row["score"]
    return score


def utility_probe(config: RunConfig) -> str:
    """Return the probe behind utility: exact-match tasks, else the likelihood of held-out text.

    Raises:
        InputError: Neither is configured.
    """
    for name in ("utility", "likelihood"):
        if name in config.evaluation.probes:
            return name
    raise InputError(
        "no measure of utility is configured",
        allowed="evaluation.probes with utility (exact-match tasks) or likelihood (any text)",
        fix="name a set for one of them under evaluation.probes",
    )


def effect_probes(config: RunConfig) -> tuple[str, ...]:
    """Return the probes of a study that weighs harm against utility."""
    return ("generation", utility_probe(config))


def cells_of(config: RunConfig, role: str, cut: Cut | None, probes: tuple[str, ...]) -> list[Cell]:
    """Return one arm's cells, one a seed."""
    return [Cell(role, seed, cut, probes) for seed in config.seeds]


@dataclass(frozen=True)
class Effect:
    """What one cut did, against the intact model."""

    harm: Sample
    utility: Sample
    harm_drop: Sample
    utility_drop: Sample


def effect(measured: Measurements, role: str, cut: Cut | None, seeds: Sequence[int]) -> Effect:
    """Return rates and relative drops of one arm over some seeds."""
    utility = utility_probe(measured.config)
    probes = effect_probes(measured.config)
    intact = [Cell(role, seed, None, probes) for seed in seeds]
    cells = [Cell(role, seed, cut, probes) for seed in seeds]
    before = measured.rate(intact, "generation"), measured.rate(intact, utility)
    after = measured.rate(cells, "generation"), measured.rate(cells, utility)
    return Effect(*after, relative_drop(before[0], after[0]), relative_drop(before[1], after[1]))


def curve_rows(
    measured: Measurements, role: str, arms: Iterable[tuple[str, Cut | None]]
) -> list[Row]:
    """Return the rows of a curve: each arm over all seeds (seed None) and for each seed."""
    return [
        _curve_row(measured, role, (label, cut), group)
        for label, cut in arms
        for group in seed_groups(measured.config)
    ]


def best_cuts(
    measured: Measurements,
    role: str,
    cuts: Sequence[Cut],
    seeds: Sequence[int],
    budget: float,
) -> tuple[Sample, float, float]:
    """Return what the best cuts within a utility budget do, and their q and drop of utility.

    Each seed is a model of its own and takes a cut of its own: the q at which utility breaks down
    moves from model to model, so that one q for all would measure how far the models agree in it.
    What is returned are means over seeds.
    """
    drops, found = [], []
    for seed in seeds:
        effects = [effect(measured, role, cut, (seed,)) for cut in cuts]
        best = best_within(
            budget, [one.harm_drop for one in effects], [one.utility_drop for one in effects]
        )
        drops.append(best)
        places = [
            (cut.q, one.utility_drop.value)
            for cut, one in zip(cuts, effects, strict=True)
            if one.utility_drop.value <= budget and one.harm_drop.value == best.value
        ]
        found.append(places[0] if places else (0.0, 0.0))
    q, cost = (float(np.mean(column)) for column in zip(*found, strict=True))
    together = measured.resampler("generation").together
    return average(drops, together=together), q, cost


def seed_groups(config: RunConfig) -> list[tuple[int | None, tuple[int, ...]]]:
    """Return all seeds together (named None), and where there are several each of them alone."""
    groups: list[tuple[int | None, tuple[int, ...]]] = [(None, config.seeds)]
    if len(config.seeds) > 1:
        groups += [(seed, (seed,)) for seed in config.seeds]
    return groups


def _curve_row(
    measured: Measurements,
    role: str,
    arm: tuple[str, Cut | None],
    group: tuple[int | None, tuple[int, ...]],
) -> Row:
    label, cut = arm
    seed, seeds = group
    found = effect(measured, role, cut, seeds)
    cells = [Cell(role, one, cut, ()) for one in seeds]
    row: Row = {"seed": seed, "arm": label, "q": 0.0 if cut is None else cut.q}
    row["removed_fraction"] = float(
        np.mean([measured.rows(cell)[0]["removed_fraction"] for cell in cells])
    )
    row |= columns("harm", found.harm) | columns("harm_drop", found.harm_drop)
    row |= columns("utility", found.utility) | columns("utility_drop", found.utility_drop)
    row["reply_nll"] = measured.mean(cells, "generation", "nll")
    row["repetition"] = measured.mean(cells, "generation", "repetition")
    row["preserve_nll"] = measured.mean(cells, "likelihood", "nll")
    row["preserve_kl"] = measured.mean(cells, "likelihood", "kl")
    row["n"] = measured.prompts(cells, "generation")
    return row


def columns(name: str, sample: Sample) -> Row:
    """Return a value and its bounds as three columns."""
    interval = sample.interval(name)
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def minus(first: Sample, second: Sample, name: str) -> Interval:
    """Return the paired difference of two samples as an interval."""
    return (first - second).interval(name)


def mean_of(samples: Sequence[Sample]) -> Sample:
    """Return the mean of samples, draw by draw; NaN values are left out."""
    known = [sample for sample in samples if not math.isnan(sample.value)]
    if not known:
        return samples[0]
    return Sample(
        float(np.mean([sample.value for sample in known])),
        np.mean(np.stack([sample.draws for sample in known]), axis=0),
    )


def at_least(interval: Interval, bound: float) -> bool:
    """Return whether the lower bound reaches `bound`."""
    return interval.low is not None and interval.low >= bound


def at_most(interval: Interval, bound: float) -> bool:
    """Return whether the upper bound stays within `bound`."""
    return interval.high is not None and interval.high <= bound


def percent(value: float | None) -> str:
    """Return a fraction as a percentage for sentences."""
    return "unknown" if value is None or math.isnan(value) else f"{100 * value:.3g} %"
