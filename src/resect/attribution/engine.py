"""One pass over the data scores every layer at once.

A feeder puts the examples through a model and yields weight by weight what scores are made of
(`resect.attribution.feeder`). A rule turns values and means into scores
(`resect.attribution.methods`), which are kept by checkpoint tensor, sparse. In memory, hooks add
what each batch says of every weight to sums in fp32 (`resect.attribution.sums`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from resect.attribution.choices import planned
from resect.attribution.feeder import Feeder, Scored
from resect.attribution.loss import check_examples
from resect.attribution.methods import Rule, rule_of
from resect.attribution.passes import Passes, Progress
from resect.attribution.settings import AttributeSettings, Origin, Pass, origin_of
from resect.attribution.sums import EACH, Statistic
from resect.attribution.units import with_units
from resect.errors import InputError, not_finite
from resect.machine.processes import (
    ALONE,
    Processes,
    is_sharded,
    processes_of,
    sharded_modules,
)
from resect.model.load import LoadedModel
from resect.model.prunable import Coverage, PrunableWeight, find_prunable
from resect.model.stored import stored_of
from resect.records import CausalModel, Encoded, Tokenizer
from resect.stats import seed_of
from resect.weights.candidates import Candidates
from resect.weights.scores import ScoreMeta, Scores, TensorScores

__all__ = ["AttributeSettings", "attribute", "attribute_many", "harvest", "needs_of"]


def attribute(
    model: CausalModel,
    tokenizer: Tokenizer,
    encoded: Sequence[Encoded],
    settings: Pass | None = None,
    on_progress: Progress | None = None,
    processes: Processes = ALONE,
    **keywords: Any,
) -> Scores:
    """Score every prunable weight in the one reduction that the settings name.

    Args:
        model: A Hugging Face causal LM.
        tokenizer: Its tokenizer.
        encoded: The examples.
        settings: How the pass is made; `AttributeSettings` also say where the data are from.
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
    model: CausalModel,
    tokenizer: Tokenizer,
    encoded: Sequence[Encoded],
    *,
    reductions: Sequence[str] = ("signed",),
    settings: Pass | None = None,
    origin: Origin | None = None,
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
        origin: What the artefact says of the data; None for what the settings say of it, if they
            are `AttributeSettings`.
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
    settings = settings or Pass()
    rules = {name: rule_of(settings.method, name) for name in reductions}
    for sharded in sharded_modules(module for _, module in model.named_modules()):
        sharded.reshard()  # weights that an earlier pass has gathered look like whole ones
    coverage = find_prunable(model, allow_partial=settings.allow_partial)
    _refuse_absent(model)
    check_examples(encoded, model)
    needs = needs_of(rules.values())
    _refuse_sharded(model, needs)
    processes = processes_of(model.parameters(), processes)
    chosen = planned(model, encoded, settings, coverage, len(needs), processes)
    loaded = LoadedModel(model, tokenizer)
    feeder = Passes(loaded, encoded, chosen, coverage, processes, on_progress)
    return finished(model, coverage, harvest(feeder, rules, settings, origin))


def needs_of(rules: Collection[Rule]) -> frozenset[Statistic]:
    """Return what all of the rules together need to know of each weight."""
    return frozenset(statistic for rule in rules for statistic in rule.needs)


def _refuse_absent(model: CausalModel) -> None:
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise InputError(
                "the model is not wholly in memory, and offloaded weights have no gradient",
                got=f"{name} on the meta device",
                fix="load it without offloading: in bfloat16, or over more GPUs (--device auto)",
            )


def _refuse_sharded(model: CausalModel, needs: Collection[Statistic]) -> None:
    by_example = EACH.intersection(needs)
    if by_example and any(is_sharded(parameter) for parameter in model.parameters()):
        raise InputError(
            "gradients of single examples cannot be had from sharded weights, because FSDP adds "
            "those of all processes up before anyone sees them",
            got=f"a reduction that needs the {' and '.join(sorted(by_example))} sums",
            allowed="signed, opposite or abs_of_mean",
            fix="choose one of these, or load the model whole in every process or with "
            "--device auto",
        )


