"""One model at a time on the bench: its data, its scores, its masks, each cached in the run.

A mask of a target cut is kept under `masks/`, scores under `scores/`; controls are drawn again from
the mask that they match, by a named generator.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from resect.attribution.engine import attribute_many
from resect.attribution.rounds import contrasted, locate
from resect.attribution.settings import AttributeSettings
from resect.data.encode import encode
from resect.data.load import BehaviourSet, check_disjoint, load_data
from resect.edit.checkpoint import forced_of
from resect.errors import InputError, MismatchError
from resect.files.origin import hash_value
from resect.files.reading import read_json
from resect.files.writing import write_json
from resect.model import (
    find_prunable,
    load_model,
    model_fingerprint,
    prunable_tensors,
    tokenizer_fingerprint,
)
from resect.records import Encoded
from resect.runs.config import RunConfig
from resect.studies.cells import Cut, at_seed, mask_path
from resect.studies.design import Target
from resect.weights.controls import magnitude_matched, random_mask
from resect.weights.mask import Mask, revalued
from resect.weights.scores import Scores
from resect.weights.select import next_slice, select


@dataclass(frozen=True)
class Loaded:
    """A model in memory, with its number of prunable weights."""

    place: str
    model: Any
    tokenizer: Any
    prunable: int


@dataclass(frozen=True)
class _Source:
    """What scores are made from, beside the target: model and calibration draw."""

    role: str
    seed: int
    category: str = ""
    examples: int | None = None
    draw: int | None = None


class Workbench:
    """Holds the model that is being worked on; one model at a time is in memory."""

    def __init__(self, config: RunConfig, run: Path, keep: float):
        """Open the run folder.

        Args:
            config: The run's configuration.
            run: Its folder.
            keep: Fraction of each ranking that scores must hold.
        """
        self.config = config
        self.run = run
        self.keep = keep
        self._loaded: Loaded | None = None
        self._known: set[tuple[str, int, str]] = set()
        self._data: dict[str, BehaviourSet] = {}
        self._scores: dict[str, dict[str, Scores]] = {}

    def mask(self, role: str, seed: int, cut: Cut) -> Mask:
        """Return what a cut removes from the model of a role."""
        if cut.kind in ("opposite", "next_slice"):
            return self._slice(role, seed, cut)
        mask = self._target_mask(role, seed, replace(cut, kind="target"))
        if cut.kind == "target":
            return mask
        weights = prunable_tensors(self.load(role, seed).model)
        draw = random_mask if cut.kind == "random" else magnitude_matched
        return draw(mask, weights, label=f"{cut.kind}/{cut.target}/{cut.q:g}", seed=seed)

    def _target_mask(self, role: str, seed: int, cut: Cut) -> Mask:
        path = mask_path(self.run, role, seed, cut)
        if path.exists():
            return Mask.load(path)
        if cut.scored_on not in ("", role):
            found = self._target_mask(cut.scored_on, seed, replace(cut, scored_on=""))
            mask = revalued(found, prunable_tensors(self.load(role, seed).model))
        elif cut.rounds > 1:
            mask = self._in_rounds(role, seed, cut)
        else:
            scores = self.scores(_source(role, seed, cut), cut.target)
            mask = select(
                scores["signed"], self._protected(role, seed, cut), **self._selection(cut)
            )
        mask.save(path)
        return mask

    def _slice(self, role: str, seed: int, cut: Cut) -> Mask:
        scores = self.scores(_source(role, seed, cut), cut.target)
        preserve = self._protected(role, seed, cut)
        if cut.kind == "opposite":
            return select(scores["opposite"], preserve, **self._selection(cut))
        return next_slice(scores["signed"], preserve, **self._selection(cut))

    def _in_rounds(self, role: str, seed: int, cut: Cut) -> Mask:
        source, target = _source(role, seed, cut), self.config.targets[cut.target]
        examples, contrast, data_hash = self._examples(source, target)
        loaded = self.load(role, seed)
        return locate(
            loaded.model,
            loaded.tokenizer,
            examples,
            self._protected(role, seed, cut),
            contrast=contrast,
            rounds=cut.rounds,
            settings=self._settings(source, target, data_hash),
            **self._selection(cut),
        )

    def _selection(self, cut: Cut) -> dict[str, Any]:
        chosen = self.config.selection
        p = chosen.p if cut.p is None else cut.p
        return {"q": cut.q, "p": p, "scope": cut.scope or chosen.scope}

    def _protected(self, role: str, seed: int, cut: Cut) -> Scores | None:
        """Return the importance for the preserve set; None if nothing is protected."""
        preserve = self.config.preserve
        if self._selection(cut)["p"] == 0:
            return None
        source, reductions = _Source(role, seed), (preserve.reduction,)
        return self._cached("preserve", source, preserve, reductions)[preserve.reduction]

    def scores(self, source: _Source, target: str) -> dict[str, Scores]:
        """Return facilitation and opposite-sign scores of a target behaviour."""
        return self._cached(target, source, self.config.targets[target], ("signed", "opposite"))

    def _cached(
        self, name: str, source: _Source, target: Target, reductions: tuple[str, ...]
    ) -> dict[str, Scores]:
        key = hash_value([name, source, self.keep])
        if key in self._scores:
            return self._scores[key]
        loaded = self.load(source.role, source.seed)
        paths = {r: self.run / "scores" / f"{key}-{r}.scores.safetensors" for r in reductions}
        if all(path.exists() for path in paths.values()):
            found = {reduction: Scores.load(path) for reduction, path in paths.items()}
        else:
            examples, contrast, data_hash = self._examples(source, target)
            found = attribute_many(
                loaded.model,
                loaded.tokenizer,
                contrasted(examples, contrast),
                reductions=reductions,
                settings=self._settings(source, target, data_hash),
            )
            for reduction, path in paths.items():
                found[reduction].save(path)
        self._scores[key] = found
        return found

    def _settings(self, source: _Source, target: Target, data_hash: str) -> AttributeSettings:
        return AttributeSettings(
            keep=self.keep,
            data_hash=data_hash,
            category=source.category,
            format=self.config.format,
            skip=target.skip,
            seed=source.seed,
        )

    def _examples(
        self, source: _Source, target: Target
    ) -> tuple[list[Encoded], list[Encoded], str]:
        """Return the examples, those of the contrast, and the hash of both."""
        data = self.calibration(target, source)
        examples = self._encode(data, target, source)
        if target.contrast is None:
            return examples, [], data.hash
        other = self.config.targets[target.contrast]
        against = self.calibration(other, source)
        contrast = self._encode(against, other, source)
        return examples, contrast, hash_value([data.hash, against.hash])

    def _encode(self, data: BehaviourSet, target: Target, source: _Source) -> list[Encoded]:
        loaded = self.load(source.role, source.seed)
        return encode(
            data.examples,
            loaded.tokenizer,
            format=self.config.format,
            skip=target.skip,
            tokens=target.tokens,
            max_length=getattr(
                loaded.model.config.get_text_config(), "max_position_embeddings", None
            ),
        )

    def calibration(self, target: Target, source: _Source) -> BehaviourSet:
        """Return the examples that are scored; none of them is asked by a probe."""
        data = self.set(target.data, source.seed).split("calibration")
        for probe in self.config.evaluation.probes:
            check_disjoint(data, self.asked(probe, source.seed))
        if source.category:
            data = data.category(source.category)
        limit = target.limit if source.examples is None else source.examples
        return data.limit(limit, source.seed if source.draw is None else source.draw)

    def asked(self, probe: str, seed: int) -> BehaviourSet:
        """Return the evaluation examples of a probe; the same for every arm."""
        evaluation = self.config.evaluation
        return self.set(evaluation.probes[probe], seed).split("evaluation").limit(evaluation.limit)

    def attack_data(self, role: str, seed: int) -> BehaviourSet:
        """Return what a model attack trains on or cuts with, by the role that the data play.

        Raises:
            InputError: The configuration names no set for this role.
        """
        names = self.config.attack_data
        if role not in names:
            raise InputError(
                f"a model attack needs data for {role!r}",
                got=", ".join(names) or "no attack_data",
                fix=f"name a set for {role} under attack_data",
            )
        return self.set(names[role], seed).split("calibration")

    def set(self, name: str, seed: int) -> BehaviourSet:
        """Return a data set of the configuration."""
        place = at_seed(self.config.data[name], seed)
        if place not in self._data:
            self._data[place] = load_data(place)
            self._remember_data(name, seed, self._data[place])
        return self._data[place]

    def _remember_data(self, name: str, seed: int, found: BehaviourSet) -> None:
        """Write down what a data set holds; refuse another one in the same run."""
        path = self.run / "data" / f"{hash_value([name, seed])}.json"
        facts = {"name": name, "seed": seed, "hash": found.hash}
        if not path.exists():
            write_json(path, facts)
        elif read_json(path)["hash"] != found.hash:
            raise MismatchError(
                f"the data set {name!r} is not the one that this run began with",
                got=f"{found.hash} in {at_seed(self.config.data[name], seed)}",
                allowed=str(read_json(path)["hash"]),
                fix="bring the old data back, or choose a new folder with -o",
            )

    def load(self, role: str, seed: int) -> Loaded:
        """Return the model of a role; the one before it is let go."""
        place = at_seed(self.config.models[role], seed)
        if self._loaded is None or self._loaded.place != place:
            # The old model goes first, otherwise two would be in memory at once.
            self._loaded = None
            self._scores.clear()
            model, tokenizer = load_model(place)
            self._loaded = Loaded(place, model, tokenizer, find_prunable(model).total)
        self._remember(role, seed, self._loaded)
        return self._loaded

    def _remember(self, role: str, seed: int, loaded: Loaded) -> None:
        """Write down which model played a role; refuse another one in the same run."""
        if (role, seed, loaded.place) in self._known:
            return
        self._known.add((role, seed, loaded.place))
        path = self.run / "models" / f"{role}-{seed}.json"
        facts = {
            "role": role,
            "seed": seed,
            "place": loaded.place,
            "fingerprint": model_fingerprint(loaded.model),
            "tokenizer": tokenizer_fingerprint(loaded.tokenizer),
            "prunable": loaded.prunable,
            "forced": forced_of(loaded.place),
        }
        if not path.exists():
            write_json(path, facts)
            return
        known = read_json(path)
        for what, name in (("model", "fingerprint"), ("tokenizer of the model", "tokenizer")):
            if known[name] != facts[name]:
                raise MismatchError(
                    f"the {what} {role!r} is not the one that this run began with",
                    got=f"{facts[name]} in {loaded.place}",
                    allowed=known[name],
                    fix="choose a new folder with -o",
                )


def _source(role: str, seed: int, cut: Cut) -> _Source:
    return _Source(role, seed, cut.category, cut.examples, cut.draw)
