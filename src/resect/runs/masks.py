"""What the cuts of a run remove: scores and masks, made once and kept under a file name each.

The name of a file is a hash of all that its content depends on within the run, so a file that is
there is never made again. Masks of target cuts are under `masks/`, scores under `scores/`; controls
are drawn again from the mask that they match, by a named generator, and slices of a ranking are
selected again from its scores. A control that is matched in damage is kept, since it is found by
running the model.

A direction is no mask: nothing is cut for it, and it is kept as the vectors that are taken out, one
file for all strengths.

The scores of a ranking with permuted labels (`Cut.permutation`) are used for its cuts and never
again: the masks are kept, the scores only in memory, of one permutation at a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from resect.attribution.engine import attribute_many
from resect.attribution.rounds import contrasted, locate
from resect.attribution.settings import AttributeSettings
from resect.attribution.units import random_like
from resect.data.encode import encode
from resect.data.load import BehaviourSet
from resect.edit.direction import Ablation, find_ablation
from resect.errors import InputError
from resect.evaluation.ask import NO_ATTACK, EvaluationSettings, ask
from resect.evaluation.decode import GenerationSettings
from resect.files.origin import hash_value
from resect.model import context_of, prunable_tensors
from resect.records import Encoded, Scope
from resect.runs.config import RunConfig
from resect.runs.sets import Sets, Source
from resect.runs.subject import Subject
from resect.studies.cells import Cut, direction_path, mask_path
from resect.studies.design import Target
from resect.weights.controls import damage_matched, magnitude_matched
from resect.weights.fill import Filled, fill
from resect.weights.mask import OF_RUN, Mask, revalued
from resect.weights.scores import Scores
from resect.weights.select import next_slice, select

SLICES = ("opposite", "next_slice")
# Texts of the likelihood probe on which a control is matched in damage.
DAMAGE_TEXTS = 32

# What a target is scored in; slices need the second.
SIGNED = ("signed", "opposite")


class Ranking(NamedTuple):
    """The role of the model whose scores rank the weights of a cut, and the cut as it is there."""

    role: str
    cut: Cut


class Edit(NamedTuple):
    """What a cut does to a model: the variant to be asked, and its mask, if it has one."""

    mask: Mask | None = None
    variant: Mask | Filled | Ablation | None = None


class _Extent(NamedTuple):
    """How much of which rankings a mask takes; see `resect.weights.select`."""

    q: float
    p: float
    scope: Scope


@dataclass(frozen=True)
class _Aimed:
    """The examples of a target and of its contrast, and the hash of both."""

    target: list[Encoded]
    contrast: list[Encoded]
    hash: str


class Masks:
    """The scores and masks of a run."""

    def __init__(self, config: RunConfig, run: Path, keep: float):
        """Open the run folder; nothing is read yet.

        Args:
            config: The run's configuration.
            run: Its folder.
            keep: Fraction of each ranking that scores must hold.
        """
        self.config = config
        self.run = run
        self.keep = keep
        self.sets = Sets(config, run)
        self._hash = hash_value(config.model_dump(mode="json"))
        self._scores: dict[Path, Scores] = {}
        self._permuted: dict[Path, Scores] = {}
        self._scored: Source | None = None

    def is_located(self, seed: int, ranking: Ranking) -> bool:
        """Return whether `locate` has nothing left to make."""
        role, cut = ranking
        if cut.kind == "direction":
            return direction_path(self.run, role, seed, cut).exists()
        if cut.kind not in SLICES:
            return mask_path(self.run, role, seed, cut).exists()
        if cut.permutation is not None:
            return True  # their scores are not kept, so that they are made when they are measured
        paths = list(self._score_paths(cut.target, _source(role, seed, cut), SIGNED).values())
        if self._extent(cut).p:
            reductions = (self.config.preserve.reduction,)
            paths += self._score_paths("preserve", Source(role, seed), reductions).values()
        return all(path.exists() for path in paths)

    def locate(self, subject: Subject, cut: Cut) -> None:
        """Make what a cut needs: its mask, the scores of its slice, or its direction."""
        if cut.kind == "direction":
            self._direction(subject, cut)
        elif cut.kind in SLICES:
            self._scores_of(subject, cut)
            self._protected(subject, cut)
        else:
            self._target_mask(subject, cut)

    def turn_to(self, role: str, seed: int) -> None:
        """Let go of the scores of any other model; called before this one is loaded."""
        scored = Source(role, seed)
        if scored != self._scored:
            self._scores.clear()
            self._permuted.clear()
            self._scored = scored

    def edit(self, subject: Subject, cut: Cut | None) -> Edit:
        """Return what a cut does to a model; `locate` has been called for its ranking."""
        if cut is None:
            return Edit()
        if cut.kind == "direction":
            return Edit(None, self._direction(subject, cut).at(cut.q))
        mask = self.mask(subject, cut)
        return Edit(mask, self.variant(subject, cut, mask))

    def mask(self, subject: Subject, cut: Cut) -> Mask:
        """Return what a cut removes from a model; `locate` has been called for its ranking."""
        if cut.kind in SLICES:
            return self._slice(subject, cut)
        mask = self._target_mask(subject, cut.located)
        if cut.kind == "target":
            return mask
        if cut.kind == "damage":
            return self._damage_mask(subject, cut, mask)
        weights = prunable_tensors(subject.loaded.model)
        if cut.kind == "random":
            model = subject.loaded.model
            return random_like(mask, model, weights, label=_label(cut), seed=subject.seed)
        return magnitude_matched(mask, weights, label=_label(cut), seed=subject.seed)

    def variant(self, subject: Subject, cut: Cut, mask: Mask) -> Mask | Filled:
        """Return the mask of a cut with what stands in the place of its weights, if not zero."""
        filling = cut.filling
        if filling == 0:
            return mask
        weights = prunable_tensors(subject.loaded.model)
        return fill(mask, weights, filling, label=_label(cut), seed=subject.seed)

    def _direction(self, subject: Subject, cut: Cut) -> Ablation:
        """Return the edit of a direction, from disk or from the activations of the model."""
        path = direction_path(self.run, subject.role, subject.seed, cut)
        if not path.exists():
            target = self.config.targets[cut.target]
            aimed = self._aimed(subject, _source(subject.role, subject.seed, cut), target)
            against, compared = aimed.contrast, target.contrast or "preserve"
            if target.contrast is None:
                preserve, source = self.config.preserve, Source(subject.role, subject.seed)
                data = self.sets.calibration(preserve, source)
                against = self._encode(data, preserve, subject)
            origin = {"target": cut.target, "against": compared, "depth": cut.depth}
            meta = origin | {"model_fingerprint": subject.prints.fingerprint}
            model = subject.loaded.model
            find_ablation(model, aimed.target, against, depth=cut.depth, meta=meta).save(path)
        return Ablation.load(path)

    def _damage_mask(self, subject: Subject, cut: Cut, matched: Mask) -> Mask:
        path = mask_path(self.run, subject.role, subject.seed, cut)
        if path.exists():
            return Mask.load(path)
        mask = damage_matched(
            matched,
            prunable_tensors(subject.loaded.model),
            lambda candidate: self._divergence(subject, self.variant(subject, cut, candidate)),
            label=_label(cut),
            seed=subject.seed,
        )
        return self._saved(mask, subject, cut, path)

    def _divergence(self, subject: Subject, variant: Mask | Filled) -> float:
        """Return the mean KL(intact || variant), nats per token, on texts of the preserve kind."""
        evaluation = self.config.evaluation
        probe = "likelihood"
        if evaluation.measure == "likelihood" and probe not in evaluation.probes:
            probe = "utility"
        if probe not in evaluation.probes:
            raise InputError(
                "a control cannot be matched in damage without texts to measure it on",
                got=f"the probes {', '.join(evaluation.probes)}",
                allowed="the probe likelihood among them",
                fix="name a held-out set of the preserve kind under evaluation.probes.likelihood",
            )
        texts = self.sets.asked(probe, subject.seed)
        settings = EvaluationSettings(
            format=self.config.format,
            attack=NO_ATTACK,
            generation=GenerationSettings(batch_size=evaluation.batch_size),
        )
        few = texts.at(range(min(DAMAGE_TEXTS, len(texts))))
        replies = ask(subject.loaded, {"likelihood": few}, settings, variant, intact=subject.intact)
        return float(np.mean([reply.kl for reply in replies]))

    def _target_mask(self, subject: Subject, cut: Cut) -> Mask:
        path = mask_path(self.run, subject.role, subject.seed, cut)
        if path.exists():
            return Mask.load(path)
        ranking = ranking_of(subject.role, cut)
        if ranking.role != subject.role:
            # That model had its turn; the same places are cut from this one.
            located = Mask.load(mask_path(self.run, ranking.role, subject.seed, ranking.cut))
            mask = revalued(located, prunable_tensors(subject.loaded.model))
        elif cut.rounds > 1:
            mask = self._in_rounds(subject, cut)
        else:
            scores = self._scores_of(subject, cut)["signed"]
            mask = self._selected(scores, self._protected(subject, cut), cut)
        if cut.permutation is not None and ranking.role == subject.role:
            source = _source(subject.role, subject.seed, cut)
            pairs = self.sets.pairs(self.config.targets[cut.target], source)
            mask = Mask(
                mask.tensors, {**mask.meta, "permutation": pairs.described(cut.permutation)}
            )
        return self._saved(mask, subject, cut, path)

    def _saved(self, mask: Mask, subject: Subject, cut: Cut, path: Path) -> Mask:
        """Write a mask that says for what it was made, and what its run requires of it."""
        origin: dict[str, object] = {
            "config": self._hash,
            "role": subject.role,
            "seed": subject.seed,
            "cut": cut.described,
        }
        if self.config.require:
            origin["require"] = dict(self.config.require)
        traced = Mask(mask.tensors, {**mask.meta, OF_RUN: origin})
        traced.save(path)
        return traced

    def _slice(self, subject: Subject, cut: Cut) -> Mask:
        scores, preserve = self._scores_of(subject, cut), self._protected(subject, cut)
        if cut.kind == "opposite":
            return self._selected(scores["opposite"], preserve, cut)
        extent, unit = self._extent(cut), self.config.selection.unit
        return next_slice(scores["signed"], preserve, **extent._asdict(), unit=unit)

    def _selected(self, scores: Scores, preserve: Scores | None, cut: Cut) -> Mask:
        unit = self.config.selection.unit
        return select(scores, preserve, **self._extent(cut)._asdict(), unit=unit)

    def _in_rounds(self, subject: Subject, cut: Cut) -> Mask:
        source, target = _source(subject.role, subject.seed, cut), self.config.targets[cut.target]
        aimed = self._aimed(subject, source, target)
        return locate(
            subject.loaded.model,
            subject.loaded.tokenizer,
            aimed.target,
            self._protected(subject, cut),
            contrast=aimed.contrast,
            rounds=cut.rounds,
            settings=self._settings(source, target, aimed.hash),
            **self._extent(cut)._asdict(),
        )

    def _extent(self, cut: Cut) -> _Extent:
        chosen = self.config.selection
        return _Extent(cut.q, chosen.p if cut.p is None else cut.p, cut.scope or chosen.scope)

    def _protected(self, subject: Subject, cut: Cut) -> Scores | None:
        """Return the importance for the preserve set; None if nothing is protected."""
        if self._extent(cut).p == 0:
            return None
        preserve, source = self.config.preserve, Source(subject.role, subject.seed)
        reductions = (preserve.reduction,)
        return self._kept(subject, "preserve", source, preserve, reductions)[preserve.reduction]

    def _scores_of(self, subject: Subject, cut: Cut) -> dict[str, Scores]:
        """Return facilitation and opposite-sign scores of a cut's target."""
        source, target = _source(subject.role, subject.seed, cut), self.config.targets[cut.target]
        return self._kept(subject, cut.target, source, target, SIGNED)

    def _score_paths(self, name: str, source: Source, reductions: Iterable[str]) -> dict[str, Path]:
        """Return where the scores of a target are kept, by reduction."""
        key = hash_value([name, source, self.keep])
        folder = self.run / "scores"
        return {
            reduction: folder / f"{key}-{reduction}.scores.safetensors" for reduction in reductions
        }

    def _kept(
        self,
        subject: Subject,
        name: str,
        source: Source,
        target: Target,
        reductions: tuple[str, ...],
    ) -> dict[str, Scores]:
        """Return scores of a target by reduction, from memory, from disk or from the model."""
        paths = self._score_paths(name, source, reductions)
        kept = self._scores if source.permutation is None else self._permuted
        absent = [path for path in paths.values() if path not in kept]
        if absent and all(path.exists() for path in paths.values()):
            kept |= {path: Scores.load(path) for path in absent}
        elif absent:
            if source.permutation is not None:
                # Of the one before, which has had its turn.
                self._permuted.clear()
            aimed = self._aimed(subject, source, target)
            scores = attribute_many(
                subject.loaded.model,
                subject.loaded.tokenizer,
                contrasted(aimed.target, aimed.contrast),
                reductions=reductions,
                settings=self._settings(source, target, aimed.hash),
            )
            for reduction, path in paths.items():
                if source.permutation is None:
                    scores[reduction].save(path)
                kept[path] = scores[reduction]
        return {reduction: kept[path] for reduction, path in paths.items()}

    def _settings(self, source: Source, target: Target, data_hash: str) -> AttributeSettings:
        return AttributeSettings(
            keep=self.keep,
            data_hash=data_hash,
            category=source.category,
            format=self.config.format,
            skip=target.skip,
            seed=source.seed,
        )

    def _aimed(self, subject: Subject, source: Source, target: Target) -> _Aimed:
        if source.permutation is not None:
            return self._permuted_aim(subject, source, target)
        data = self.sets.calibration(target, source)
        examples = self._encode(data, target, subject)
        if target.contrast is None:
            return _Aimed(examples, [], data.hash)
        rival = self.config.targets[target.contrast]
        against = self.sets.calibration(rival, source)
        contrast = self._encode(against, rival, subject)
        return _Aimed(examples, contrast, hash_value([data.hash, against.hash]))

    def _permuted_aim(self, subject: Subject, source: Source, target: Target) -> _Aimed:
        """Return examples of which some have changed places, each read as in its own set."""
        pairs, rival = self.sets.pairs(target, source), self.sets.rival(target)
        answers = zip(
            self._encode(pairs.target, target, subject),
            self._encode(pairs.contrast, rival, subject),
            strict=True,
        )
        sides = [
            (theirs, ours) if swapped else (ours, theirs)
            for (ours, theirs), swapped in zip(answers, pairs.swapped, strict=True)
        ]
        return _Aimed(
            [side for side, _ in sides],
            [side for _, side in sides],
            hash_value([pairs.target.hash, pairs.contrast.hash, pairs.swapped]),
        )

    def _encode(self, data: BehaviourSet, target: Target, subject: Subject) -> list[Encoded]:
        return encode(
            data.examples,
            subject.loaded.tokenizer,
            format=self.config.format,
            skip=target.skip,
            tokens=target.tokens,
            max_length=context_of(subject.loaded.model),
        )


def ranking_of(role: str, cut: Cut) -> Ranking:
    """Return whose scores a cut needs; slices and directions are of the model that is cut."""
    if cut.kind in SLICES:
        return Ranking(role, cut)
    if cut.kind == "direction":
        return Ranking(role, replace(cut, q=1.0))
    target = cut.located
    if cut.scored_on in ("", role):
        return Ranking(role, target)
    return Ranking(cut.scored_on, replace(target, scored_on=""))


def _source(role: str, seed: int, cut: Cut) -> Source:
    return Source(role, seed, cut.category, cut.examples, cut.draw, cut.permutation)


def _label(cut: Cut) -> str:
    """Return the name of the draws of a control."""
    return f"{cut.kind}/{cut.target}/{cut.q:g}"
