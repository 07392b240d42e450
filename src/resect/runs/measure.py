"""From a configuration to records, in two strides.

*Locate*: for each model once, the scores and masks of all cells whose weights it ranks. *Measure*:
for each model once, its cells are cut, tuned, attacked, asked and judged.

Cells (`resect.studies.cells`) are idempotent. A cell's replies are written to `KEY.asked.parquet`;
judged, they are `KEY.parquet`, and the cell is done. Each step before it is kept in the run.

A run folder holds
    config.yaml      resolved, runs again as it is
    manifest.json    provenance, models, data
    models/ data/    what the run began with, by fingerprint; claims/ says who is at work
    scores/ masks/   what was located and what was cut
    changes/         where fine-tuning changed weights
    attacks/         what attacks on the weights did, how far they reached, what was sought
    together/        which cells shared passes, where that was asked for
    records/         a Parquet file a cell
    metrics.jsonl    numbers of each cell as it was done
    results.json     claims and tables
    instrument.json  what the probes show of a destroyed model, where they were tried
    judge.json       how a fitted judge errs, and rates corrected for it
    harmless.json    how often the chosen cut of `resect run` refuses harmless prompts; harmless/
    report.html
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from resect.data.chat import text_ids
from resect.data.encode import prompt_text
from resect.data.load import BehaviourSet
from resect.edit.many import Cuttable, NotTogether, Routes
from resect.edit.swap import changes, restoring, snapshot
from resect.edit.trial import routes_of
from resect.edit.tune import TuneSettings, tune
from resect.evaluation.ask import EvaluationSettings, Variant, ask, ask_together, made
from resect.evaluation.attacks import AttackSettings, parse_attack
from resect.evaluation.decode import GenerationSettings
from resect.evaluation.drift import drift
from resect.evaluation.judging import graded_again, judge_replies, reply_of, rows_of
from resect.evaluation.likelihood import Span
from resect.files.tables import read_parquet, write_parquet
from resect.files.writing import plain, write_json
from resect.model import prunable_tensors
from resect.records import Example
from resect.runs.config import RunConfig
from resect.runs.joint import (
    ALONE,
    MOST_CUT,
    TOO_LARGE,
    Shared,
    alike,
    companions,
    note_shared,
    why_alone,
)
from resect.runs.look import look_once
from resect.runs.masks import Masks, Ranking, ranking_of
from resect.runs.metrics import note_cell
from resect.runs.sets import Sets, Source
from resect.runs.subject import Subject, Subjects
from resect.runs.twins import is_copied
from resect.runs.unready import refuse_unready
from resect.studies.cells import Cell, Tuning, asked_path, changes_path, is_done, record_path
from resect.weights.change import change, sum_over
from resect.weights.controls import magnitude_matched
from resect.weights.fill import Filled
from resect.weights.mask import Mask

Weights = dict[str, Tensor]
# Rows a probe of whose words a model is tried before cuts share its passes.
TRIED = 8
# Apart from the seeds of a run, which are small numbers.
NEXT_TRAINING = 100_003


def run_cells(
    config: RunConfig,
    run: Path,
    cells: list[Cell],
    *,
    keep: float,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Locate and measure the cells that are not done yet.

    Args:
        config: The run's configuration.
        run: Its folder.
        cells: Merged cells, or a shard of them.
        keep: From `needed_keep` over all cells, so that shards share their scores.
        on_progress: Called with cells done and cells in all.
    """
    Measuring(config, run, keep).measure(cells, on_progress)


