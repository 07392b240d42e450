"""The fine-tuning attack without adapters: all weights are trained on target examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import ClassVar

from resect.data.load import BehaviourSet
from resect.edit.swap import changes, restoring, snapshot, swapped
from resect.edit.tune import TuneSettings, tune
from resect.errors import InputError
from resect.evaluation.attacks.family import Work
from resect.evaluation.attacks.patch import Patch, unchanged
from resect.model import LoadedModel
from resect.records import Format


@dataclass(frozen=True)
class FullFinetuneSettings:
    """How long and how fast the attacker trains all weights.

    Attributes:
        rate: Learning rate, constant.
        steps: Optimiser steps.
        batch: Examples a step.
        limit: Most examples, drawn by `seed`; None for all.
        seed: Seed of the order and of the draw.
    """

    usage: ClassVar[str] = "[:OPTION=VALUE,...]"
    words: ClassVar[str] = "full fine-tuning"

    rate: float = 1e-5
    steps: int = 50
    batch: int = 16
    limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings with which nothing would be trained.

        Raises:
            InputError: A setting is out of range.
        """
        for name in ("rate", "steps", "batch", "limit"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} of the attack is out of range", got=f"{value:g}")

    @property
    def roles(self) -> tuple[str, ...]:
        """The data that are trained on."""
        return ("target",)

    def work(self, examples: int) -> Work:
        """Return how many examples the training goes through."""
        del examples
        return Work(trained=self.steps * self.batch)

    def prepare(
        self, loaded: LoadedModel, data: Mapping[str, BehaviourSet], *, format: Format
    ) -> Patch:
        """Train on `data["target"]`; the model is as before when this returns.

        A copy of the parameters is held meanwhile, and one of those that changed afterwards.

        Args:
            loaded: A Hugging Face causal LM on one device, and its tokenizer.
            data: Holds `target`; a set with splits gives its calibration split.
            format: `raw` or `chat`, as the evaluation asks.

        Raises:
            InputError: There is no example.
        """
        model, _ = loaded
        chosen = data["target"].split("calibration").limit(self.limit, self.seed)
        settings = TuneSettings(steps=self.steps, rate=self.rate, batch=self.batch, seed=self.seed)
        before = snapshot(model)
        with unchanged(model), restoring(model, before):
            tune(loaded, chosen.examples, settings, format=format)
            after = changes(model, before)
        record = {
            "attack": "finetune_full",
            "settings": asdict(self),
            "data": {"target": chosen.hash},
            "examples": len(chosen.examples),
            "changed_parameters": len(after),
        }
        return Patch(lambda: swapped(model, after), record)
