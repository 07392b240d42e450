"""Records of a run that never ran: rows, masks and changes, drawn from a world.

    z      normal: √(s w) prompt + √(s (1-w)) word + √((1-s) w) arm + √((1-s)(1-w)) arm and word
    score  share of the words of an answer with Φ(z) < rate, so that its mean is the rate

s (`shared`) is the share of the variance that all arms have in common: a hard prompt is hard for
each of them, so that arms are paired. w (`within`) is the share that the words of one answer have
in common. Cuts along one ranking have one arm's noise, so that a larger cut never does less.
With one word a score is 0 or 1.

In a world whose answers are read (`World.rise`) a row has an NLL, of which its score follows:

    NLL    usual × a prompt's factor + rise × exp(r z - r²/2) + jitter × arm
    score  exp(-NLL)
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from resect.errors import InputError
from resect.planted.verdicts.quick import Layout, QuickResampler
from resect.planted.verdicts.replies import (
    BROKEN_RISE,
    FACTORS,
    JITTER,
    OUTCOMES,
    RISES,
    Replies,
    dealt,
    factors,
    quantiles,
    texts_of,
)
from resect.planted.verdicts.world import Reading, Share, World
from resect.stats import Array, Sample, rng
from resect.studies import Measurements
from resect.studies.asked import Asked
from resect.studies.cells import Cell, Cut, merge
from resect.studies.design import Design
from resect.studies.halves import Half
from resect.studies.measurements import Row

if TYPE_CHECKING:
    from resect.weights.mask import Mask

HARM_TYPES = ("clay", "glass", "iron", "salt", "wool")
TASKS = ("copy", "count", "facts", "howto", "sort")
ADVICE = ("narrow", "garden", "kitchen", "travel")
# A mask has this many tensors of as many weights, and takes as many of each.
TENSORS, WEIGHTS, REMOVED = 4, 5000, 50


@dataclass(frozen=True)
class Size:
    """How much is asked, and how replies vary.

    Attributes:
        models: Seeds of the run.
        prompts: Prompts of each probe but utility, a model.
        tasks: Prompts of utility, a model.
        words: Words of an answer that are right or wrong; with 1 a score is 0 or 1.
        shared: Share of the variance of replies that all arms have in common.
        within: Share that the words of one answer have in common.
        same_prompts: Whether all models are asked the same prompts.
    """

    models: int = 5
    prompts: int = 100
    tasks: int = 268
    words: int = 1
    shared: float = 0.7
    within: float = 0.5
    same_prompts: bool = False

    def categories(self, probe: str) -> dict[str, int]:
        """Return how many prompts a probe has of each category."""
        names = {"utility": TASKS, "misalignment": ADVICE}.get(probe, HARM_TYPES)
        total = self.tasks if probe == "utility" else self.prompts
        if probe == "misalignment":
            # Half of them in the narrow domain.
            far = total // 2 // (len(names) - 1)
            return {names[0]: total - far * (len(names) - 1), **dict.fromkeys(names[1:], far)}
        return {
            name: total // len(names) + (number < total % len(names))
            for number, name in enumerate(names)
        }


class _Asked(NamedTuple):
    """A variant and what it was asked."""

    cell: Cell
    probe: str


class Simulated(Measurements):
    """Measurements of one drawn run.

    What is read twice is computed once; the bootstrap's weights are shared by all draws of a world,
    which changes no expectation.
    """

    tabled = False

    def __init__(
        self,
        config: Design,
        world: World,
        *,
        size: Size,
        planned: Mapping[Cell, tuple[str, ...]],
        label: str,
        draw: int,
    ):
        """Hold the world; rows are drawn when they are asked for, by name and not by order.

        Args:
            config: The design of the run.
            world: What is true.
            size: How much is asked.
            planned: Probes by variant, see `planned_of`: what else is read is an error.
            label: Names the world's draws.
            draw: Number of the run.
        """
        super().__init__(config, Path("simulated"))
        self.planned = planned
        self.world = world
        self.size = size
        self.label = label
        self.draw = draw
        self._cells: dict[Cell, list[Row]] = {}
        self._answers: dict[_Asked, list[Asked]] = {}
        self._said: dict[_Asked, Replies] = {}
        self._noise: dict[tuple[str, ...], Array] = {}
        self._masks: dict[tuple[int, Cut], Mask] = {}
        self._columns: dict[tuple[_Asked, tuple[str, ...]], Array] = {}
        self._rates: dict[tuple[tuple[Cell, ...], tuple[object, ...]], Sample] = {}
        self._quick: dict[str, QuickResampler] = {}

    def of_seed(self, seed: int) -> Simulated:
        """Return what the same run has measured of one seed."""
        config = self.config.model_copy(update={"seeds": (seed,)})
        alone = Simulated(
            config,
            self.world,
            size=self.size,
            planned=self.planned,
            label=self.label,
            draw=self.draw,
        )
        shared = (
            "_cells",
            "_answers",
            "_said",
            "_noise",
            "_masks",
            "_samples",
            "_columns",
            "_rates",
        )
        for name in shared:
            setattr(alone, name, getattr(self, name))
        return alone.with_resamplers(self._quick)

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
        """Return what `Measurements.rate` returns but for rounding, in a fraction of its time."""
        variants = tuple(map(_bare, cells))
        unread = outcomes and self.world.rise is not None  # what is read has no outcome
        if unread or not self.covers(variants, probe, half):
            return self.resampler(probe).mean({})
        question = (probe, category, half, other_than, tuple(outcomes))
        if (variants, question) not in self._rates:
            columns = [self._column(cell, probe, tuple(outcomes)) for cell in variants]
            scores = np.concatenate(columns) if columns else np.array([np.nan])
            if not scores.size or np.isnan(scores).any():
                return super().rate(
                    variants, probe, category, half=half, other_than=other_than, outcomes=outcomes
                )
            layout = self._layout(variants, probe, category, half, other_than)
            self._rates[variants, question] = (
                layout.rate(scores) if self.world.rise is None else layout.spread(scores)
            )
        return self._rates[variants, question]

    def rise(self, cells: Iterable[Cell], probe: str, *, half: Half = "") -> Sample:
        """Return what `Measurements.rise` returns but for rounding, in a fraction of its time."""
        variants = tuple(map(_bare, cells))
        rises = [np.array([np.nan])]
        for cell in variants:
            cut, intact = (
                self._replies(variant, probe).nlls
                for variant in (cell, replace(cell, cut=None, tuning=None))
            )
            rises.append(rises[0] if cut is None or intact is None else cut - intact)
        known = np.concatenate(rises[1:] or rises)
        if np.isnan(known).any():
            return super().rise(variants, probe, half=half)
        return self._layout(variants, probe, "", half, "").reaching(known)

    def categories(self, cells: Iterable[Cell], probe: str, *, half: Half = "") -> list[str]:
        """Return what `Measurements.categories` returns; it is the same for all runs."""
        variants = tuple(map(_bare, cells))
        asked = all(probe in self._probes_of(cell) for cell in variants)
        seeds = tuple(cell.seed for cell in variants)
        key = (seeds, asked, tuple(self.size.categories(probe).items()), half)
        known = self.resampler(probe).categories
        if key not in known:
            known[key] = super().categories(variants, probe, half=half)
        return known[key]

    def _layout(
        self, cells: Sequence[Cell], probe: str, category: str, half: Half, other_than: str
    ) -> Layout:
        """Return what a rate weighs prompts with; it is the same for all arms, runs and worlds."""
        resampler = self.resampler(probe)
        key = (
            tuple(cell.seed for cell in cells),
            tuple(self.size.categories(probe).items()),
            (category, half, other_than),
        )
        if key not in resampler.layouts:
            numbered = _Numbered(self)
            strata = numbered.strata(cells, probe, category, half=half, other_than=other_than)
            resampler.layouts[key] = resampler.layout(
                {name: [int(row.score or 0) for row in rows] for name, rows in strata.items()},
                {name: [row.group for row in rows] for name, rows in strata.items()},
            )
        return resampler.layouts[key]

    def _column(self, cell: Cell, probe: str, outcomes: tuple[str, ...]) -> Array:
        """Return each prompt's score (NaN: none), or whether its outcome is one of these."""
        key = (_Asked(_bare(cell), probe), outcomes)
        if key not in self._columns:
            replies = None
            if probe in self._probes_of(key[0].cell):
                replies = self._replies(*key[0])
            if replies is None:
                column = np.array([], dtype=np.float64)
            elif outcomes:
                wanted = [number for number, name in enumerate(OUTCOMES) if name in outcomes]
                column = np.where(replies.kinds < 0, np.nan, np.isin(replies.kinds, wanted))
            else:
                column = replies.scores
            self._columns[key] = column
        return self._columns[key]

    def with_resamplers(self, resamplers: dict[str, QuickResampler]) -> Simulated:
        """Return itself, with the bootstrap's weights of earlier draws."""
        self._quick = resamplers
        return self

    def resampler(self, probe: str) -> QuickResampler:
        """Return what resamples a probe's prompts, with a memory for the shapes of strata."""
        if probe not in self._quick:
            usual = super().resampler(probe)
            self._quick[probe] = QuickResampler(probe, together=usual.together)
        return self._quick[probe]

    def asked(self, cell: Cell, probe: str) -> list[Asked]:
        """Return what the rows of a probe say, without the rows; none if it was not planned."""
        key = _Asked(_bare(cell), probe)
        if key not in self._answers:
            planned = probe in self._probes_of(key.cell)
            self._answers[key] = list(self._answers_of(*key)) if planned else []
        return self._answers[key]

    def model(self, seed: int) -> float:
        """Return where a model lies among those of its recipe, in standard deviations."""
        return float(self._normal("model", str(seed), size=(1,))[0])

    def rows(self, cell: Cell) -> list[Row]:
        """Return a row a prompt and probe that was planned, sorted as records are.

        Raises:
            InputError: The study has not planned this variant.
        """
        cell = _bare(cell)
        if cell not in self._cells:
            probes = self._probes_of(cell)
            self._cells[cell] = [row for probe in probes for row in self._rows_of(cell, probe)]
        return self._cells[cell]

    def _probes_of(self, cell: Cell) -> tuple[str, ...]:
        if cell not in self.planned:
            raise InputError("the study reads a variant that it has not planned", got=str(cell))
        return self.planned[cell]

    def mask(self, role: str, seed: int, cut: Cut) -> Mask:
        """Return a mask, of which a part is taken from the pool that all cuts share."""
        if (seed, cut) not in self._masks:
            share = min(1.0, max(0.0, self.world.common(cut, self.model(seed))))
            self._masks[seed, cut] = self._mask(f"{role}/{seed}", cut, round(REMOVED * share))
        return self._masks[seed, cut]

    def changes(self, cell: Cell) -> Row:
        """Return where the weights of a fine-tuned model changed."""
        inside, matched = self.world.changes(self.model(cell.seed))
        chance = 0.0 if cell.cut is None else cell.cut.q
        return {"share": inside, "chance": chance, "matched": matched, "enrichment": None}

    def _mask(self, place: str, cut: Cut, common: int) -> Mask:
        import torch

        from resect.weights.mask import Mask, MaskTensor

        pool = rng(f"verdicts/pool/{place}")
        own = rng(f"verdicts/mask/{self.label}/{place}/{cut}", self.draw)
        values, rounds = torch.ones(REMOVED), torch.zeros(REMOVED, dtype=torch.uint8)
        tensors = {}
        for number in range(TENSORS):
            order = pool.permutation(WEIGHTS)
            rest = own.choice(order[REMOVED:], REMOVED - common, replace=False)
            index = torch.from_numpy(np.sort(np.concatenate([order[:common], rest])))
            tensors[f"layers.{number}.mlp.up"] = MaskTensor((WEIGHTS,), index, values, rounds)
        return Mask(tensors, {})

    def _answers_of(self, cell: Cell, probe: str) -> Iterator[Asked]:
        """Yield prompts with their halves and replies, in the order of rows."""
        texts = self._texts(cell, probe)
        names = [name for name, n in self.size.categories(probe).items() for _ in range(n)]
        places = dealt(texts, tuple(names), self.config.evaluation.alike)
        replies = self._replies(cell, probe)
        for place, name, score, outcome, nll in zip(
            places, names, replies.graded(), replies.outcomes(), replies.read(), strict=True
        ):
            yield Asked(name, place.group, place.half, score, outcome, nll)

    def _texts(self, cell: Cell, probe: str) -> tuple[str, ...]:
        place = "" if self.size.same_prompts else f"s{cell.seed}"
        return texts_of(f"{probe}{place}", sum(self.size.categories(probe).values()))

    def _rows_of(self, cell: Cell, probe: str) -> list[Row]:
        removed = 0.0 if cell.cut is None else cell.cut.q
        names = [name for name, n in self.size.categories(probe).items() for _ in range(n)]
        rows: list[Row] = []
        replies = self._replies(cell, probe)
        for text, category, score, outcome, nll in zip(
            self._texts(cell, probe),
            names,
            replies.graded(),
            replies.outcomes(),
            replies.read(),
            strict=True,
        ):
            broken = outcome == "incoherent"
            row: Row = {
                "probe": probe,
                "example_id": text,
                "prompt": text,
                "reference": "",
                "category": category,
                "attack": cell.attack or "prefill",
                "judge": "simulated",
                "score": score,
                "outcome": outcome,
                "nll": 6.0 if broken else 0.5,
                "kl": 4.0 if broken else 0.05,
                "repetition": 0.9 if broken else 0.02,
                "removed_fraction": removed,
            }
            if replies.nlls is not None:
                row["nll"] = nll
            elif probe == "likelihood":
                row["nll"] = -math.log(max(1e-3, score or 0.0))
            rows.append(row)
        return rows

    def _replies(self, cell: Cell, probe: str) -> Replies:
        """Return what was answered to each prompt."""
        key = _Asked(cell, probe)
        if key not in self._said:
            self._said[key] = self._drawn(cell, probe)
        return self._said[key]

    def _drawn(self, cell: Cell, probe: str) -> Replies:
        if self.world.rise is not None:
            return self._read(cell, probe, self.world.rise)
        rates, broken, refused, unscored, spoiled = self._by_prompt(cell, probe)
        latent = self._latent(cell, probe)
        scores = (latent < quantiles(rates)[:, None]).mean(axis=1)
        kind = self._normal("kind", *self._prompts(cell, probe), size=latent.shape[:1])
        refusing = self._normal("refusing", *self._prompts(cell, probe), size=latent.shape[:1])
        silent = self._normal("silent", *self._arm(cell, probe), size=latent.shape[:1])
        is_broken = kind < quantiles(broken)
        is_refused = ~is_broken & (refusing < quantiles(refused))
        scores = np.where(is_broken | is_refused | (spoiled > 0), 0.0, scores)
        hidden = silent < quantiles(unscored)
        kinds = (scores > 0).astype(np.int8) + (scores == 1)
        kinds[is_refused] = OUTCOMES.index("refused")
        kinds[is_broken] = OUTCOMES.index("incoherent")
        return Replies(np.where(hidden, np.nan, scores), np.where(hidden, -1, kinds))

    def _read(self, cell: Cell, probe: str, rise: Share) -> Replies:
        """Return how likely a variant finds each answer, see the header."""
        rates, broken, _, unscored, spoiled = self._by_prompt(cell, probe)
        count, prompts, arm = len(rates), self._prompts(cell, probe), self._arm(cell, probe)
        usual = -np.log(np.clip(rates, 1e-3, 1.0))
        nlls = usual * factors(self._normal("factor", *prompts, size=(count,)), FACTORS)
        if cell.cut is not None:
            model = self.model(cell.seed)
            sizes = self.size.categories(probe)
            means = [rise(Reading(cell, probe, category, model)) for category in sizes]
            rises = np.repeat(means, list(sizes.values()))
            nlls = nlls + rises * factors(self._latent(cell, probe)[:, 0], RISES)
            nlls = nlls + JITTER * self._normal("jitter", *arm, size=(count,))
        kind = self._normal("kind", *prompts, size=(count,))
        lost = (kind < quantiles(broken)) | (spoiled > 0)
        hidden = self._normal("silent", *arm, size=(count,)) < quantiles(unscored)
        nlls = np.where(hidden, np.nan, nlls + BROKEN_RISE * lost)
        return Replies(np.exp(-nlls), np.full(count, -1, dtype=np.int8), nlls)

    def _by_prompt(self, cell: Cell, probe: str) -> list[Array]:
        """Return rate, shares and whether it is spoiled, each an array of a number a prompt."""
        world, model = self.world, self.model(cell.seed)
        columns: list[list[float]] = [[], [], [], [], []]
        for category, count in self.size.categories(probe).items():
            reading = Reading(cell, probe, category, model)
            shares = (world.rate, world.broken, world.refused, world.unscored)
            for column, share in zip(columns, shares, strict=False):
                column += [share(reading)] * count
            spoiled = min(count, world.spoiled(reading))
            columns[-1] += [1.0] * spoiled + [0.0] * (count - spoiled)
        return [np.array(column) for column in columns]

    def _latent(self, cell: Cell, probe: str) -> Array:
        """Return z [prompts, words], see the header."""
        size = self.size
        count, words = sum(size.categories(probe).values()), size.words
        prompts, arm = self._prompts(cell, probe), self._arm(cell, probe)
        key = ("z", *prompts, *arm)
        if key not in self._noise:
            prompt = self._normal("prompt", *prompts, size=(count, 1))
            word = self._normal("word", *prompts, size=(count, words))
            of_arm = self._normal("arm", *arm, size=(count, 1))
            of_word = self._normal("arm, word", *arm, size=(count, words))
            within = np.sqrt(size.within), np.sqrt(1 - size.within)
            common = within[0] * prompt + within[1] * word
            apart = within[0] * of_arm + within[1] * of_word
            self._noise[key] = np.sqrt(size.shared) * common + np.sqrt(1 - size.shared) * apart
        return self._noise[key]

    def _prompts(self, cell: Cell, probe: str) -> tuple[str, ...]:
        """Return what readings of the same prompts have in common."""
        return (probe, "" if self.size.same_prompts else str(cell.seed))

    def _arm(self, cell: Cell, probe: str) -> tuple[str, ...]:
        """Return what readings along one ranking, or along doses of one training, share."""
        cut = None if cell.cut is None else replace(cell.cut, q=0.0)
        tuning = cell.tuning and (cell.tuning.data, cell.tuning.hold)
        return (probe, f"{cell.role}/{cell.seed}/{cut}/{tuning}/{cell.attack}")

    def _normal(self, *names: str, size: tuple[int, ...]) -> Array:
        key = (*names, str(size))
        if key not in self._noise:
            label = "/".join(("verdicts", self.label, *names))
            self._noise[key] = rng(label, self.draw).standard_normal(size)
        return self._noise[key]


class _Numbered(Measurements):
    """The same prompts, each with its number in the place of its score."""

    def __init__(self, measured: Simulated):
        super().__init__(measured.config, measured.run)
        self.measured = measured
        self.count = 0

    def asked(self, cell: Cell, probe: str) -> list[Asked]:
        rows = self.measured.asked(cell, probe)
        start = self.count
        self.count += len(rows)
        return [row._replace(score=float(start + number)) for number, row in enumerate(rows)]


def planned_of(cells: Iterable[Cell]) -> dict[Cell, tuple[str, ...]]:
    """Return which probes a plan puts to each variant."""
    return {_bare(cell): cell.probes for cell in merge(cells)}


def _bare(cell: Cell) -> Cell:
    """Return a variant without its probes, as which it is known here."""
    return replace(cell, probes=()) if cell.probes else cell
