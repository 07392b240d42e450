"""What scoring a model will need, from its shapes alone: memory, passes, operations, file sizes.

In memory at once are
- the model: every parameter in its dtype;
- the sums: 4 bytes a prunable weight and kind of sum, of all layers or of those of one pass;
- the largest gradient: the parameter with most weights, in its dtype; others are freed by then;
- activations: for each token the inputs and outputs of the linear layers that it goes through, 20
  bytes a hidden feature and layer for norms and attention (measured: 10 for Llama, 20 for Qwen3),
  and once more the widest block for the backward pass. Attention that keeps its weights (`eager`)
  needs more. With checkpointing, block inputs and one block;
- logits: 12 bytes for each scored token and word, of no more than are made at once
  (`resect.attribution.head`); a model whose head has to be run whole needs them for all of a batch.
When a pass is done, activations and logits are gone, and weight by weight is ranked while the sums
are still there:
- ranking: 14 bytes a weight of the largest parameter (a score, its factors or the copy that is
  partitioned, and flags), and 40 a candidate of it (index, order, place in each axis, value);
- candidates: an index, a score and a weight each, and the best scores once more. Up to four times
  the asked-for fraction is held before it is cut. They are in CPU memory, while sums go away.
The plan counts what is held at once: of the pass and the ranking the larger one, and candidates
beside the sums where several passes make them so, else where they outgrow the sums.

Operations of one pass over T tokens of which S are scored, with A weights that a token goes
through: 2·A·T forwards, 2·A·T backwards, 2·A·T more where checkpointing repeats the forward pass,
and 4·S·vocabulary·hidden for the head. The weights' own gradients, 2·A·T, are taken once over all
passes. Per-example reductions need the same products, in smaller pieces.
Sums in CPU memory make each batch move the gradients of all weights there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from resect.attribution.head import CPU_PIECE, GPU_PIECE
from resect.machine.memory import Free
from resect.model.prunable import Coverage, find_prunable
from resect.records import CausalModel

GIB = 2**30
# Of what is free, so much may be planned away; the rest is for what no formula knows of.
SAFE = 0.9
NORM_BYTES = 20
LOGIT_BYTES = 12
RANK_BYTES = 14
# Operations of a large accelerator in the time that a byte takes to CPU memory: 300 TFLOP/s over
# 20 GB/s, as assumed elsewhere (`resect.attribution.estimate`).
# 20 GB/s, as `resect.attribution.estimate` assumes.
BALANCE = 15_000
CANDIDATE_BYTES = 40
# Tokens of a batch that goes through one block alone: larger ones need memory and read no less.
STREAM_TOKENS = 4096


@dataclass(frozen=True)
class Shape:
    """What a plan has to know of a model.

    Attributes:
        parameters: Bytes of all parameters.
        itemsize: Bytes of one weight.
        prunable: Number of prunable weights, by position of the block.
        active: Prunable weights that one token goes through.
        largest: Weights of the largest prunable parameter.
        features: Inputs and outputs of the linear layers that one token goes through, by block.
        hidden: Width of the residual stream.
        vocabulary: Number of words of the output head.
    """

    parameters: int
    itemsize: int
    prunable: Mapping[int, int]
    active: int
    largest: int
    features: Mapping[int, int]
    hidden: int
    vocabulary: int

    @property
    def total(self) -> int:
        """Number of prunable weights, N."""
        return sum(self.prunable.values())


@dataclass(frozen=True)
class Work:
    """What is asked for.

    Attributes:
        tokens: Tokens of all examples.
        scored: Those of them that are scored.
        batch_tokens: Most tokens of one batch, padding included.
        longest: Tokens of the longest example; a batch cannot be smaller.
        sums: Kinds of sums that are kept of each weight, divided by the processes that share them.
        points: Passes that the method makes itself (`integrated`).
        keep: Fraction of candidates.
    """

    tokens: int
    scored: int
    batch_tokens: int
    longest: int
    sums: float = 1
    points: int = 1
    keep: float = 1e-2


@dataclass(frozen=True)
class Plan:
    """How a pass is made.

    Attributes:
        accumulator: `device` or `cpu`.
        layers: Layers that are scored in one pass; None for all.
        checkpoint: Activations are computed again in the backward pass.
        batch_tokens: Tokens of one batch, padding included.
        passes: Passes over the data.
        memory: Bytes by what needs them: model, sums, gradient, activations, logits, and what
            ranking and candidates need beyond these.
        host: Bytes of sums and candidates in CPU memory beside the device's.
        operations: Floating-point operations.
        moved: Bytes that go from the device to CPU memory.
        fits: Whether free memory suffices.
        sparse: Most bytes of one score file.
        dense: Bytes of one file of fp32 scores of every weight.
    """

    accumulator: str
    layers: int | None
    checkpoint: bool
    batch_tokens: int
    passes: int
    memory: Mapping[str, float]
    host: float
    operations: float
    moved: float
    fits: bool
    sparse: float
    dense: float

    @property
    def device(self) -> float:
        """Bytes on the device."""
        return sum(self.memory.values())

    def summary(self) -> str:
        """Return the choice in one line."""
        where = "on the device" if self.accumulator == "device" else "in CPU memory"
        layers = "all layers" if self.layers is None else f"{self.layers} layers"
        passes = f"{self.passes} {'pass' if self.passes == 1 else 'passes'}"
        again = ", activations computed again" if self.checkpoint else ""
        batch = f"batches of {self.batch_tokens:,} tokens"
        return f"sums {where}, {layers} a pass, {passes} over the data, {batch}{again}"


def shape_of(model: CausalModel, coverage: Coverage | None = None) -> Shape:
    """Return the shape of a model; one on the meta device will do.

    Args:
        model: A Hugging Face causal LM.
        coverage: Its prunable weights, if they are known already.

    Raises:
        CoverageError: The model has block weights of an unknown kind.
        InputError: There is nothing to prune.
    """
    coverage = coverage or find_prunable(model)
    config: Any = model.config.get_text_config()  # families have numbers of their own
    prunable: dict[int, int] = {}
    features: dict[int, int] = {}
    active = 0
    for weight in coverage.weights:
        used = 1
        if len(weight.shape) == 3:
            used = getattr(config, "num_experts_per_tok", None) or weight.shape[0]
        sides = weight.shape[-2:]
        active += used * sides[0] * sides[1]
        prunable[weight.layer] = prunable.get(weight.layer, 0) + weight.size
        features[weight.layer] = features.get(weight.layer, 0) + used * sum(sides)
    return Shape(
        parameters=sum(p.numel() * p.element_size() for p in model.parameters()),
        itemsize=model.get_parameter(coverage.weights[0].name).element_size(),
        prunable=prunable,
        active=active,
        largest=max(weight.size for weight in coverage.weights),
        features=features,
        # A model of bytes has a width for each of its parts, and none of its own.
        hidden=getattr(config, "hidden_size", None) or _width(model),
        vocabulary=config.vocab_size,
    )


def _width(model: CausalModel) -> int:
    """Return the width of the hidden states that the first block reads."""
    return model.get_input_embeddings().get_parameter("weight").shape[-1]


def plan(shape: Shape, work: Work, free: Free) -> Plan:
    """Choose where sums are kept and how many layers a pass has.

    In this order, the first that fits: all sums on the device, in batches that are halved as often
    as it helps; the same with activations computed again, which costs less than moving gradients;
    sums in CPU memory, with the larger batches that computing activations again allows, since each
    batch moves the gradients of all weights; as many layers a pass as fit, on the device or in CPU
    memory, whichever takes less time. If nothing fits, the plan with least memory is returned, and
    `fits` is false.
    """
    accumulators = ["device", "cpu"] if free.host else ["device"]
    depth = len(shape.prunable)
    orders = {
        "device": [(again, tokens) for again in (False, True) for tokens in _halves(work)],
        "cpu": [(again, tokens) for tokens in _halves(work) for again in (False, True)],
    }
    for accumulator in accumulators:
        for checkpoint, tokens in orders[accumulator]:
            choice = _made(shape, work, free, _Choice(accumulator, depth, checkpoint, tokens))
            if choice.fits:
                return choice
    smallest = _halves(work)[-1]
    best = _made(shape, work, free, _Choice("device", 1, True, smallest))
    for accumulator in accumulators:
        # More layers never need less memory, so halving finds the most that fit.
        low, high = 0, depth
        while high - low > 1:
            middle = (low + high) // 2
            fits = _made(shape, work, free, _Choice(accumulator, middle, True, smallest)).fits
            low, high = (middle, high) if fits else (low, middle)
        choice = _made(shape, work, free, _Choice(accumulator, max(low, 1), True, smallest))
        if choice.fits and (not best.fits or _cost(choice) < _cost(best)):
            best = choice
    return best


def _cost(choice: Plan) -> float:
    """Return operations, with what is moved counted as those that take as long."""
    return choice.operations + BALANCE * choice.moved


class _Choice(NamedTuple):
    accumulator: str
    layers: int
    checkpoint: bool
    tokens: int


def _halves(work: Work) -> list[int]:
    # No batch holds more than there is.
    tokens = [max(min(work.batch_tokens, work.tokens), work.longest)]
    while tokens[-1] // 2 >= work.longest:
        tokens.append(tokens[-1] // 2)
    return tokens


def _made(shape: Shape, work: Work, free: Free, choice: _Choice) -> Plan:
    accumulator, layers, checkpoint, tokens = choice
    order = sorted(shape.prunable)
    groups: dict[int, int] = {}
    for layer in order:
        groups[layer // layers] = groups.get(layer // layers, 0) + shape.prunable[layer]
    whole = layers >= len(order)
    sums = 4.0 * work.sums * (shape.total if whole else max(groups.values()))
    passes = work.points * (1 if whole else len(groups))
    once = {
        "gradient": float(shape.largest * shape.itemsize),
        "activations": tokens * activations_a_token(shape, checkpoint=checkpoint),
        "logits": _logits(shape, work, tokens, GPU_PIECE if free.host else CPU_PIECE),
    }
    candidates = _candidates(shape, work)
    # With one pass they come while sums go.
    beside = max(0.0, candidates - sums) if whole else candidates
    memory = {
        "model": 0.0 if free.holds_model else float(shape.parameters),
        "sums": sums if accumulator == "device" else 0.0,
        **once,
        "ranking": max(0.0, _ranking(shape, work) - sum(once.values())),
        "candidates": 0.0 if free.host else beside,
    }
    host = 0.0 if accumulator == "device" else sums
    host += beside if free.host else 0.0
    body = 2.0 * shape.active * work.tokens
    head = 4.0 * shape.hidden * shape.vocabulary * work.scored
    operations = passes * (body * (3 if checkpoint else 2) + head) + work.points * body
    # Both heads of a ranking, a gap of one byte (two if they are sparse), a score and a weight, of
    # which packing takes about a sixth away.
    candidates_kept = min(1.0, 2 * work.keep) * shape.total
    return Plan(
        accumulator=accumulator,
        layers=None if whole else layers,
        checkpoint=checkpoint,
        batch_tokens=tokens,
        passes=passes,
        memory=memory,
        host=host,
        operations=operations,
        moved=0.0
        if accumulator == "device"
        else work.tokens / tokens * shape.total * shape.itemsize,
        fits=sum(memory.values()) <= SAFE * free.device and host <= SAFE * free.host,
        sparse=candidates_kept * ((1 if work.keep > 1 / 300 else 2) + 4 + shape.itemsize),
        dense=4.0 * shape.total,
    )


def activations_a_token(shape: Shape, *, checkpoint: bool = False) -> float:
    """Return the bytes of activations that a token takes in a pass with gradients."""
    blocks = [
        shape.itemsize * features + NORM_BYTES * shape.hidden
        for features in shape.features.values()
    ]
    stored = shape.itemsize * shape.hidden * len(blocks) if checkpoint else sum(blocks)
    return float(stored + max(blocks) * (2 if checkpoint else 1))


def _logits(shape: Shape, work: Work, tokens: int, piece: int) -> float:
    """Return the most bytes of logits of a batch, where `piece` bytes in fp32 are made at once."""
    places = min(tokens * work.scored / work.tokens, max(1.0, piece / 4 / shape.vocabulary))
    return places * shape.vocabulary * LOGIT_BYTES


def _candidates(shape: Shape, work: Work) -> float:
    """Return the most bytes of candidates (`resect.weights.candidates.Candidates`)."""
    entries = min(1.0, 4 * work.keep) * (8 + 4 + shape.itemsize)
    return shape.total * (entries + 4 * min(1.0, 2 * work.keep))


def _ranking(shape: Shape, work: Work) -> float:
    """Return the bytes that ranking one parameter needs for the moment.

    As long as nothing is known of the model, a whole parameter may be among its highest.
    """
    chosen = min(float(shape.largest), work.keep * shape.total)
    return RANK_BYTES * shape.largest + CANDIDATE_BYTES * chosen


class Streamed(NamedTuple):
    """What scoring block by block from disk needs (`resect.attribution.offloaded`).

    Attributes:
        tokens: Most tokens of a batch, padding included.
        device: Bytes on the device: what is outside of the blocks and the masks of all batches;
            beside them either one block with its sums, and activations of one batch inside it with
            the largest gradient, or what ranking needs; or, without a block, the logits of a batch.
        host: Bytes of candidates in CPU memory.
        disk: Bytes of hidden states in the scratch folder.
        moved: Bytes to and from disk: the checkpoint three times (for the name of the model,
            forwards, backwards), hidden states five times (written and read forwards, read twice
            and written backwards).
        operations: Floating-point operations, with the second forward pass of each block.
    """

    tokens: int
    device: float
    host: float
    disk: float
    moved: float
    operations: float


def streamed(shape: Shape, work: Work, free: Free | None = None) -> Streamed:
    """Return what `resect score --stream` needs.

    Args:
        shape: The model.
        work: What is asked for.
        free: Where batches are halved, as often as it helps, until it fits; None does not halve.
    """
    sizes = _halves(replace(work, batch_tokens=min(work.batch_tokens, STREAM_TOKENS)))
    for tokens in sizes if free is not None else sizes[:1]:
        need = _streamed(shape, work, tokens)
        if free is None or need.device + (0.0 if free.host else need.host) <= SAFE * free.device:
            break
    return need


def _streamed(shape: Shape, work: Work, tokens: int) -> Streamed:
    block = max(shape.prunable.values())
    inside = max(
        shape.itemsize * features + NORM_BYTES * shape.hidden
        for features in shape.features.values()
    )
    logits = _logits(shape, work, tokens, GPU_PIECE)
    outside = shape.parameters - shape.itemsize * shape.total
    batch = 2.0 * tokens * inside + shape.largest * shape.itemsize
    opened = block * (shape.itemsize + 4 * work.sums) + max(batch, _ranking(shape, work))
    masks = float(work.tokens * work.longest)
    head = 4.0 * shape.hidden * shape.vocabulary * work.scored
    disk = (len(shape.prunable) + 1.0) * work.tokens * shape.hidden * shape.itemsize
    return Streamed(
        tokens=tokens,
        device=outside + masks + max(opened, logits),
        host=_candidates(shape, work),
        disk=disk,
        moved=3.0 * shape.parameters + 5 * disk,
        operations=8.0 * shape.active * work.tokens + head,
    )
