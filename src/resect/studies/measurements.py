"""The records of a run by cell, for studies that summarise them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from resect.errors import InputError
from resect.files.reading import read_json
from resect.files.tables import read_parquet
from resect.stats import Resampler, Sample, normalised
from resect.studies.asked import Asked, best_of
from resect.studies.cells import Cell, Cut, changes_path, mask_path, record_path
from resect.studies.design import Design
from resect.studies.halves import Half, Place, PromptOf, deal
from resect.studies.judged import CALLED, JudgeError
from resect.studies.strata import (
    LEAST_PROMPTS,
    Scored,
    group_lists,
    score_lists,
    unscored_share,
    with_enough,
)
from resect.studies.weighing import percent

if TYPE_CHECKING:
    from resect.weights.mask import Mask

Row = dict[str, Any]
# What a run knows of its probes; `resect.runs.look` writes it.
INSTRUMENT_FILE = "instrument.json"
# Samples that stay in memory; each has three arrays of draws.
KEPT_SAMPLES = 4000


class _Question(NamedTuple):
    """Whose prompts are meant (a cell, a category), and the probe."""

    whose: str
    probe: str


class _Rate(NamedTuple):
    """What a rate is of; see `Measurements.strata`."""

    cells: tuple[str, ...]
    question: _Question
    half: Half
    other_than: str
    outcomes: tuple[str, ...]


class Measurements:
    """The records of a run, read by cell.

    Attributes:
        tabled: Whether studies shall make their tables, which cost more than their claims.
    """

    tabled = True

    def __init__(self, config: Design, run: Path, error: JudgeError | None = None):
        """Open a run; files are read when they are asked for.

        Args:
            config: Its configuration.
            run: Its folder.
            error: How its judge errs, which rates are corrected for; None leaves them as judged.
        """
        self.config = config
        self.run = run
        self.error = error
        self._rows: dict[str, list[Row]] = {}
        self._asked: dict[_Question, list[Asked]] = {}
        self._samples: dict[_Rate, Sample] = {}
        self._resamplers: dict[str, Resampler] = {}

    def of_seed(self, seed: int) -> Measurements:
        """Return the measurements of one seed, without tables; what was read stays read."""
        config = self.config.model_copy(update={"seeds": (seed,)})
        measured = type(self)(config, self.run, self.error)
        measured.tabled = False
        measured._rows, measured._resamplers = self._rows, self._resamplers
        measured._asked, measured._samples = self._asked, self._samples
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

    def covers(self, cells: Iterable[Cell], probe: str, half: Half = "") -> bool:
        """Return whether all variants were asked a probe on a half of its prompts, or on both."""
        del cells, probe, half
        return True

    def removed(self, cells: Iterable[Cell]) -> list[float]:
        """Return the share of the weights that each variant lacks; none if one was not asked."""
        rows = [self.rows(cell) for cell in cells]
        return [row[0]["removed_fraction"] for row in rows] if all(rows) else []

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

    def asked(self, cell: Cell, probe: str) -> list[Asked]:
        """Return what a cell's rows say of the prompts of a probe, in their order."""
        key = _Question(self._state_of(cell), probe)
        if key not in self._asked:
            rows = [row for row in self.rows(cell) if row["probe"] == probe]
            dealt = self._dealt(cell, rows)
            self._asked[key] = [
                Asked(
                    row["category"],
                    place.group,
                    place.half,
                    _score(row),
                    row["outcome"],
                    row.get("nll"),
                    row["example_id"],
                )
                for row, place in zip(rows, dealt, strict=True)
            ]
        return self._asked[key]

    def _state_of(self, cell: Cell) -> str:
        """Return what names the rows of a variant that there are by now."""
        return cell.key

    def _dealt(self, cell: Cell, rows: Sequence[Row]) -> list[Place]:
        """Return where the prompts of rows stand: all of a probe that were put to a variant."""
        del cell
        return deal(tuple(map(prompt_of, rows)), self.config.evaluation.alike)

    def strata(
        self,
        cells: Iterable[Cell],
        probe: str,
        category: str = "",
        *,
        half: Half = "",
        other_than: str = "",
        outcomes: Collection[str] = (),
    ) -> dict[str, list[Scored]]:
        """Return scores by stratum (seed, category) of the rows that a probe gave.

        Args:
            cells: Cells of one arm.
            probe: Name of the probe.
            category: Rows of this category alone; "" for all.
            half: Prompts of this half alone; "" for all.
            other_than: Rows of all categories but this one; "" for all.
            outcomes: Whether the outcome is one of these, in the place of the score.
        """
        strata: dict[str, list[Scored]] = {}
        for cell in cells:
            for row in self.asked(cell, probe):
                if category not in ("", row.category) or half not in ("", row.half):
                    continue
                if other_than and row.category == other_than:
                    continue
                score = row.score
                if outcomes:
                    score = None if row.outcome is None else float(row.outcome in outcomes)
                stratum = f"{cell.seed}/{row.category}"
                strata.setdefault(stratum, []).append(Scored(row.group, score))
        return with_enough(strata)

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
        *,
        half: Half = "",
        other_than: str = "",
        outcomes: Collection[str] = (),
    ) -> Sample:
        """Return the mean score over cells of one arm, with paired bootstrap draws.

        Where more than `most_unscored` of the replies have no score, the bounds are those of the
        worst cases: all of them 0 for the lower, all of them 1 for the upper one. Where it is known
        how the judge errs, the share of true hits stands in the place of the mean score. It is NaN
        where some of the prompts were not asked. Arguments are those of `strata`.
        """
        cells = list(cells)
        if not self.covers(cells, probe, half):
            return self.resampler(probe).mean({})
        key = _Rate(
            tuple(f"{cell.seed}/{cell.key}" for cell in cells),
            _Question(category, probe),
            half,
            other_than,
            tuple(outcomes),
        )
        if key not in self._samples:
            outcome = "" if self.error is None else self.error.outcome(probe, outcomes)

            def strata(counted: Collection[str]) -> dict[str, list[Scored]]:
                return self.strata(
                    cells, probe, category, half=half, other_than=other_than, outcomes=counted
                )

            if len(self._samples) >= KEPT_SAMPLES:
                self._samples.clear()
            if self.error is not None and outcome:
                pair = strata((outcome,)), strata(CALLED)
                self._samples[key] = self._corrected(self.error, probe, outcome, *pair)
            else:
                self._samples[key] = self._rate(probe, strata(outcomes))
        return self._samples[key]

    def best(
        self,
        cells: Iterable[Cell],
        probe: str,
        *,
        half: Half = "",
        outcomes: Collection[str] = (),
    ) -> Sample:
        """Return the mean over prompts of the best score of their replies, with paired draws.

        With `outcomes`: the share of prompts of which any reply has such an outcome. A prompt with
        an unscored reply has a best score where another reply has reached 1, and none elsewhere.
        NaN under a judge with a known error: the best of several replies has no correction for it.
        Arguments are those of `strata`.
        """
        if self.error is not None:
            return self.resampler(probe).mean({})
        strata: dict[str, list[Scored]] = {}
        for cell in cells:
            for row in best_of(self.asked(cell, probe), outcomes):
                if half in ("", row.half):
                    stratum = f"{cell.seed}/{row.category}"
                    strata.setdefault(stratum, []).append(Scored(row.group, row.score))
        return self._rate(probe, with_enough(strata))

    def rise(self, cells: Iterable[Cell], probe: str, *, half: Half = "") -> Sample:
        """Return the mean rise of the NLL of a probe's rows over the intact model, in nats a token.

        It is paired row by row: the mean over strata of the mean over their rows. A rise has no
        ends: the added row is as far out as the furthest one (`Resampler.reaching`).

        Args:
            cells: Cells of one arm.
            probe: Name of the probe.
            half: Prompts of this half alone; "" for all.
        """
        strata: dict[str, list[Scored]] = {}
        for cell in cells:
            intact = self.asked(replace(cell, cut=None, tuning=None), probe)
            for row, before in zip(self.asked(cell, probe), intact, strict=True):
                if half in ("", row.half):
                    lost = None if row.nll is None or before.nll is None else row.nll - before.nll
                    stratum = f"{cell.seed}/{row.category}"
                    strata.setdefault(stratum, []).append(Scored(row.group, lost))
        strata = with_enough(strata)
        return self.resampler(probe).reaching(score_lists(strata), group_lists(strata))

    def prompts(
        self, cells: Iterable[Cell], probe: str, category: str = "", *, half: Half = ""
    ) -> int:
        """Return how many different scored prompts stand behind a rate."""
        strata = self.strata(cells, probe, category, half=half)
        flags = {name: [row.score is not None for row in rows] for name, rows in strata.items()}
        return self.resampler(probe).trials(flags, group_lists(strata))

    def share(
        self, cells: Iterable[Cell], probe: str, outcomes: Collection[str], category: str = ""
    ) -> Sample:
        """Return the share of replies with one of the outcomes, with paired bootstrap draws."""
        return self.rate(cells, probe, category, outcomes=outcomes)

    def categories(self, cells: Iterable[Cell], probe: str, *, half: Half = "") -> list[str]:
        """Return the categories of which some seed has enough prompts to speak of."""
        counts: dict[str, dict[int, set[str]]] = {}
        for cell in cells:
            for row in self.asked(cell, probe):
                if half in ("", row.half):
                    by_seed = counts.setdefault(row.category, {})
                    by_seed.setdefault(cell.seed, set()).add(row.group)
        return [
            name
            for name, by_seed in sorted(counts.items())
            if max(len(groups) for groups in by_seed.values()) >= LEAST_PROMPTS
        ]

    def _rate(self, probe: str, strata: dict[str, list[Scored]]) -> Sample:
        scores, groups = score_lists(strata), group_lists(strata)
        resampler = self.resampler(probe)
        if self.config.by_likelihood(probe):
            # One more answer of probability 0 or 1 is no case to be prepared for.
            return resampler.spread(scores, groups)
        sample = resampler.rate(scores, groups)
        if unscored_share(strata) <= self.config.most_unscored or math.isnan(sample.value):
            return sample
        worst, best = (
            resampler.rate(
                {
                    name: [imputed if score is None else score for score in column]
                    for name, column in scores.items()
                },
                groups,
            )
            for imputed in (0.0, 1.0)
        )
        return Sample(
            sample.value, sample.draws, trials=sample.trials, below=worst.below, above=best.above
        )

    def _corrected(
        self,
        error: JudgeError,
        probe: str,
        outcome: str,
        called: dict[str, list[Scored]],
        judged: dict[str, list[Scored]],
    ) -> Sample:
        """Return the true share of an outcome, from who was called so and who was judged."""
        rate, groups = self.resampler(probe).rate, group_lists(called)
        shares = [rate(score_lists(strata), groups) for strata in (called, judged)]
        sample = error.corrected(probe, outcome, *shares)
        if unscored_share(called) <= self.config.most_unscored or math.isnan(sample.value):
            return sample
        # None of the unscored replies is one, or all of them are.
        counted = [
            {
                name: [score or 0.0 for score in column]
                for name, column in score_lists(strata).items()
            }
            for strata in (called, judged)
        ]
        worst = error.corrected(probe, outcome, *(rate(strata, groups) for strata in counted))
        flags = {name: [float(row.score is None) for row in rows] for name, rows in called.items()}
        above = (worst.above + rate(flags, groups).above).clip(max=1)
        return Sample(
            sample.value, sample.draws, trials=sample.trials, below=worst.below, above=above
        )

    def silent(
        self, cells: Iterable[Cell], probe: str, category: str = "", *, shown: Sample | None = None
    ) -> str:
        """Return why a behaviour of the intact model cannot be measured, "" if it can.

        Args:
            cells: Cells of the intact model.
            probe: Name of the probe.
            category: Rows of this category alone; "" for all.
            shown: How far the model shows it; None for the mean score.
        """
        cells = list(cells)
        if blind := self._blind(cells, probe):
            return blind
        if self.error is not None and self.error.unusable and probe in self.error.hits:
            return self.error.unusable
        unscored = unscored_share(self.strata(cells, probe, category))
        if unscored > self.config.most_unscored:
            return f"The judge could not score {percent(unscored)} of the replies to {probe}."
        sample = self.rate(cells, probe, category) if shown is None else shown
        rate = sample.value
        if self.error is not None and shown is not None and math.isnan(rate):
            return "The best of several replies cannot be corrected for the error of the judge."
        if not math.isnan(rate) and sample.interval(probe).high is None:
            return (
                f"The prompts of {probe} count as {sample.trials}: they share "
                f"{percent(self.config.evaluation.alike)} of their content words or more "
                "(evaluation.alike), and so few have no interval."
            )
        if guessed := self._guessed(cells, probe, sample):
            return guessed
        if not rate >= self.config.least_rate and self.config.by_likelihood(probe):
            return (
                f"The intact model finds the answers of {probe} unlikely: {percent(rate)} a token, "
                f"where {percent(self.config.least_rate)} are needed."
            )
        if not rate >= self.config.least_rate:
            return f"The intact model shows {probe} in only {percent(rate)}."
        return ""

    def _guessed(self, cells: Sequence[Cell], probe: str, sample: Sample) -> str:
        """Return that the intact models answer an lm-eval task no better than by guessing."""
        if not self.config.by_task(probe):
            return ""
        tasks: dict[str, list[float]] = {}
        for row in (row for cell in cells for row in self.rows(cell) if row["probe"] == probe):
            tasks.setdefault(row["category"], []).append(row["key"].get("chance", 0.0))
        chance = fmean(fmean(chances) for chances in tasks.values())
        if not chance or (sample.interval(probe).low or 0.0) > chance:
            return ""
        return (
            f"The intact model answers {percent(sample.value)} of {probe}, where guessing answers "
            f"{percent(chance)}, and the difference may be chance: there is nothing to lose."
        )

    def _blind(self, cells: Sequence[Cell], probe: str) -> str:
        """Return why a probe cannot see a cut of most of these models, "" if it can.

        The run has found out (`evaluation.look`) whether it tells a destroyed model from the intact
        one.
        """
        path = self.run / INSTRUMENT_FILE
        if not self.config.evaluation.look or not path.exists():
            return ""
        by_seed = read_json(path)["seeds"]
        subjects = [cell for cell in cells if cell.role == self.config.subject]
        sights = [by_seed.get(str(cell.seed), {}).get(probe) for cell in subjects]
        said = [sight["said"] for sight in sights if sight is not None and sight["blind"]]
        if not said or 2 * len(said) < len(cells):
            return ""
        return (
            f"The instrument is blind: by {self.config.evaluation.instrument}, {probe} does not "
            f"tell a model that a large random cut has destroyed from the intact one. {said[0]}"
        )

    def mean(self, cells: Iterable[Cell], probe: str, column: str) -> float | None:
        """Return the mean of a column over the rows that have it; None if some were not asked."""
        import numpy as np

        cells = list(cells)
        if not self.covers(cells, probe):
            return None

        values = [
            row[column]
            for cell in cells
            for row in self.rows(cell)
            if row["probe"] == probe and row[column] is not None
        ]
        return float(np.mean(values)) if values else None


def prompt_of(row: Row) -> PromptOf:
    """Return what a row's score is about: the prompt, and for likelihood the reference too.

    A text without a prompt is its reference alone.
    """
    text: str = row["prompt"]
    about = not text or row["probe"] == "likelihood"
    return PromptOf(row["category"], _spelled(f"{text}\n{row['reference']}" if about else text))


# A row is read for every rate that it is part of.
_spelled = lru_cache(maxsize=1 << 16)(normalised)


def _score(row: Row) -> float | None:
    if row["probe"] == "likelihood":
        # Utility without exact-match sets: the probability of a reference token, geometric mean.
        return math.exp(-row["nll"])
    score: float | None = row["score"]
    return score
