"""One pass over the data scores every layer at once.

The examples go through the model in padded batches; hooks add what each batch says of every weight
to sums in fp32 (`resect.scores.sums`), and a rule turns weights and means into scores
(`resect.scores`). Scores are kept by checkpoint tensor, sparse.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from resect.edit import shrunk
from resect.errors import InputError
from resect.model.forward import Head, batch_loss, batches, check_examples, checkpointed
from resect.model.load import model_fingerprint, tokenizer_fingerprint
from resect.model.observe import Watch, observing
from resect.model.prunable import Coverage, PrunableWeight, blocks, find_prunable
from resect.model.settings import AttributeSettings, planned
from resect.records import Encoded
from resect.scores import Rule, rule_of
from resect.scores.sums import EACH, Kind, Sums
from resect.scoreset import Candidates, ScoreMeta, Scores
from resect.stats import seed_of

__all__ = ["AttributeSettings", "attribute", "attribute_many"]

Progress = Callable[[int, int], None]

_log = logging.getLogger(__name__)


@dataclass
class _Job:
    """What one call works on."""

    model: Any
    encoded: Sequence[Encoded]
    settings: AttributeSettings
    on_progress: Progress
    passes: int = 1
    done: int = 0
    head: Head = field(default_factory=Head)

    def advance(self, examples: int) -> None:
        self.done += examples
        # Extra passes are part of the work; the bar counts examples once.
        self.on_progress(min(len(self.encoded), self.done // self.passes), len(self.encoded))


def attribute(
    model: Any,
    tokenizer: Any,
    encoded: Sequence[Encoded],
    settings: AttributeSettings | None = None,
    on_progress: Progress | None = None,
    **keywords: Any,
) -> Scores:
    """Score every prunable weight in the one reduction that the settings name.

    Args:
        model: A Hugging Face causal LM.
        tokenizer: Its tokenizer.
        encoded: The examples.
        settings: How the pass is made.
        on_progress: Called with examples done and examples in all.
        **keywords: Fields of `AttributeSettings`, instead of `settings`.

    Raises:
        InputError: An example cannot be scored, or the model has no gradients.
        CoverageError: The model has block weights of an unknown kind.
    """
    settings = settings or AttributeSettings(**keywords)
    names = (settings.reduction,)
    return attribute_many(
        model, tokenizer, encoded, reductions=names, settings=settings, on_progress=on_progress
    )[settings.reduction]


def attribute_many(
    model: Any,
    tokenizer: Any,
    encoded: Sequence[Encoded],
    *,
    reductions: Sequence[str] = ("signed",),
    settings: AttributeSettings | None = None,
    on_progress: Progress | None = None,
) -> dict[str, Scores]:
    """Score every prunable weight, in several reductions from one pass.

    Args:
        model: A Hugging Face causal LM.
        tokenizer: Its tokenizer; its fingerprint goes into the artefact.
        encoded: The examples; their weights make a contrast, +1/|D| and -1/|D'| up to a factor.
        reductions: Names in `resect.scores.METHODS[settings.method]`.
        settings: How the pass is made.
        on_progress: Called with examples done and examples in all.

    Raises:
        InputError: An example cannot be scored, a loss or gradient is not finite, or the model has
            no gradients.
        CoverageError: The model has block weights of an unknown kind.
    """
    settings = settings or AttributeSettings()
    rules = {name: rule_of(settings.method, name) for name in reductions}
    coverage = find_prunable(model, allow_partial=settings.allow_partial)
    _refuse_absent(model)
    check_examples(encoded, model)
    wanted = {kind for rule in rules.values() for kind in rule.needs}
    settings = planned(model, encoded, settings, coverage, len(wanted))
    job = _Job(model, encoded, settings, on_progress or (lambda _done, _total: None))
    return _harvest(job, coverage, rules, wanted, _meta(job, coverage, tokenizer))


def _refuse_absent(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise InputError(
                "the model is not wholly in memory, and offloaded weights have no gradient",
                got=f"{name} on the meta device",
                fix="load it without offloading, on more devices or with a smaller dtype",
            )


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


def _means(
    job: _Job, coverage: Coverage, wanted: set[Kind]
) -> Iterator[tuple[PrunableWeight, dict[Kind, Tensor]]]:
    """Yield each weight with its means over examples, which are freed as they are used up."""
    settings = job.settings
    groups = _groups(coverage.weights, settings.layers_per_pass)
    factors = [1.0]
    if settings.method == "integrated":
        points = [(at + 0.5) / settings.steps for at in range(settings.steps)]
        factors = [1 - point * (1 - settings.shrink_to) for point in points]
    job.passes = len(groups) * len(factors)
    count = len(job.encoded) * len(factors)
    for group in groups:
        means: dict[str, dict[Kind, Tensor]] = {weight.name: {} for weight in group}
        for factor in factors if wanted - {"noise"} else []:
            with _at(job, coverage, factor):
                sums = _pass(job, group, wanted)
            for kind, totals in sums.items():
                for weight in group:
                    mean = totals.pop(weight.name).div_(count)
                    known = means[weight.name].get(kind)
                    means[weight.name][kind] = mean if known is None else known.add_(mean)
        for weight in group:
            if "noise" in wanted:
                draw = torch.Generator().manual_seed(
                    seed_of(f"scores/random/{weight.name}", settings.seed)
                )
                means[weight.name]["noise"] = torch.rand(weight.shape, generator=draw)
            yield weight, means.pop(weight.name)


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


def _pass(
    job: _Job, weights: Sequence[PrunableWeight], wanted: set[Kind]
) -> dict[Kind, dict[str, Tensor]]:
    """Return sums over all examples, by kind and name."""
    place = "cpu" if job.settings.accumulator == "cpu" else ""
    sums = Sums(_parameters(job, weights), wanted, place)
    with observing(job.model, weights, sums) as watch:
        _run_all(job, watch, job.encoded)
    totals = dict(sums.totals)
    mixed = [weight for weight in weights if weight.name in sums.mixed]
    if "inputs" in wanted:
        totals["inputs"] = _input_sums(sums, weights)
    if mixed and EACH & wanted:
        _log.warning(
            "%d weights mix the examples of a batch; they are scored one example a pass",
            len(mixed),
        )
        single = Sums(_parameters(job, mixed), EACH & wanted)
        with observing(job.model, mixed, single, singly=True) as watch:
            for example in job.encoded:
                _run(job, watch, (example,))
        for kind, found in single.totals.items():
            totals[kind] = {**totals[kind], **found}
    return totals


def _input_sums(sums: Sums, weights: Sequence[PrunableWeight]) -> dict[str, Tensor]:
    unseen = [weight.name for weight in weights if weight.name not in sums.inputs]
    if unseen:
        raise InputError(
            "the inputs of some weights cannot be told apart by example",
            got=f"{unseen[0]} and {len(unseen) - 1} more",
            allowed="models whose prunable weights are linear layers outside of experts",
            fix="choose another method",
        )
    return {
        weight.name: sums.inputs[weight.name].unsqueeze(1 if weight.layout == "in_out" else 0)
        for weight in weights
    }


def _parameters(job: _Job, weights: Sequence[PrunableWeight]) -> dict[str, Tensor]:
    return {weight.name: job.model.get_parameter(weight.name) for weight in weights}


def _run_all(job: _Job, watch: Watch, encoded: Sequence[Encoded]) -> None:
    """Run all examples; a batch that does not fit makes this and all later ones smaller."""
    size, limit = job.settings.batch_size, job.settings.batch_tokens
    tokens = 1 if limit == "auto" else limit  # `planned` leaves no auto
    rest = list(encoded)
    context = checkpointed(blocks(job.model)) if job.settings.checkpoint else None
    with context or contextlib.nullcontext():
        while rest:
            for batch in batches(rest, size=size, tokens=tokens):
                chosen = set(map(id, batch))
                rest = [example for example in rest if id(example) not in chosen]
                fitted = _run(job, watch, batch)
                job.advance(len(batch))
                if fitted < len(batch):
                    size, tokens = size and min(size, fitted), max(1, tokens // 2)
                    break


def _run(job: _Job, watch: Watch, batch: Sequence[Encoded], *, again: bool = False) -> int:
    """Run one batch, in halves if memory does not suffice; return how many examples fitted.

    What a failed batch had added to the sums stays and is not added again.
    """
    watch.begin(batch, again=again)
    try:
        if watch.sums.wanted == {"inputs"}:
            with torch.no_grad():
                batch_loss(job.model, batch, job.head)
        else:
            with torch.enable_grad():
                watch.backward(batch_loss(job.model, batch, job.head))
        return len(batch)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        message = str(error).splitlines()[0]
    # Outside of the handler, because a traceback would keep the activations alive.
    watch.clear()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if len(batch) == 1:
        raise InputError(
            f"example {batch[0].id!r} does not fit into memory",
            got=message,
            fix="shorten it, score fewer layers a pass, keep sums on the CPU or use checkpointing",
        )
    _log.info("a batch of %d examples does not fit into memory; trying halves", len(batch))
    half = len(batch) // 2
    return min(
        _run(job, watch, batch[:half], again=True), _run(job, watch, batch[half:], again=True)
    )


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _harvest(
    job: _Job,
    coverage: Coverage,
    rules: Mapping[str, Rule],
    wanted: set[Kind],
    meta: Callable[[str], ScoreMeta],
) -> dict[str, Scores]:
    """Score weight by weight, so that the scores of all weights never exist at once."""
    metas = {name: meta(name) for name in rules}
    found = {name: Candidates(metas[name].keep, coverage.total) for name in rules}
    for weight, means in _means(job, coverage, wanted):
        parameter = job.model.get_parameter(weight.name).detach()
        own = {kind: mean.to(parameter.device) for kind, mean in means.items()}
        for name, rule in rules.items():
            scores = rule.formula(parameter, own)
            if not bool(scores.isfinite().all()):
                raise InputError(
                    f"the scores of {weight.name} are not finite",
                    fix="load the model in float32 or bfloat16, and check the data for odd "
                    "examples",
                )
            for place in weight.places:
                original = place.view(parameter) if metas[name].ranks_targets else None
                found[name].add(place.name, place.view(scores), original)
    order = [place.name for weight in coverage.weights for place in weight.places]
    scored = {name: candidates.finish() for name, candidates in found.items()}
    return {
        name: Scores({place: tensors[place] for place in order}, metas[name])
        for name, tensors in scored.items()
    }
