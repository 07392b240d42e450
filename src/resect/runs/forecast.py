"""What a run will need before it starts: cells, memory and time, from shapes and settings alone.

Scoring is planned by `resect.attribution.plan`. Beside it a run tunes and asks:
- tuning: forwards and backwards over every token, 6 operations a weight, 4 with an adapter, whose
  frozen weights have no gradients of their own. In memory are the model, two copies of its weights
  (before and after), and with full tuning a gradient and AdamW's two moments of each weight;
- asking: 2 operations a weight and prompt token, then one step for each new token, which reads all
  weights once. A reply is counted in full length, so that this is the most it takes.

No data are read: where a set has no limit its size is assumed, and so are lengths and speeds. The
estimate is for planning machines; it was not measured on the models that the recipes name.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import ceil, inf
from typing import Any, NamedTuple

import torch

from resect.attribution.estimate import ASSUMED_RATE, scoring_rate
from resect.attribution.plan import GIB, Plan, Shape, Work, plan, shape_of
from resect.errors import InputError
from resect.evaluation.attacks import parse_attack
from resect.evaluation.probes import find_probe
from resect.machine.memory import Free, free_memory
from resect.model.shapes import PUBLISHED, empty_model
from resect.records import CausalModel
from resect.runs.config import RunConfig
from resect.studies.cells import Cell, Cut, at_seed


@dataclass(frozen=True)
class Assumed:
    """What is not in the configuration.

    Attributes:
        memory: GiB of the device, all GPUs of a run together.
        host: GiB of CPU memory for sums that the device has no room for.
        rate: Floating-point operations a second that whole passes reach.
        bandwidth: Bytes a second at which weights are read while a reply is written.
        step: Least seconds of a generation step for each block, whatever its size: the time it
            takes to start the work of a block.
        length: Tokens of an example, half of them scored.
        examples: Examples of a set without a limit.
        prompts: Prompts of a probe without a limit.
    """

    memory: float = 80.0
    host: float = 128.0
    rate: float = ASSUMED_RATE
    bandwidth: float = 1.5e12
    step: float = 1e-3
    length: int = 256
    examples: int = 412
    prompts: int = 500


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
    config: RunConfig, cells: Iterable[Cell], assumed: Assumed | None = None
) -> list[Need]:
    """Return what each role's cells need; all that is planned is on one device after another.

    Args:
        config: The run.
        cells: Its merged cells.
        assumed: The device, and what the configuration does not say.

    Raises:
        InputError: A model's configuration can neither be read nor is known.
    """
    by_role: dict[str, list[Cell]] = {}
    for cell in cells:
        by_role.setdefault(cell.role, []).append(cell)
    return [
        _need(config, role, role_cells, assumed or Assumed())
        for role, role_cells in sorted(by_role.items())
    ]


class Rows(NamedTuple):
    """What the sets of a run hold.

    Attributes:
        length: Mean tokens of a prompt with its answer.
        examples: Most examples of a set that are scored.
        prompts: Most prompts of a probe.
    """

    length: int
    examples: int
    prompts: int


def expected_here(config: RunConfig, cells: Iterable[Cell], rows: Rows) -> float:
    """Return the seconds that a run will take on this machine at most, replies in full length.

    Speeds are measured in about a second; see `matrix_rate`.

    Raises:
        InputError: As `forecast`.
    """
    free = free_memory()
    assumed = Assumed(
        memory=free.device / GIB,
        host=(free.host or free.device) / GIB,
        rate=scoring_rate(torch.float32).operations,
        bandwidth=_bandwidth(),
        length=rows.length,
        examples=rows.examples,
        prompts=rows.prompts,
    )
    return sum(need.seconds for need in forecast(config, cells, assumed))


def _bandwidth() -> float:
    """Return the bytes a second that this machine reads, measured in a moment."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    read = torch.ones(2**24, dtype=torch.float32, device=device)
    seconds = inf
    for _ in range(3):
        start = time.perf_counter()
        read.sum().item()  # waits for a GPU
        seconds = min(seconds, time.perf_counter() - start)
    return read.nbytes / seconds


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


