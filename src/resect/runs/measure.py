"""From a configuration to records: locate, select, cut, tune, attack, measure.

Cells (`resect.studies.cells`) are idempotent: a cell's record file is written before judging,
rewritten after it, and a cell with a judged file is done. Each step before it is cached in the run.

A run folder holds
    config.yaml      resolved, runs again as it is
    manifest.json    provenance, models, data
    models/ data/    what the run began with, by fingerprint; claims/ says who is at work
    scores/ masks/   what was located and what was cut
    changes/         where fine-tuning changed weights
    records/         a Parquet file a cell
    metrics.jsonl    numbers of each cell as it was done
    results.json     claims and tables
    report.html
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from resect.edit.hold import HoldMask
from resect.edit.live import removed
from resect.edit.swap import changes, restoring, snapshot
from resect.edit.tune import TuneSettings, tune
from resect.evaluation.ask import EvaluationSettings, ask
from resect.evaluation.attacks import AttackSettings, parse_attack
from resect.evaluation.decode import GenerationSettings
from resect.evaluation.judging import judge_replies, reply_of, rows_of
from resect.files.tables import read_parquet, write_parquet
from resect.files.writing import write_json
from resect.model import LoadedModel, prunable_tensors
from resect.runs.metrics import note_cell
from resect.runs.workbench import Loaded, Workbench
from resect.studies.cells import Cell, Cut, changes_path, is_done, record_path
from resect.studies.design import RunConfig
from resect.weights.controls import magnitude_matched
from resect.weights.mask import Mask


def measure(bench: Workbench, cell: Cell) -> None:
    """Ask a variant, store the replies, judge them and store the verdicts."""
    config, run = bench.config, bench.run
    mask = None if cell.cut is None else bench.mask(cell.role, cell.seed, cell.cut)
    loaded = bench.load(cell.role, cell.seed)
    probes = {name: bench.asked(name, cell.seed) for name in cell.probes}
    settings = evaluation_settings(config, cell.attack)
    variant: Mask | dict[str, Tensor] | None = mask
    if cell.tuning is not None:
        variant = _changed_weights(bench, cell, loaded, mask)
    needed = {role: bench.attack_data(role, cell.seed) for role in settings.attack.roles}
    replies = ask(loaded.model, loaded.tokenizer, probes, settings, variant, attack_data=needed)
    facts = _facts(cell, mask, loaded)
    path = record_path(run, cell)
    write_parquet(path, [facts | row for row in rows_of(replies, None)])
    verdicts = judge_replies(replies, settings)
    rows = [facts | row for row in rows_of(replies, verdicts)]
    write_parquet(path, rows)
    note_cell(run, cell, rows)


def _facts(cell: Cell, mask: Mask | None, loaded: Loaded) -> dict[str, Any]:
    cut = cell.cut
    return {
        "role": cell.role,
        "seed": cell.seed,
        "cut_target": "" if cut is None else cut.target,
        "cut_kind": "intact" if cut is None else cut.kind,
        "cut_category": "" if cut is None else cut.category,
        "q": 0.0 if cut is None else cut.q,
        "cut": "" if cut is None else json.dumps(asdict(cut), sort_keys=True),
        "tuning": "" if cell.tuning is None else json.dumps(asdict(cell.tuning), sort_keys=True),
        "removed": 0 if mask is None else mask.count,
        "removed_fraction": 0.0 if mask is None else mask.count / loaded.prunable,
    }


def _changed_weights(
    bench: Workbench, cell: Cell, loaded: Loaded, mask: Mask | None
) -> dict[str, Tensor]:
    """Return the parameters of a cut and tuned variant that differ from the intact model's."""
    tuning = cell.tuning
    if tuning is None:
        raise ValueError("the cell is not tuned")
    data = bench.set(tuning.data, cell.seed).split("calibration")
    if tuning.category:
        data = data.category(tuning.category)
    examples = data.limit(tuning.examples, cell.seed).examples
    settings = TuneSettings(
        steps=tuning.steps,
        rate=tuning.rate,
        batch=tuning.batch,
        method=tuning.method,
        rank=tuning.rank,
        alpha=2 * tuning.rank,
        seed=cell.seed,
    )
    model = loaded.model
    before = snapshot(model)
    hold = HoldMask(mask) if tuning.hold and mask is not None else None
    cutting = contextlib.nullcontext() if mask is None else removed(model, mask)
    with restoring(model, before), cutting:
        tune(
            LoadedModel(model, loaded.tokenizer),
            examples,
            settings,
            format=bench.config.format,
            callbacks=[] if hold is None else [hold],
        )
        if hold is not None:
            # An adapter that was merged has put something back into held places.
            hold.apply(model)
        found = changes(model, before)
    if tuning.against is not None:
        _compare_changes(bench, cell, tuning.against, (before, found))
    return found


def _compare_changes(
    bench: Workbench,
    cell: Cell,
    cut: Cut,
    weights: tuple[dict[str, Tensor], dict[str, Tensor]],
) -> None:
    """Write which share of the squared change falls into a located set, beside its controls."""
    before, after = weights
    own = bench.mask(cell.role, cell.seed, cut)
    tensors = prunable_tensors(bench.load(cell.role, cell.seed).model)
    matched = magnitude_matched(own, tensors, label=f"changes/{cut.target}", seed=cell.seed)
    moved = {
        name: (after[name] - before[name]).float().reshape(-1).square()
        for name in own.tensors
        if name in after
    }
    total = sum(float(change.sum()) for change in moved.values())

    def share(mask: Mask) -> float:
        inside = sum(float(change[mask.tensors[n].index].sum()) for n, change in moved.items())
        return inside / total if total else 0.0

    write_json(
        changes_path(bench.run, cell),
        {
            "target": cut.target,
            "share": share(own),
            "chance": own.fraction,
            "matched": share(matched),
            "enrichment": share(own) / own.fraction if own.fraction else None,
        },
    )


def evaluation_settings(config: RunConfig, attack: str = "") -> EvaluationSettings:
    """Return how the run's variants are asked and judged.

    Args:
        config: The run's configuration.
        attack: An attack as the command line writes it, in the place of the configuration's.
    """
    evaluation = config.evaluation
    usual = AttackSettings(config.attack.name, config.attack.tokens, config.attack.phrase)
    return EvaluationSettings(
        format=config.format,
        attack=parse_attack(attack) if attack else usual,
        judge=evaluation.judge,
        generation=GenerationSettings(evaluation.max_new_tokens, evaluation.batch_size),
    )


def run_cells(
    config: RunConfig,
    run: Path,
    cells: list[Cell],
    *,
    keep: float,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Measure the cells that are not done yet.

    Args:
        config: The run's configuration.
        run: Its folder.
        cells: Merged cells, or a shard of them.
        keep: From `needed_keep` over all cells, so that shards share their scores.
        on_progress: Called with cells done and cells in all.
    """
    bench = Workbench(config, run, keep)
    for position, cell in enumerate(cells):
        if on_progress is not None:
            on_progress(position, len(cells))
        if not is_done(run, cell):
            measure(bench, cell)
    if on_progress is not None:
        on_progress(len(cells), len(cells))


def rejudge(config: RunConfig, run: Path, cells: Iterable[Cell]) -> None:
    """Judge stored replies again, with the judge of `config`; needs no model."""
    settings = evaluation_settings(config)
    for cell in cells:
        path = record_path(run, cell)
        rows = read_parquet(path)
        verdicts = judge_replies([reply_of(row) for row in rows], settings)
        write_parquet(
            path, [row | asdict(verdict) for row, verdict in zip(rows, verdicts, strict=True)]
        )
