"""What the cuts of a run remove: scores and masks, made once and kept under a file name each.

The name of a file is a hash of all that its content depends on within the run, so a file that is
there is never made again. Masks of target cuts are under `masks/`, scores under `scores/`; controls
are drawn again from the mask that they match, by a named generator, and slices of a ranking are
selected again from its scores.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from resect.attribution.engine import attribute_many
from resect.attribution.rounds import contrasted, locate
from resect.attribution.settings import AttributeSettings
from resect.data.encode import encode
from resect.data.load import BehaviourSet
from resect.files.origin import hash_value
from resect.model import context_of, prunable_tensors
from resect.records import Encoded, Scope
from resect.runs.config import RunConfig
from resect.runs.sets import Sets, Source
from resect.runs.subject import Subject
from resect.studies.cells import Cut, mask_path
from resect.studies.design import Target
from resect.weights.controls import magnitude_matched, random_mask
from resect.weights.mask import Mask, revalued
from resect.weights.scores import Scores
from resect.weights.select import next_slice, select

SLICES = ("opposite", "next_slice")


# What a target is scored in; slices need the second.
SIGNED = ("signed", "opposite")


class Ranking(NamedTuple):
    """The role of the model whose scores rank the weights of a cut, and the cut as it is there."""

    role: str
    cut: Cut


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
        self._scores: dict[Path, Scores] = {}
        self._scored: Source | None = None

    def is_located(self, seed: int, ranking: Ranking) -> bool:
        """Return whether `locate` has nothing left to make."""
        role, cut = ranking
        if cut.kind not in SLICES:
            return mask_path(self.run, role, seed, cut).exists()
        paths = list(self._score_paths(cut.target, _source(role, seed, cut), SIGNED).values())
        if self._extent(cut).p:
            reductions = (self.config.preserve.reduction,)
            paths += self._score_paths("preserve", Source(role, seed), reductions).values()
        return all(path.exists() for path in paths)

    def locate(self, subject: Subject, cut: Cut) -> None:
        """Make what a cut of this model's ranking needs: its mask, or the scores of its slice."""
        if cut.kind in SLICES:
            self._scores_of(subject, cut)
            self._protected(subject, cut)
        else:
            self._target_mask(subject, cut)

    def turn_to(self, role: str, seed: int) -> None:
        """Let go of the scores of any other model; called before this one is loaded."""
        scored = Source(role, seed)
        if scored != self._scored:
            self._scores.clear()
            self._scored = scored

    def mask(self, subject: Subject, cut: Cut) -> Mask:
        """Return what a cut removes from a model; `locate` has been called for its ranking."""
        if cut.kind in SLICES:
            return self._slice(subject, cut)
        mask = self._target_mask(subject, replace(cut, kind="target"))
        if cut.kind == "target":
            return mask
        weights = prunable_tensors(subject.loaded.model)
        draw = random_mask if cut.kind == "random" else magnitude_matched
        return draw(mask, weights, label=f"{cut.kind}/{cut.target}/{cut.q:g}", seed=subject.seed)

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
            mask = select(scores, self._protected(subject, cut), **self._extent(cut)._asdict())
        mask.save(path)
        return mask

    def _slice(self, subject: Subject, cut: Cut) -> Mask:
        scores, extent = self._scores_of(subject, cut), self._extent(cut)
        preserve = self._protected(subject, cut)
        if cut.kind == "opposite":
            return select(scores["opposite"], preserve, **extent._asdict())
        return next_slice(scores["signed"], preserve, **extent._asdict())

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
        absent = [path for path in paths.values() if path not in self._scores]
        if absent and all(path.exists() for path in paths.values()):
            self._scores |= {path: Scores.load(path) for path in absent}
        elif absent:
            aimed = self._aimed(subject, source, target)
            scores = attribute_many(
                subject.loaded.model,
                subject.loaded.tokenizer,
                contrasted(aimed.target, aimed.contrast),
                reductions=reductions,
                settings=self._settings(source, target, aimed.hash),
            )
            for reduction, path in paths.items():
                scores[reduction].save(path)
                self._scores[path] = scores[reduction]
        return {reduction: self._scores[path] for reduction, path in paths.items()}

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
        data = self.sets.calibration(target, source)
        examples = self._encode(data, target, subject)
        if target.contrast is None:
            return _Aimed(examples, [], data.hash)
        rival = self.config.targets[target.contrast]
        against = self.sets.calibration(rival, source)
        contrast = self._encode(against, rival, subject)
        return _Aimed(examples, contrast, hash_value([data.hash, against.hash]))

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
    """Return whose scores a cut needs; slices are always of the model that is cut."""
    if cut.kind in SLICES:
        return Ranking(role, cut)
    target = replace(cut, kind="target")
    if cut.scored_on in ("", role):
        return Ranking(role, target)
    return Ranking(cut.scored_on, replace(target, scored_on=""))


def _source(role: str, seed: int, cut: Cut) -> Source:
    return Source(role, seed, cut.category, cut.examples, cut.draw)