def _need(config: RunConfig, role: str, cells: list[Cell], assumed: Assumed) -> Need:
    model_place = at_seed(config.models[role], cells[0].seed)
    shaped = shape_at(model_place)
    shape = shaped.shape
    tokens = _scored_tokens(config, cells, assumed)
    work = Work(
        tokens=max(tokens, default=assumed.length),
        scored=max(tokens, default=assumed.length) // 2,
        batch_tokens=8192,
        longest=assumed.length,
        keep=1e-3,
    )
    free = Free(device=assumed.memory * GIB, host=assumed.host * GIB)
    scoring = plan(shape, work, free)
    operations = sum(scoring.operations * count / work.tokens for count in tokens)
    moved = sum(scoring.moved * count / work.tokens for count in tokens)
    tuned, tuning_memory = _tuning(cells, shape, assumed)
    asking = sum(_asking(config, cell, shaped, assumed) for cell in cells)
    memory = max(scoring.device, tuning_memory, _asking_memory(config, shaped, assumed))
    return Need(
        role=role,
        place=model_place,
        parameters=shape.parameters // shape.itemsize,
        cells=len(cells),
        scorings=len(tokens),
        scoring=scoring,
        scoring_seconds=operations / assumed.rate + moved / 2e10,
        tuning_seconds=tuned / assumed.rate,
        asking_seconds=asking,
        memory=memory,
        fits=scoring.fits and memory <= 0.95 * free.device,
    )


def _scored_tokens(config: RunConfig, cells: list[Cell], assumed: Assumed) -> list[int]:
    """Return the tokens of each set that is scored: targets by what varies, the preserve set."""
    tokens_of: dict[object, int] = {}

    def count(limit: int | None) -> int:
        return (limit or assumed.examples) * assumed.length

    for cell in cells:
        cut = cell.cut
        against = None if cell.tuning is None else cell.tuning.against
        for used in (cut, against):
            if used is None:
                continue
            if config.selection.p > 0 or used.p:
                tokens_of["preserve", cell.seed] = count(config.preserve.limit)
            target = config.targets[used.target]
            sets = [target] + ([config.targets[target.contrast]] if target.contrast else [])
            tokens = sum(count(used.examples or scored.limit) for scored in sets)
            for number in range(used.rounds):
                tokens_of[cell.seed, _scoring(used), number] = tokens
        scored = parse_attack(cell.attack).work(assumed.examples).scored if cell.attack else 0
        if scored:
            tokens_of[cell.key] = scored * assumed.length
    return list(tokens_of.values())


def _scoring(cut: Cut) -> Cut:
    """Return what of a cut its scores depend on; in rounds they depend on all of it."""
    usual = cut.located
    return usual if cut.rounds > 1 else replace(usual, q=1.0, p=None, scope=None)


class _TuningNeed(NamedTuple):
    """What all fine-tuning of some cells needs: operations, and bytes without activations."""

    operations: float
    memory: float


def _tuning(cells: list[Cell], shape: Shape, assumed: Assumed) -> _TuningNeed:
    """Return what the tuned and the attacked cells need."""
    weights = shape.parameters // shape.itemsize
    operations, memory = 0.0, 0.0
    for cell in cells:
        tuning = cell.tuning
        trained = parse_attack(cell.attack).work(assumed.examples).trained if cell.attack else 0
        if tuning is not None:
            per_token = 6 if tuning.method == "full" else 4
            operations += per_token * weights * tuning.steps * tuning.batch * assumed.length
            extra = 3 if tuning.method == "full" else 0
            memory = max(memory, (3.0 + extra) * shape.parameters)
        if trained:
            operations += 4 * weights * trained * assumed.length
            memory = max(memory, 3.0 * shape.parameters)
    return _TuningNeed(operations, memory)


def _asking(config: RunConfig, cell: Cell, shaped: Shaped, assumed: Assumed) -> float:
    """Return the seconds of a cell's probes."""
    evaluation = config.evaluation
    prompts = evaluation.limit or assumed.prompts
    shape, cache = shaped
    forward = 2.0 * (shape.active + shape.hidden * shape.vocabulary) / assumed.rate
    # A slow device is bound by its products, a quick one by what it reads.
    step = max(
        shape.parameters / assumed.bandwidth,
        assumed.step * cache.blocks,
        forward * evaluation.batch_size,
    )
    seconds = 0.0
    for name in cell.probes:
        seconds += prompts * assumed.length * forward
        if evaluation.measure == "likelihood":
            continue
        probe = find_probe(name)
        if not probe.decoded:
            continue
        replies = prompts * cell.samples
        seconds += ceil(replies / evaluation.batch_size) * evaluation.max_new_tokens * step
        if probe.coherent:
            seconds += replies * (assumed.length + evaluation.max_new_tokens) * forward
    return seconds


def _asking_memory(config: RunConfig, shaped: Shaped, assumed: Assumed) -> float:
    """Return bytes of the weights and of the keys and values of a batch of replies."""
    shape, cache = shaped
    length = assumed.length + config.evaluation.max_new_tokens
    per_token = cache.blocks * cache.numbers * shape.itemsize
    rows = config.evaluation.batch_size * config.evaluation.together
    return float(shape.parameters + rows * length * per_token)
