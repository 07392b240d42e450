"""One pass over the data scores every layer at once.

The examples go through the model in padded batches; hooks add what each batch says of every weight
to sums in fp32 (`resect.attribution.sums`), and a rule turns weights and means into scores
(`resect.attribution.methods`). Scores are kept by checkpoint tensor, sparse.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resect.attribution.choices import planned
from resect.attribution.loss import check_examples
from resect.attribution.methods import Rule, rule_of
from resect.attribution.passes import Feed, sum_examples
from resect.attribution.settings import AttributeSettings
from resect.attribution.sums import EACH, Kind
from resect.edit.live import shrunk
from resect.errors import InputError
from resect.machine.processes import ALONE, Processes, gathered, is_sharded, processes_of
from resect.model.load import model_fingerprint, tokenizer_fingerprint
from resect.model.prunable import Coverage, PrunableWeight, find_prunable
from resect.records import Encoded
from resect.stats import seed_of
from resect.weights.candidates import Candidates
from resect.weights.scores import ScoreMeta, Scores

__all__ = ["AttributeSettings", "attribute", "attribute_many"]

Progress = Callable[[int, int], None]


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
    def processes(self) -> Processes:
        return self.feed.processes

    def advance(self, examples: int) -> None:
        self.done += examples
        # Extra passes are part of the work, and the other processes keep up; the bar counts
        # examples once.
        done, total = self.done * self.processes.count // self.passes, len(self.encoded)
        self.on_progress(min(done, total), total)


def attribute(
    model: Any,
    tokenizer: Any,
    encoded: Sequence[Encoded],
    settings: AttributeSettings | None = None,
    on_progress: Progress | None = None,
    processes: Processes = ALONE,
    **keywords: Any,
) -> Scores:
    """Score every prunable weight in the one reduction that the settings name.

    Args:
        model: A Hugging Face causal LM.
        tokenizer: Its tokenizer.
        encoded: The examples.
        settings: How the pass is made.
        on_progress: Called with examples done and examples in all.
        processes: The processes that share the examples, as in `attribute_many`.
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
        processes=processes,
    )[settings.reduction]


def attribute_many(
    model: Any,
    tokenizer: Any,
    encoded: Sequence[Encoded],
    *,
    reductions: Sequence[str] = ("signed",),
    settings: AttributeSettings | None = None,
    on_progress: Progress | None = None,
    processes: Processes = ALONE,
) -> dict[str, Scores]:
    """Score every prunable weight, in several reductions from one pass.

    Args:
        model: A Hugging Face causal LM.
        tokenizer: Its tokenizer; its fingerprint goes into the artefact.
        encoded: The examples; their weights make a contrast, +1/|D| and -1/|D'| up to a factor.
        reductions: Names in `resect.attribution.methods.METHODS[settings.method]`.
        settings: How the pass is made.
        on_progress: Called with examples done and examples in all.
        processes: The processes that share the examples
            (`resect.machine.processes.process_group`). All of them call this with the same
            arguments, and all get the same scores. A model that `fully_shard` has sharded is run by
            all processes whatever is said here.

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
    _refuse_sharded(model, wanted)
    processes = processes_of(model, processes)
    settings = planned(model, encoded, settings, coverage, len(wanted), processes)
    feed = _feed(settings, processes)
    job = _Job(model, encoded, settings, on_progress or (lambda _done, _total: None), feed)
    return _harvest(job, coverage, rules, wanted, _meta(job, coverage, tokenizer))


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


def _feed(settings: AttributeSettings, processes: Processes) -> Feed:
    tokens = settings.batch_tokens
    # `planned` leaves no auto.
    most = 1 if tokens == "auto" else tokens
    return Feed(settings.batch_size, most, settings.checkpoint, processes)


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
                sums = sum_examples(
                    job.model,
                    group,
                    wanted,
                    job.encoded,
                    job.feed,
                    place="cpu" if settings.accumulator == "cpu" else "",
                    on_done=job.advance,
                )
            for kind, totals in sums.items():
                for weight in group:
                    mean = totals.pop(weight.name).div_(count)
                    known = means[weight.name].get(kind)
                    means[weight.name][kind] = mean if known is None else known.add_(mean)
        for weight in group:
            if "noise" in wanted:
                means[weight.name]["noise"] = noise_of(weight, settings.seed)
            yield weight, means.pop(weight.name)


def noise_of(weight: PrunableWeight, seed: int) -> Tensor:
    """Return the draw [*] behind the scores of the method `random`."""
    draw = torch.Generator().manual_seed(seed_of(f"scores/random/{weight.name}", seed))
    return torch.rand(weight.shape, generator=draw)


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
        parameter = gathered(job.model.get_parameter(weight.name).detach())
        # Sorted, because gathering is done by all processes, and sets differ in order.
        own = {kind: gathered(mean).to(parameter.device) for kind, mean in sorted(means.items())}
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
