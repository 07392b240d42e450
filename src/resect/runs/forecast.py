"""What a run will need before it starts: cells, memory and time, from shapes and settings alone.

Scoring is planned by `resect.attribution.plan`. Beside it a run tunes and asks:
- tuning: forwards and backwards over every token, 6 operations a weight, 4 with an adapter, whose
  frozen weights have no gradients of their own. In memory are the model, two copies of its weights
  (before and after), and with full tuning a gradient and AdamW's two moments of each weight;
- asking: the passes that `resect.runs.passes` counts, 2 operations a weight and token, and for each
  call the reading of all weights.

What is counted becomes seconds by the fields of `Assumed`, which are those of a large accelerator,
or are measured on this machine in about a second (`here`). Rows that are not known are assumed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from resect.attribution.plan import GIB, Plan, Shape, Work, plan, shape_of
from resect.errors import InputError
from resect.evaluation.attacks import parse_attack
from resect.evaluation.replies import MOST_BYTES, MOST_ROWS
from resect.machine.memory import Free
from resect.model.shapes import PUBLISHED, empty_model
from resect.records import CausalModel
from resect.runs.config import RunConfig
from resect.runs.passes import (
    Decoder,
    SetSize,
    asking,
    goes_side_by_side,
    intact_once,
    mean_tokens,
)
from resect.runs.searching import most_questions
from resect.runs.speed import Assumed, here
from resect.runs.twins import is_shared
from resect.studies.cells import Cell, Cut, Tuning, at_seed

# A backward pass calls each block about as often again, with an optimiser behind it.
TRAINING = 3.0
# Rows of a step of `finetune`, unless it says otherwise.
ATTACK_BATCH = 5


@dataclass(frozen=True)
class Need:
    """What the cells of one role need.

    Attributes:
        role: The role.
        place: Its model.
        parameters: Number of parameters.
        cells: Number of cells.
        scorings: Number of scored sets, rounds counted apart.
        scoring: Plan of one.
        scoring_seconds: Time of all.
        tuning_seconds: Time of all fine-tuning, attacks too.
        asking_seconds: Most time of all replies.
        memory: Most bytes on the device.
        fits: Whether they fit.
    """

    role: str
    place: str
    parameters: int
    cells: int
    scorings: int
    scoring: Plan
    scoring_seconds: float
    tuning_seconds: float
    asking_seconds: float
    memory: float
    fits: bool

    @property
    def seconds(self) -> float:
        """Time of all."""
        return self.scoring_seconds + self.tuning_seconds + self.asking_seconds


def forecast(
    config: RunConfig,
    cells: Iterable[Cell],
    assumed: Assumed | None = None,
    *,
    sizes: Mapping[str, SetSize] | None = None,
    full: bool = True,
) -> list[Need]:
    """Return what each role's cells need; all that is planned is on one device after another.

    Args:
        config: The run.
        cells: Its merged cells.
        assumed: The device, and what the configuration does not say.
        sizes: How long rows are, by the names of sets under `data`, as far as that is basis.
        full: Whether replies are as long as they may be, else as long as the answers of their sets.

    Raises:
        InputError: A model's configuration can neither be read nor is known.
    """
    assumed, cells = assumed or Assumed(), list(cells)
    measured = dict(sizes or {})
    everything = dict.fromkeys(config.data, assumed.size(config.evaluation.limit)) | measured
    by_role: dict[str, list[Cell]] = {}
    for cell in cells:
        by_role.setdefault(cell.role, []).append(cell)
    questions = most_questions(config, cells, lambda probe: _prompts(config, everything, probe))
    share = questions.count / questions.grid if questions.grid else 1.0
    basis = _Basis(assumed, everything, frozenset(measured), full, share)
    return [_need(config, role, role_cells, basis) for role, role_cells in sorted(by_role.items())]


class _Basis(NamedTuple):
    """What is known or assumed of device and data.

    Attributes:
        assumed: The device.
        sizes: How long the rows of all sets are.
        measured: The sets whose rows are known.
        full: Whether replies are as long as they may be.
        share: The share of the questions that is asked.
    """

    assumed: Assumed
    sizes: Mapping[str, SetSize]
    measured: frozenset[str]
    full: bool
    share: float

    def scored(self, name: str, limit: int | None) -> _Scored:
        """Return what of a set is scored or trained on, of a target that has this limit."""
        rows = self.sizes[name].scored
        if name not in self.measured or not rows:
            return _Scored(limit or self.assumed.examples, self.assumed.length)
        return _Scored(min(len(rows), limit or len(rows)), mean_tokens(rows))


def _prompts(config: RunConfig, sizes: Mapping[str, SetSize], probe: str) -> int:
    """Return how many prompts a probe has."""
    evaluation = config.evaluation
    return len(sizes[evaluation.probes[probe]].asked[: evaluation.limit])


def expected_here(
    config: RunConfig,
    cells: Iterable[Cell],
    sizes: Mapping[str, SetSize],
    *,
    full: bool = False,
    jobs: int = 1,
    machine: Assumed | None = None,
) -> float:
    """Return the seconds that a run will take on this machine.

    Args:
        config: The run.
        cells: Its merged cells.
        sizes: How long the rows of its sets are.
        full: As for `forecast`.
        jobs: Processes that share the cells.
        machine: What each of them does, from `here`; None measures it.

    Raises:
        InputError: As `forecast`.
    """
    needs = forecast(config, cells, machine or here(jobs), sizes=sizes, full=full)
    return sum(need.seconds for need in needs) / jobs


class Cache(NamedTuple):
    """What the keys and values of a model take: blocks, and numbers a block and token."""

    blocks: int
    numbers: int


class Shaped(NamedTuple):
    """What is planned with of a model."""

    shape: Shape
    cache: Cache


def shape_at(model_place: str) -> Shaped:
    """Return the shape of a model and of its cache.

    A configuration that can be read goes before the table of published shapes.
    """
    try:
        model: CausalModel = empty_model(model_place.partition("@")[0])
    except InputError:
        published = PUBLISHED.get(model_place.partition("@")[0])
        if published is None:
            raise
        model = _published(*published)
    return Shaped(shape_of(model), _cache(model.config.get_text_config()))


def _cache(text: Any) -> Cache:
    """Read a text configuration of transformers."""
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Cache(text.num_hidden_layers, 2 * heads * width)


def _published(model_type: str, sides: Mapping[str, object]) -> CausalModel:
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model: CausalModel = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(model_type, **sides), dtype=torch.bfloat16
        )
    return model


def _need(config: RunConfig, role: str, cells: list[Cell], basis: _Basis) -> Need:
    assumed = basis.assumed
    model_place = at_seed(config.models[role], cells[0].seed)
    shaped = shape_at(model_place)
    shape = shaped.shape
    scored = _scored(config, cells, basis)
    tokens = [rows * round(length) for rows, length in scored]
    work = Work(
        tokens=max(tokens, default=assumed.length),
        scored=max(tokens, default=assumed.length) // 2,
        batch_tokens=8192,
        longest=max([assumed.length, *(round(length) for _, length in scored)]),
        keep=1e-3,
    )
    free = Free(device=assumed.memory * GIB, host=assumed.host * GIB)
    scoring = plan(shape, work, free)
    operations = sum(scoring.operations * count / work.tokens for count in tokens)
    moved = sum(scoring.moved * count / work.tokens for count in tokens)
    seconds = operations / assumed.rate + moved / 2e10
    if not assumed.overlaps:
        seconds += sum(
            rows * assumed.row + TRAINING * shaped.cache.blocks * assumed.step for rows, _ in scored
        )
    tuning = _tuning(config, cells, shaped, basis)
    memory = max(scoring.device, tuning.memory, _asking_memory(config, shaped, assumed))
    return Need(
        role=role,
        place=model_place,
        parameters=shape.parameters // shape.itemsize,
        cells=len(cells),
        scorings=len(scored),
        scoring=scoring,
        scoring_seconds=seconds,
        tuning_seconds=tuning.seconds,
        asking_seconds=_asking(config, cells, shaped, basis),
        memory=memory,
        fits=scoring.fits and memory <= 0.95 * free.device,
    )


class _Scored(NamedTuple):
    """A set that is scored: rows, and their mean length."""

    rows: int
    length: float


def _scored(config: RunConfig, cells: list[Cell], basis: _Basis) -> list[_Scored]:
    """Return each set that is scored: targets by what varies, the preserve set."""
    sets: dict[object, _Scored] = {}

    for cell in cells:
        against = None if cell.tuning is None else cell.tuning.against
        for used in (cell.cut, against):
            if used is None:
                continue
            if config.selection.p > 0 or used.p:
                preserve = config.preserve
                sets["preserve", cell.seed] = basis.scored(preserve.data, preserve.limit)
            target = config.targets[used.target]
            targets = [target] + ([config.targets[target.contrast]] if target.contrast else [])
            counts = [basis.scored(side.data, used.examples or side.limit) for side in targets]
            rows = sum(count.rows for count in counts)
            length = sum(count.rows * count.length for count in counts) / max(1, rows)
            for number in range(used.rounds):
                sets[cell.seed, _scoring(used), number] = _Scored(rows, length)
        examples = basis.assumed.examples
        scored = parse_attack(cell.attack).work(examples).scored if cell.attack else 0
        if scored:
            sets[cell.key] = _Scored(scored, basis.assumed.length)
    return list(sets.values())


def _scoring(cut: Cut) -> Cut:
    """Return what of a cut its scores depend on; in rounds they depend on all of it."""
    usual = cut.located
    return usual if cut.rounds > 1 else replace(usual, q=1.0, p=None, scope=None)


class _TuningNeed(NamedTuple):
    """What all fine-tuning of some cells needs: seconds, and bytes without activations."""

    seconds: float
    memory: float


def _tuning(config: RunConfig, cells: Sequence[Cell], shaped: Shaped, basis: _Basis) -> _TuningNeed:
    """Return what the tuned and the attacked cells need."""
    parameters = shaped.shape.parameters
    seconds, memory = 0.0, 0.0
    for cell in cells:
        tuning = cell.tuning
        if tuning is not None:
            full = tuning.method == "full"
            steps = _Steps(tuning.steps, *_batch_of(tuning, basis))
            seconds += _trained(steps, shaped, basis.assumed, 6 if full else 4)
            memory = max(memory, (3.0 + (3 if full else 0)) * parameters)
        attack = parse_attack(cell.attack) if cell.attack else None
        rows = attack.work(basis.assumed.examples).trained if attack else 0
        if attack is not None and rows:
            length = _attacked_length(config, basis)
            steps = _Steps(max(1, round(rows / ATTACK_BATCH)), ATTACK_BATCH, length)
            seconds += _trained(steps, shaped, basis.assumed, 4)
            memory = max(memory, 3.0 * parameters)
    return _TuningNeed(seconds, memory)


class _Batch(NamedTuple):
    """Rows of a step of training, and their mean length."""

    rows: int
    length: float


class _Steps(NamedTuple):
    """A training: its steps, rows of each, and their mean length."""

    steps: int
    rows: int
    length: float


def _batch_of(tuning: Tuning, basis: _Basis) -> _Batch:
    """Return the rows of a step; no batch holds more rows than there are."""
    rows, length = basis.scored(tuning.data, tuning.examples)
    return _Batch(min(tuning.batch, rows), length)


def _attacked_length(config: RunConfig, basis: _Basis) -> float:
    """Return the mean length of the rows that an attack trains on."""
    name = config.attack_data.get("target")
    return basis.scored(name, None).length if name else float(basis.assumed.length)


def _trained(steps: _Steps, shaped: Shaped, assumed: Assumed, operations: int) -> float:
    """Return the seconds of a training with so many operations a weight and token."""
    shape, tokens = shaped.shape, steps.steps * steps.rows * steps.length
    weights = shape.parameters // shape.itemsize
    moved = assumed.traffic * shape.itemsize * sum(shape.features.values()) * tokens
    seconds = operations * weights * tokens / assumed.rate
    if not assumed.overlaps:
        seconds += TRAINING * moved / assumed.bandwidth
        seconds += TRAINING * steps.steps * shaped.cache.blocks * assumed.step
    return seconds + assumed.training


def _decoder(shaped: Shaped) -> Decoder:
    """Return how a model may be decoded, as far as its shape says it."""
    shape, cache = shaped
    alike = shape.itemsize == 4 and shape.active == shape.total
    return Decoder(shape.vocabulary, cache.blocks * cache.numbers * shape.itemsize, alike)


def _asking(config: RunConfig, cells: Sequence[Cell], shaped: Shaped, basis: _Basis) -> float:
    """Return the seconds of the probes of cells."""
    assumed, decoder = basis.assumed, _decoder(shaped)
    seconds = 0.0
    for cell in cells:
        if cell.seed != config.seeds[0] and is_shared(config, cell):
            continue
        passes = asking(config, cell, decoder, basis.sizes, full=basis.full)
        for count in (passes.reading, passes.writing):
            seconds += assumed.seconds(count, shaped.shape)
    once = assumed.seconds(intact_once(config, decoder, basis.sizes), shaped.shape)
    seeds = {cell.seed for cell in cells if "likelihood" in cell.probes}
    return basis.share * (seconds + len(cells) * assumed.cell) + len(seeds) * once


def _asking_memory(config: RunConfig, shaped: Shaped, assumed: Assumed) -> float:
    """Return bytes of the weights and of the keys and values of the replies under way."""
    length = assumed.length + config.evaluation.max_new_tokens
    decoder, evaluation = _decoder(shaped), config.evaluation
    a_row = length * decoder.bytes_a_token
    rows = evaluation.batch_size * evaluation.together * a_row
    if goes_side_by_side(decoder, evaluation.decoding):
        rows = max(rows, min(MOST_ROWS * a_row, MOST_BYTES))
    return float(shaped.shape.parameters + rows)
