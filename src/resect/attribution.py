"""One pass over the data scores every layer at once.

The examples go through the model in padded batches; hooks add what each batch says of every weight
to sums in fp32 (`resect.scores.sums`), and a rule turns weights and means into scores
(`resect.scores`). Scores are kept by checkpoint tensor, sparse.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from resect.edit import shrunk
from resect.errors import InputError
from resect.model.forward import check_examples
from resect.model.load import model_fingerprint, tokenizer_fingerprint
from resect.model.passes import Feed
from resect.model.prunable import Coverage, PrunableWeight, find_prunable
from resect.model.totals import sum_examples
from resect.ranks import ALONE, Ranks, is_sharded, ranks_of, whole
from resect.records import Encoded
from resect.scores import Rule, rule_of
from resect.scores.sums import EACH, Kind
from resect.scoreset import ScoreMeta, Scores, TensorScores, candidates
from resect.stats import seed_of

# Measured on two CPU cores: batches of 4 to 8 rows of 128 tokens are quickest, 32 are slower.
CPU_TOKENS = 1024
GPU_TOKENS = 8192
LARGE = 1_000_000_000

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class AttributeSettings:
    """How a pass is made, and what its artefact says of the data.

    Attributes:
        method: Name in `resect.scores.METHODS`.
        reduction: Reduction that `attribute` returns.
        batch_size: Examples a batch; None fills batches up to `batch_tokens`.
        batch_tokens: Tokens a batch, padding included; "auto" for a number by device.
        keep: Largest fraction that can be selected later; None for 1e-2, or 1e-3 for models of
            more than a billion prunable weights.
        dense: Keep the score of every weight.
        accumulator: Where sums are kept; "auto" for the device if they fit well, else the CPU.
        layers_per_pass: Layers that are scored in one pass over the data, to save memory; None for
            all of them.
        checkpoint: Compute activations again in the backward pass, to save memory.
        steps: Points of the path of `integrated`.
        shrink_to: Factor of the weights at the end of that path.
        data_hash: 16 hex digits of the data.
        format: `raw` or `chat`.
        skip: Response tokens that are not scored.
        category: The one category that is scored, "" for all.
        seed: Seed of the draw of examples, and of `random`.
    """

    method: str = "snip"
    reduction: str = "signed"
    batch_size: int | None = None
    batch_tokens: int | Literal["auto"] = "auto"
    keep: float | None = None
    dense: bool = False
    accumulator: Literal["auto", "device", "cpu"] = "auto"
    layers_per_pass: int | None = None
    checkpoint: bool = False
    steps: int = 4
    shrink_to: float = 0.6
    data_hash: str = ""
    format: str = "chat"
    skip: int = 0
    category: str = ""
    seed: int = 0

    def fraction(self, total: int) -> float:
        """Return the fraction of candidates to keep for a model of `total` prunable weights."""
        if self.dense:
            return 1.0
        return self.keep or (1e-3 if total > LARGE else 1e-2)


@dataclass
class _Job:
    """What one call works on."""

    model: Any
    encoded: Sequence[Encoded]
    settings: AttributeSettings
    on_progress: Progress
    feed: Feed
    passes: int = 1
    done: int = 0

    @property
    def ranks(self) -> Ranks:
        return self.feed.ranks

    def advance(self, examples: int) -> None:
        self.done += examples
        # Extra passes are part of the work, and the other processes keep up; the bar counts
        # examples once.
        done, total = self.done * self.ranks.count // self.passes, len(self.encoded)
        self.on_progress(min(done, total), total)


def attribute(
    model: Any,
    tokenizer: Any,
    encoded: Sequence[Encoded],
    settings: AttributeSettings | None = None,
    on_progress: Progress | None = None,
    ranks: Ranks = ALONE,
    **keywords: Any,
) -> Scores:
    """Score every prunable weight in the one reduction that the settings name.

    Args:
        model: A Hugging Face causal LM.
        tokenizer: Its tokenizer.
        encoded: The examples.
        settings: How the pass is made.
        on_progress: Called with examples done and examples in all.
        ranks: The processes that share the examples, as in `attribute_many`.
        **keywords: Fields of `AttributeSettings`, instead of `settings`.

    Raises:
        InputError: An example cannot be scored, or the model has no gradients.
        CoverageError: The model has block weights of an unknown kind.
    """
    settings = settings or AttributeSettings(**keywords)
    return attribute_many(
        model,
        tokenizer,
        encoded,
        reductions=(settings.reduction,),
        settings=settings,
        on_progress=on_progress,
        ranks=ranks,
    )[settings.reduction]


def attribute_many(
    model: Any,
    tokenizer: Any,
    encoded: Sequence[Encoded],
    *,
    reductions: Sequence[str] = ("signed",),
    settings: AttributeSettings | None = None,
    on_progress: Progress | None = None,
    ranks: Ranks = ALONE,
) -> dict[str, Scores]:
    """Score every prunable weight, in several reductions from one pass.

    Args:
        model: A Hugging Face causal LM.
        tokenizer: Its tokenizer; its fingerprint goes into the artefact.
        encoded: The examples; their weights make a contrast, +1/|D| and -1/|D'| up to a factor.
        reductions: Names in `resect.scores.METHODS[settings.method]`.
        settings: How the pass is made.
        on_progress: Called with examples done and examples in all.
        ranks: The processes that share the examples (`resect.ranks.joined`). All of them call this
            with the same arguments, and all get the same scores. A model that `fully_shard` has
            sharded is run by all processes whatever is said here.

    Raises:
        InputError: An example cannot be scored, a loss or gradient is not finite, or the model has
            no gradients.
        CoverageError: The model has block weights of an unknown kind.
    """
    settings = settings or AttributeSettings()
    rules = {name: rule_of(settings.method, name) for name in reductions}
    coverage = find_prunable(model)
    _refuse_absent(model)
    check_examples(encoded, model)
    wanted = {kind for rule in rules.values() for kind in rule.needs}
    _refuse_sharded(model, wanted)
    feed = _feed(model, settings, ranks_of(model, ranks))
    job = _Job(model, encoded, settings, on_progress or (lambda _done, _total: None), feed)
    means = _means(job, coverage, wanted)
    meta = _meta(job, coverage, tokenizer)
    return {
        name: _sparse(job, coverage, _dense(job, coverage, means, rule), meta(name))
        for name, rule in rules.items()
    }


def _refuse_absent(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise InputError(
                "the model is not wholly in memory, and offloaded weights have no gradient",
                got=f"{name} on the meta device",
                fix="load it without offloading: in bfloat16, or over more GPUs (--device auto)",
            )


def _refuse_sharded(model: Any, wanted: set[Kind]) -> None:
    if EACH & wanted and any(is_sharded(parameter) for parameter in model.parameters()):
        raise InputError(
            "gradients of single examples cannot be had from sharded weights, because FSDP adds "
            "those of all processes up before anyone sees them",
            got=f"a reduction that needs the {' and '.join(sorted(EACH & wanted))} sums",
            allowed="signed, opposite or abs_of_mean",
            fix="choose one of these, or load the model whole in every process or with "
            "--device auto",
        )


def _feed(model: Any, settings: AttributeSettings, ranks: Ranks) -> Feed:
    tokens = settings.batch_tokens
    if tokens == "auto":
        tokens = GPU_TOKENS if model.get_input_embeddings().weight.is_cuda else CPU_TOKENS
    return Feed(settings.batch_size, tokens, settings.checkpoint, ranks)


def _meta(job: _Job, coverage: Coverage, tokenizer: Any) -> Callable[[str], ScoreMeta]:
    settings = job.settings
    model_name = model_fingerprint(job.model)
    tokenizer_name = tokenizer_fingerprint(tokenizer)

    def of(reduction: str) -> ScoreMeta:
        return ScoreMeta(
            method=settings.method,
            reduction=reduction,
            keep=settings.fraction(coverage.total),
            model_id=str(getattr(job.model, "name_or_path", "")),
            model_fingerprint=model_name,
            tokenizer_fingerprint=tokenizer_name,
            data_hash=settings.data_hash,
            examples=len(job.encoded),
            tokens=sum(example.scored_tokens for example in job.encoded),
            format=settings.format,
            skip=settings.skip,
            category=settings.category,
            seed=settings.seed,
        )

    return of


def _means(job: _Job, coverage: Coverage, wanted: set[Kind]) -> dict[str, dict[Kind, Tensor]]:
    """Return means over examples for each weight, from as many passes as the settings ask for."""
    settings, weights = job.settings, coverage.weights
    means: dict[str, dict[Kind, Tensor]] = {weight.name: {} for weight in weights}
    if "noise" in wanted:
        for weight in weights:
            draw = torch.Generator().manual_seed(
                seed_of(f"scores/random/{weight.name}", settings.seed)
            )
            means[weight.name]["noise"] = torch.rand(weight.shape, generator=draw)
    if not wanted - {"noise"}:
        return means
    groups = _groups(weights, settings.layers_per_pass)
    factors = [1.0]
    if settings.method == "integrated":
        points = [(at + 0.5) / settings.steps for at in range(settings.steps)]
        factors = [1 - point * (1 - settings.shrink_to) for point in points]
    job.passes = len(groups) * len(factors)
    count = len(job.encoded) * len(factors)
    for group in groups:
        for factor in factors:
            with _at(job, coverage, factor):
                place = _place(job, group, wanted)
                sums = sum_examples(
                    job.model,
                    group,
                    wanted,
                    job.encoded,
                    job.feed,
                    place=place,
                    on_done=job.advance,
                )
            for weight in group:
                for kind, total in sums.items():
                    mean = total[weight.name].div_(count)
                    known = means[weight.name].get(kind)
                    means[weight.name][kind] = mean if known is None else known.add_(mean)
    return means


def _groups(weights: Sequence[PrunableWeight], layers: int | None) -> list[list[PrunableWeight]]:
    if layers is None:
        return [list(weights)]
    found: dict[int, list[PrunableWeight]] = {}
    for weight in weights:
        found.setdefault(weight.layer // layers, []).append(weight)
    return list(found.values())


@contextlib.contextmanager
def _at(job: _Job, coverage: Coverage, factor: float) -> Iterator[None]:
    """Shrink all prunable weights to a point of the path of `integrated`."""
    if factor == 1.0:
        yield
        return
    weights = {weight.name: job.model.get_parameter(weight.name) for weight in coverage.weights}
    with shrunk(weights, factor):
        yield


def _place(job: _Job, weights: Sequence[PrunableWeight], wanted: set[Kind]) -> str:
    """Return the device of the sums, "" for that of each weight."""
    chosen = job.settings.accumulator
    if chosen == "auto" and torch.cuda.is_available():
        need = 4 * sum(weight.size for weight in weights) * len(wanted)
        free = sum(torch.cuda.mem_get_info(at)[0] for at in range(torch.cuda.device_count()))
        # The rest is for activations, one layer's gradient and the logits.
        chosen = "device" if need < free / 2 else "cpu"
    # Free memory differs between processes, but sums can only be added up in one kind of place.
    return "cpu" if job.ranks.either([chosen == "cpu"])[0] else ""


def _dense(
    job: _Job, coverage: Coverage, means: Mapping[str, Mapping[Kind, Tensor]], rule: Rule
) -> dict[str, Tensor]:
    """Return scores by checkpoint tensor [n], fp32, in the order of its flat indices."""
    found = {}
    for weight in coverage.weights:
        parameter = whole(job.model.get_parameter(weight.name).detach())
        own = {kind: whole(mean).to(parameter.device) for kind, mean in means[weight.name].items()}
        scores = rule.formula(parameter, own)
        if not bool(scores.isfinite().all()):
            raise InputError(
                f"the scores of {weight.name} are not finite",
                fix="load the model in float32 or bfloat16, and check the data for odd examples",
            )
        for place in weight.places:
            found[place.name] = place.view(scores).reshape(-1)
    return found


def _sparse(job: _Job, coverage: Coverage, dense: dict[str, Tensor], meta: ScoreMeta) -> Scores:
    kept = candidates(dense, meta.keep)
    tensors = {}
    for weight in coverage.weights:
        parameter = whole(job.model.get_parameter(weight.name).detach())
        for place in weight.places:
            index, own = kept[place.name], place.view(parameter)
            at = torch.unravel_index(index.to(own.device), own.shape)
            value = dense[place.name][index.to(own.device)].cpu()
            original = own[at].cpu() if meta.ranks_targets else own.new_empty(0, device="cpu")
            tensors[place.name] = TensorScores(place.shape, index, value, original)
    return Scores(tensors, meta)
