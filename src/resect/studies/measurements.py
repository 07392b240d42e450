"""The records of a run by cell, for studies that summarise them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from resect.errors import InputError
from resect.files.reading import read_json
from resect.files.tables import read_parquet
from resect.stats import Resampler, Sample, normalised
from resect.studies.cells import Cell, Cut, changes_path, mask_path, record_path
from resect.studies.design import Design
from resect.studies.weighing import percent

if TYPE_CHECKING:
    from resect.weights.mask import Mask

Row = dict[str, Any]
# Of a category; see `_with_enough`.
LEAST_PROMPTS = 5


class Scored(NamedTuple):
    """A score, None where there is none, and the prompt; equal prompts are drawn together."""

    prompt: str
    score: float | None


class Measurements:
    """The records of a run, read by cell."""

    def __init__(self, config: Design, run: Path):
        """Open a run; files are read when they are asked for."""
        self.config = config
        self.run = run
        self._rows: dict[str, list[Row]] = {}
        self._resamplers: dict[str, Resampler] = {}

    def of_seed(self, seed: int) -> Measurements:
        """Return what the same run has measured of one seed; what was read stays read."""
        measured = Measurements(self.config.model_copy(update={"seeds": (seed,)}), self.run)
        measured._rows, measured._resamplers = self._rows, self._resamplers
        return measured

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

    def mask(self, role: str, seed: int, cut: Cut) -> Mask:
        """Return the mask of a target cut; loads torch.

        Raises:
            InputError: The run has not kept it.
        """
        from resect.weights.mask import Mask

        return Mask.load(mask_path(self.run, role, seed, cut))

    def changes(self, cell: Cell) -> Row:
        """Return how a cell's tuning changed the weights.

        Raises:
            InputError: The run has not kept it.
        """
        changes: Row = read_json(changes_path(self.run, cell))
        return changes

    def strata(
        self,
        cells: Iterable[Cell],
        probe: str,
        category: str = "",
        keep: Callable[[Row], bool] | None = None,
    ) -> dict[str, list[Scored]]:
        """Return scores by stratum (seed, category) of the rows that a probe gave.

        Args:
            cells: Cells of one arm.
            probe: Name of the probe.
            category: Rows of this category alone; "" for all.
            keep: Rows for which it is true alone; None for all.
        """
        strata: dict[str, list[Scored]] = {}
        for cell in cells:
            for row in self.rows(cell):
                if row["probe"] != probe or category not in ("", row["category"]):
                    continue
                if keep is None or keep(row):
                    stratum = f"{cell.seed}/{row['category']}"
                    strata.setdefault(stratum, []).append(Scored(_prompt(row), _score(row)))
        return _with_enough(strata)

    def resampler(self, probe: str) -> Resampler:
        """Return what resamples a probe's prompts: together, if all seeds are asked the same."""
        if probe not in self._resamplers:
            spec = self.config.data[self.config.evaluation.probes[probe]]
            self._resamplers[probe] = Resampler(probe, together="{seed}" not in spec)
        return self._resamplers[probe]

    def rate(
        self,
        cells: Iterable[Cell],
        probe: str,
        category: str = "",
        keep: Callable[[Row], bool] | None = None,
    ) -> Sample:
        """Return the rate of hits over cells of one arm, with paired bootstrap draws."""
        return self._rate(probe, self.strata(cells, probe, category, keep))

    def prompts(self, cells: Iterable[Cell], probe: str, category: str = "") -> int:
        """Return how many different scored prompts stand behind a rate."""
        strata = self.strata(cells, probe, category)
        flags = {name: [row.score is not None for row in rows] for name, rows in strata.items()}
        return self.resampler(probe).trials(flags, _prompts(strata))

    def share(
        self, cells: Iterable[Cell], probe: str, outcomes: Collection[str], category: str = ""
    ) -> Sample:
        """Return the share of replies with one of the outcomes, with paired bootstrap draws."""
        strata: dict[str, list[Scored]] = {}
        for cell in cells:
            for row in self.rows(cell):
                if row["probe"] == probe and category in ("", row["category"]):
                    outcome = row["outcome"]
                    hit = None if outcome is None else float(outcome in outcomes)
                    stratum = f"{cell.seed}/{row['category']}"
                    strata.setdefault(stratum, []).append(Scored(_prompt(row), hit))
        return self._rate(probe, _with_enough(strata))

    def _rate(self, probe: str, strata: dict[str, list[Scored]]) -> Sample:
        scores = {name: [row.score for row in rows] for name, rows in strata.items()}
        return self.resampler(probe).rate(scores, _prompts(strata))

    def silent(self, cells: Iterable[Cell], probe: str, category: str = "") -> str:
        """Return why a behaviour of the intact model cannot be measured, "" if it can."""
        cells = list(cells)
        strata = self.strata(cells, probe, category)
        scores = [row.score for rows in strata.values() for row in rows]
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


def _with_enough(strata: dict[str, list[Scored]]) -> dict[str, list[Scored]]:
    """Return strata of at least `LEAST_PROMPTS`; smaller categories of a seed are one stratum.

    Prompts that repeat count once. A bootstrap within a stratum of one or two prompts has no spread
    to speak of.
    """
    enough: dict[str, list[Scored]] = {}
    for name, rows in strata.items():
        few = len({row.prompt for row in rows}) < LEAST_PROMPTS
        key = f"{name.partition('/')[0]}/\N{HORIZONTAL ELLIPSIS}" if few else name
        enough.setdefault(key, []).extend(rows)
    return enough


def _prompts(strata: dict[str, list[Scored]]) -> dict[str, list[str]]:
    return {name: [row.prompt for row in rows] for name, rows in strata.items()}


def _prompt(row: Row) -> str:
    """Return what a row's score is about: the prompt, and for likelihood the reference too."""
    text: str = row["prompt"]
    return _spelled(f"{text}\n{row['reference']}" if row["probe"] == "likelihood" else text)


# A row is read for every rate that it is part of.
_spelled = lru_cache(maxsize=1 << 16)(normalised)


def _score(row: Row) -> float | None:
    if row["probe"] == "likelihood":
        # Utility without exact-match sets: the probability of a reference token, geometric mean.
        return math.exp(-row["nll"])
    score: float | None = row["score"]
    return score