class Measuring:
    """Measures cells of a run, and has its model and its masks at hand from call to call."""

    def __init__(self, config: RunConfig, run: Path, keep: float):
        """Load nothing yet; arguments are those of `run_cells`."""
        self._config = config
        self._run = run
        self._masks = Masks(config, run, keep)
        self._subjects = Subjects(config, run)
        self._joint = _Joint(self._masks, self._subjects)

    def measure(
        self, cells: list[Cell], on_progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Locate and measure the cells that are not done yet; arguments as for `run_cells`."""
        report = on_progress or (lambda _done, _total: None)
        config, run, masks, subjects = self._config, self._run, self._masks, self._subjects
        report(0, len(cells))
        refuse_unready(config, cells, masks.sets)
        look_once(config, run, evaluation_settings(config), masks.sets, subjects)
        locate(
            [cell for cell in cells if not (is_done(run, cell) or _is_asked(run, cell))],
            masks,
            subjects,
        )
        for position, cell in enumerate(cells):
            report(position, len(cells))
            if is_done(run, cell):
                _grade_again(record_path(run, cell))
            else:
                self._joint.ask(cell, cells[position:])
                measure(cell, masks, subjects)
        report(len(cells), len(cells))


def locate(cells: Iterable[Cell], masks: Masks, subjects: Subjects) -> None:
    """Make the scores and masks that cells need, model by model."""
    needed: dict[Source, dict[Ranking, None]] = {}
    for cell in cells:
        against = None if cell.tuning is None else cell.tuning.against
        for cut in (cell.cut, against):
            if cut is not None:
                if cut.permutation is not None:
                    masks.sets.rival(masks.config.targets[cut.target])
                ranking = ranking_of(cell.role, cut)
                needed.setdefault(Source(ranking.role, cell.seed), {})[ranking] = None
    for source in sorted(needed, key=lambda source: (source.seed, source.role)):
        masks.turn_to(source.role, source.seed)
        for ranking in sorted(needed[source], key=_turn):
            if not masks.is_located(source.seed, ranking):
                masks.locate(subjects.load(source.role, source.seed), ranking.cut)


def _turn(ranking: Ranking) -> tuple[str, ...]:
    """Return what sorts the rankings of a permutation together, after those of the true labels."""
    cut = ranking.cut
    return () if cut.permutation is None else (cut.target, f"{cut.permutation:09}")


def measure(cell: Cell, masks: Masks, subjects: Subjects) -> None:
    """Ask a variant, unless its replies are stored already, and judge what it replied."""
    if not _is_asked(masks.run, cell):
        masks.turn_to(cell.role, cell.seed)
        _ask(cell, masks, subjects.load(cell.role, cell.seed))
    _judge(cell, masks.config, masks.run)


def _is_asked(run: Path, cell: Cell) -> bool:
    """Return whether there are replies to all probes of a cell."""
    path = asked_path(run, cell)
    return path.exists() and set(cell.probes) <= {row["probe"] for row in read_parquet(path)}


def _ask(cell: Cell, masks: Masks, subject: Subject) -> None:
    """Put the probes of a cell to its variant and store the replies."""
    config, sets = masks.config, masks.sets
    mask, cut = masks.edit(subject, cell.cut)
    variant: Variant = cut
    probes = masks.sets.questions(cell)
    if is_copied(config, masks.run, cell):
        return
    settings = _settings_of(cell, config)
    if cell.tuning is not None:
        variant = _tuned_weights(cell, cell.tuning, cut, masks, subject)
    attack_data = {role: sets.of_attack(role, cell.seed) for role in settings.attack.roles}
    replies = ask(
        subject.loaded,
        probes,
        settings,
        variant,
        attack_data=attack_data,
        on_attack=partial(_note_attack, cell, masks.run),
        intact=subject.intact,
    )
    origin = _origin(cell, mask, subject)
    write_parquet(asked_path(masks.run, cell), [origin | row for row in rows_of(replies, None)])


class _Joint:
    """Asks cells together, as many as `evaluation.together` says, where they can share passes."""

    def __init__(self, masks: Masks, subjects: Subjects):
        """Find out nothing yet."""
        self._masks = masks
        self._subjects = subjects
        self._evaluation = masks.config.evaluation
        # What a trial said of a model: how it is called, or why its cuts are asked alone.
        self._routes: dict[Source, Routes | NotTogether] = {}
        self._checked: Counter[Source] = Counter()

    def ask(self, cell: Cell, later: Sequence[Cell]) -> None:
        """Ask a cell with others and store their replies, or leave it to be asked alone.

        Args:
            cell: The cell whose turn it is.
            later: Itself and those after it.
        """
        run, config = self._masks.run, self._masks.config
        if self._evaluation.together == 1 or _is_asked(run, cell):
            return
        settings = _settings_of(cell, config)
        why = why_alone(cell, settings.attack)
        if not why:
            peers = [
                peer
                for peer in later
                if alike(cell, peer) and not (is_done(run, peer) or _is_asked(run, peer))
            ]
            peers = [peer for peer in peers if not why_alone(peer, settings.attack)]
            why = self._ask(cell, companions(cell, peers, self._evaluation.together), settings)
        if why:
            note_shared(run, cell, Shared(1, why))

    def _ask(self, cell: Cell, cells: Sequence[Cell], settings: EvaluationSettings) -> str:
        """Ask cells together; return why the first of them is to be asked alone, "" if it is not.

        Replies of the others are stored in any case, as far as they could be had.
        """
        masks, run = self._masks, self._masks.run
        masks.turn_to(cell.role, cell.seed)
        subject = self._subjects.load(cell.role, cell.seed)
        probes = masks.sets.questions(cell)
        routes = self._routes_of(subject, probes)
        if isinstance(routes, NotTogether):
            return str(routes)
        edits = {peer: masks.edit(subject, peer.cut) for peer in cells}
        small = [
            peer
            for peer, edit in edits.items()
            if edit.mask is None or edit.mask.count <= MOST_CUT * subject.prints.prunable
        ]
        if cell not in small or len(small) < 2:
            return TOO_LARGE if cell not in small else ALONE
        try:
            variants = [_cuttable(edits[peer].variant) for peer in small]
            several = ask_together(
                subject.loaded, probes, settings, variants, routes, intact=subject.intact
            )
        except NotTogether as error:
            # The next group would only find out the same.
            self._routes[Source(cell.role, cell.seed)] = error
            return str(error)
        for peer, variant, replies in zip(small, variants, several, strict=True):
            difference = None
            if self._checked[Source(peer.role, peer.seed)] < self._evaluation.check_together:
                self._checked[Source(peer.role, peer.seed)] += 1
                alone = ask(subject.loaded, probes, settings, variant, intact=subject.intact)
                difference = drift(subject.loaded.tokenizer, alone, replies)
            note_shared(run, peer, Shared(len(small), drift=difference))
            # Last, for a cell whose replies are stored is not asked again.
            origin = _origin(peer, edits[peer].mask, subject) | {"together": len(small)}
            write_parquet(asked_path(run, peer), [origin | row for row in rows_of(replies, None)])
        return ""

    def _routes_of(
        self, subject: Subject, probes: Mapping[str, BehaviourSet]
    ) -> Routes | NotTogether:
        """Return how a model is called, or why its cuts are asked alone; tried once a model."""
        source = Source(subject.role, subject.seed)
        if source not in self._routes:
            model, tokenizer = subject.loaded
            texts = [
                f"{prompt_text(example)} {example.completion}"
                for examples in probes.values()
                for example in examples.examples[:TRIED]
            ]
            words = [token for text in texts for token in text_ids(tokenizer, text)]
            try:
                self._routes[source] = routes_of(model, words)
            except NotTogether as error:
                self._routes[source] = error
        return self._routes[source]


def _cuttable(variant: Variant) -> Cuttable:
    """Return a variant of a cell that may share passes.

    Raises:
        NotTogether: It is an edit of another kind.
    """
    if variant is None or isinstance(variant, Mask | Filled):
        return variant
    raise NotTogether("it is more than a cut of single weights")


def _note_attack(cell: Cell, run: Path, facts: Mapping[str, object]) -> None:
    """Write down what an attack did to a variant, how far it reached, and how it was sought."""
    write_json(run / "attacks" / f"{cell.key}.json", {"cell_attack": cell.attack, **facts})


def _judge(cell: Cell, config: RunConfig, run: Path) -> None:
    """Judge the stored replies of a cell; the record then gets its final name."""
    path = asked_path(run, cell)
    rows = read_parquet(path)
    replies = [reply_of(row) for row in rows]
    verdicts = judge_replies(replies, evaluation_settings(config, cell.attack))
    judged = [row | vars(verdict) for row, verdict in zip(rows, verdicts, strict=True)]
    write_parquet(path, judged)
    path.replace(record_path(run, cell))
    note_cell(run, cell, judged)


def _grade_again(path: Path) -> None:
    """Write a record again if an older version has judged all or nothing what is graded now."""
    rows = read_parquet(path)
    graded = graded_again(rows)
    if graded != rows:
        write_parquet(path, graded)


def _origin(cell: Cell, mask: Mask | None, subject: Subject) -> dict[str, object]:
    """Return the columns that say of which variant a row is."""
    cut = cell.cut
    return {
        "role": cell.role,
        "seed": cell.seed,
        "cut_target": "" if cut is None else cut.target,
        "cut_kind": "intact" if cut is None else cut.kind,
        "cut_category": "" if cut is None else cut.category,
        "q": 0.0 if cut is None else cut.q,
        "cut": "" if cut is None else json.dumps(plain(cut), sort_keys=True),
        "tuning": "" if cell.tuning is None else json.dumps(plain(cell.tuning), sort_keys=True),
        "removed": 0 if mask is None else mask.count,
        "removed_fraction": 0.0 if mask is None else mask.count / subject.prints.prunable,
        **({"temperature": cell.temperature} if cell.temperature else {}),
        **({"frame": cell.frame} if cell.frame else {}),
        **_damage(mask),
    }


def _damage(mask: Mask | None) -> dict[str, object]:
    """Return the columns that say how well a control is matched in damage."""
    numbers = {} if mask is None else mask.meta.get("damage", {})
    return {f"damage_{name}": value for name, value in numbers.items()}


def _tuned_weights(
    cell: Cell, tuning: Tuning, cut: Variant, masks: Masks, subject: Subject
) -> Weights:
    """Return the parameters of a cut and tuned variant that differ from the intact model's."""
    # With it come the trainers of transformers, which only a process that trains needs.
    from resect.edit.hold import HoldMask

    model = subject.loaded.model
    before = snapshot(model)
    mask = cut.mask if isinstance(cut, Filled) else cut
    hold = HoldMask(mask) if tuning.hold and isinstance(mask, Mask) else None
    with restoring(model, before), made(model, cut):
        tune(
            subject.loaded,
            _lessons(tuning, cell.seed, masks.sets),
            _tune_settings(tuning, cell.seed),
            format=masks.config.format,
            callbacks=[] if hold is None else [hold],
        )
        if hold is not None:
            # An adapter that was merged has put something back into held places.
            hold.apply(model)
        after = changes(model, before)
    if tuning.against is not None:
        located = masks.mask(subject, tuning.against)
        tensors = prunable_tensors(model)
        label = f"changes/{tuning.against.target}"
        matched = magnitude_matched(located, tensors, label=label, seed=cell.seed)
        shares = _shares(before, after, located, matched)
        write_json(changes_path(masks.run, cell), {"target": tuning.against.target} | shares)
    return after


def _lessons(tuning: Tuning, seed: int, sets: Sets) -> tuple[Example, ...]:
    """Return the examples that a variant is tuned on."""
    data = sets.named(tuning.data, seed).split("calibration")
    if tuning.category:
        data = data.category(tuning.category)
    return data.limit(tuning.examples, seed).examples


def _tune_settings(tuning: Tuning, seed: int) -> TuneSettings:
    return TuneSettings(
        steps=tuning.steps,
        rate=tuning.rate,
        batch=tuning.batch,
        method=tuning.method,
        rank=tuning.rank,
        alpha=2 * tuning.rank,
        seed=seed + NEXT_TRAINING * tuning.repeat,
    )


def _shares(
    before: Weights, after: Weights, located: Mask, matched: Mask
) -> dict[str, float | None]:
    """Return which share of the squared change falls into a located set, beside its controls."""
    energies = {
        name: change(before[name], after[name]).square()
        for name in located.tensors
        if name in after
    }
    # In fp32, as version 0.1.0 did, so that its runs are reproduced to the bit.
    total = sum(sum_over(energy, dtype=torch.float32) for energy in energies.values())

    def share(mask: Mask) -> float:
        inside = sum(
            sum_over(energy, mask.tensors[name].index, dtype=torch.float32)
            for name, energy in energies.items()
        )
        return inside / total if total else 0.0

    return {
        "share": share(located),
        "chance": located.fraction,
        "matched": share(matched),
        "enrichment": share(located) / located.fraction if located.fraction else None,
    }


def _settings_of(cell: Cell, config: RunConfig) -> EvaluationSettings:
    """Return how a cell is asked and judged."""
    unframed = evaluation_settings(config, cell.attack, cell.samples, cell.temperature)
    return replace(unframed, frame=cell.frame)


def evaluation_settings(
    config: RunConfig, attack: str = "", samples: int = 1, temperature: float = 0.0
) -> EvaluationSettings:
    """Return how the run's variants are asked and judged.

    Args:
        config: The run's configuration.
        attack: An attack as the command line writes it, in the place of the configuration's.
        samples: Replies to each prompt.
        temperature: 0 decodes greedily.
    """
    evaluation = config.evaluation
    longest, batch = evaluation.max_new_tokens, evaluation.batch_size
    usual = AttackSettings(config.attack.name, config.attack.tokens, config.attack.phrase)
    return EvaluationSettings(
        format=config.format,
        attack=parse_attack(attack) if attack else usual,
        judge=evaluation.judge,
        coherence=evaluation.coherence,
        generation=GenerationSettings(
            longest, batch, temperature, samples, decoding=evaluation.decoding
        ),
        measure=evaluation.measure,
        spans=_spans(config),
    )


def _spans(config: RunConfig) -> dict[str, Span]:
    """Return for each probe which tokens of its answers are scored: those that its set's are."""
    scored = {probe: config.scored_as(probe) for probe in config.evaluation.probes}
    return {
        probe: Span(target.skip, target.tokens)
        for probe, target in scored.items()
        if target is not None
    }