def harvest(
    feeder: Feeder, rules: Mapping[str, Rule], settings: Pass, origin: Origin | None = None
) -> dict[str, Scores]:
    """Score weight by weight, so that the scores of all weights never exist at once.

    Args:
        feeder: Yields the weights with their means over the examples.
        rules: How scores are made, by reduction.
        settings: How the pass is made.
        origin: What the artefact says of the data; None for what the settings say of it, if they
            are `AttributeSettings`.

    Raises:
        InputError: Scores are not finite, or the feeder cannot go on.
        CoverageError: The model cannot be read in the way of this feeder.
    """
    origin = origin or origin_of(settings)
    coverage = feeder.coverage
    metas = _metas(feeder, rules, settings, origin)
    candidates = {name: Candidates(meta.keep, coverage.total) for name, meta in metas.items()}
    needs = needs_of(rules.values())
    # Closed, so that what a feeder has open is closed before an error is told.
    with contextlib.closing(feeder.means(needs - {"noise"})) as weights:
        for scored in weights:
            if "noise" in needs:
                scored.means["noise"] = noise_of(scored.weight, origin.seed).to(
                    scored.values.device
                )
            for name, rule in rules.items():
                _rank(scored, rule, candidates[name], keeps_weights=metas[name].ranks_targets)
            del scored  # or it would stay while the next batches run
    order = [tensor.name for weight in coverage.weights for tensor in weight.places]
    ranked = {reduction: ranking.finish() for reduction, ranking in candidates.items()}
    return {
        reduction: Scores({name: tensors[name] for name in order}, metas[reduction])
        for reduction, tensors in ranked.items()
    }


def finished(
    model: CausalModel, coverage: Coverage, scores: Mapping[str, Scores]
) -> dict[str, Scores]:
    """Return scores with the weights of the model's files and, if dense, its units.

    Args:
        model: The model, which may have been loaded in another dtype.
        coverage: Its prunable weights.
        scores: Its scores, by reduction.
    """
    return with_units(model, coverage, _as_files_hold(model, coverage, scores))


def _as_files_hold(
    model: CausalModel, coverage: Coverage, scores: Mapping[str, Scores]
) -> dict[str, Scores]:
    """Return scores whose weights, of which masks are made, are those of the model's files."""
    stored = stored_of(model)
    if stored is None:
        return dict(scores)
    places = {place.name: place for weight in coverage.weights for place in weight.places}

    def held(name: str, tensor: TensorScores) -> TensorScores:
        if not tensor.weight.numel():
            return tensor
        weight = stored.values(places[name], tensor.index, tensor.weight)
        return replace(tensor, weight=weight)

    return {
        reduction: replace(
            ranked, tensors={name: held(name, tensor) for name, tensor in ranked.tensors.items()}
        )
        for reduction, ranked in scores.items()
    }


def _metas(
    feeder: Feeder, rules: Mapping[str, Rule], settings: Pass, origin: Origin
) -> dict[str, ScoreMeta]:
    identity = feeder.identity()
    return {
        reduction: ScoreMeta(
            method=settings.method,
            reduction=reduction,
            keep=settings.fraction(feeder.coverage.total),
            model_id=identity.model_id,
            model_fingerprint=identity.model_fingerprint,
            tokenizer_fingerprint=identity.tokenizer_fingerprint,
            data_hash=origin.data_hash,
            examples=len(feeder.encoded),
            tokens=sum(example.scored_tokens for example in feeder.encoded),
            format=origin.format,
            skip=origin.skip,
            category=origin.category,
            seed=origin.seed,
            streamed=identity.streamed,
        )
        for reduction in rules
    }


def _rank(scored: Scored, rule: Rule, candidates: Candidates, *, keeps_weights: bool) -> None:
    """Score one weight and keep what some selection could take of it."""
    scores = rule.formula(scored.values, scored.means)
    if not bool(scores.isfinite().all()):
        raise not_finite(f"the scores of {scored.weight.name} are")
    for tensor in scored.weight.places:
        values = tensor.view(scored.values) if keeps_weights else None
        candidates.add(tensor.name, tensor.view(scores), values)


def noise_of(weight: PrunableWeight, seed: int) -> Tensor:
    """Return the draw [*] behind the scores of the method `random`."""
    draw = torch.Generator().manual_seed(seed_of(f"scores/random/{weight.name}", seed))
    return torch.rand(weight.shape, generator=draw)
