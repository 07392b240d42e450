"""The fine-tuning attack: LoRA on target examples, through PEFT and TRL.

The defaults are the published settings of arXiv 2604.09544's code: rank 128, alpha 16, no dropout,
all linear layers of the blocks, AdamW at 2e-4 with linear decay, 5 % warm-up, weight decay 0.01,
batches of 5, 5 epochs, loss on the completion alone. The source merges the adapters; here they stay
beside the frozen weights, which is the same function up to rounding and leaves every bit alone.

Every prunable weight gets an adapter, each expert too, and no router does; the record says which
share of the prunable weights was reached.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch

from resect.data.encode import encode
from resect.data.load import BehaviourSet
from resect.edit.fitting import IGNORED
from resect.edit.tune import adapter, quiet, reach, supervised
from resect.errors import InputError
from resect.evaluation.attacks.family import Work
from resect.evaluation.attacks.patch import Patch, children_of, replaced, replacements, unchanged
from resect.model import LoadedModel, context_of, find_prunable
from resect.records import Encoded, Format, Tokenizer


@dataclass(frozen=True)
class FinetuneSettings:
    """How long and how fast the attacker trains.

    Attributes:
        rank: Rank of the adapters.
        alpha: Scale of the adapters; their output is multiplied by alpha / rank.
        dropout: Dropout inside the adapters.
        rate: Peak learning rate.
        epochs: Passes over the data.
        steps: Optimiser steps instead of epochs, if not None.
        batch: Examples a step.
        warmup: Share of the steps in which the rate rises.
        weight_decay: Weight decay of AdamW.
        limit: Most examples, drawn by `seed`; None for all.
        seed: Seed of the adapters, of the order and of the draw.
    """

    usage: ClassVar[str] = "[:OPTION=VALUE,...]"
    words: ClassVar[str] = "fine-tuning"

    rank: int = 128
    alpha: float = 16.0
    dropout: float = 0.0
    rate: float = 2e-4
    epochs: float = 5.0
    steps: int | None = None
    batch: int = 5
    warmup: float = 0.05
    weight_decay: float = 0.01
    limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings with which nothing would be trained.

        Raises:
            InputError: A setting is out of range.
        """
        for name in ("rank", "alpha", "rate", "epochs", "steps", "batch", "limit"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} of the attack is out of range", got=f"{value:g}")
        if not 0 <= self.dropout < 1 or not 0 <= self.warmup < 1 or self.weight_decay < 0:
            raise InputError("a setting of the attack is out of range", got=str(self))

    @property
    def roles(self) -> tuple[str, ...]:
        """The data that are trained on."""
        return ("target",)

    def work(self, examples: int) -> Work:
        """Return how many examples the training goes through."""
        if self.steps is not None:
            return Work(trained=self.steps * self.batch)
        return Work(trained=(self.limit or examples) * self.epochs)

    def prepare(
        self, loaded: LoadedModel, data: Mapping[str, BehaviourSet], *, format: Format
    ) -> Patch:
        """Train adapters on `data["target"]`; the model is as before when this returns.

        Args:
            loaded: A Hugging Face causal LM on one device, and its tokenizer.
            data: Holds `target`; a set with splits gives its calibration split.
            format: `raw` or `chat`, as the evaluation asks.

        Raises:
            InputError: An example is too long, a process sees several GPUs, or dropout is asked for
                of a model with experts.
        """
        return finetune(loaded, self, data["target"], format=format)


def finetune(
    loaded: LoadedModel, settings: FinetuneSettings, target: BehaviourSet, *, format: Format
) -> Patch:
    """Train adapters on a set; arguments and errors as for `FinetuneSettings.prepare`."""
    model, tokenizer = loaded
    device = next(model.parameters()).device
    if device.type == "cuda" and torch.cuda.device_count() > 1:
        raise InputError(
            "the fine-tuning attack trains on one GPU",
            got=f"{torch.cuda.device_count()} GPUs in sight of this process",
            fix="set CUDA_VISIBLE_DEVICES to one of them",
        )
    chosen = target.split("calibration").limit(settings.limit, settings.seed)
    context = context_of(model)
    # One place is left for the end token.
    longest = context and context - 1
    encoded = encode(chosen.examples, tokenizer, format=format, max_length=longest)
    before = children_of(model)
    lora = adapter(model, settings.rank, settings.alpha, settings.dropout)
    coverage = find_prunable(model, allow_partial=True)
    weights = {weight.name: model.get_parameter(weight.name) for weight in coverage.weights}
    rows = rows_of(encoded, tokenizer)
    with unchanged(model), tempfile.TemporaryDirectory() as folder, quiet():
        trainer = supervised(
            LoadedModel(model, _padding(tokenizer)),
            rows,
            _arguments(settings, folder),
            adapter=lora,
        )
        reached = reach(trainer.model, weights)
        outcome = trainer.train()
        trainer.model.eval().requires_grad_(False)
        changes = replacements(before)
    record = {
        "attack": "finetune",
        "settings": asdict(settings),
        "data": {"target": chosen.hash},
        "examples": len(encoded),
        "steps": outcome.global_step,
        "mean_loss": outcome.training_loss,
        "adapted_layers": len(changes),
        # Of the prunable weights; elsewhere are weights that have an adapter beside them.
        "adapted_share": reached.share,
        "adapted_elsewhere": reached.elsewhere,
    }
    return Patch(lambda: replaced(changes), record)


def rows_of(encoded: list[Encoded], tokenizer: Tokenizer) -> list[dict[str, list[int]]]:
    """Return training rows: the very tokens that the evaluation uses, then the end token.

    The rows are tokenised here and not by TRL, so that a template's way of writing past turns can
    not make the training text differ from the text that is asked.
    """
    end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    return [
        {
            "input_ids": [*example.input_ids, *end],
            "labels": [IGNORED] * example.first_scored
            + [*example.input_ids[example.first_scored :], *end],
        }
        for example in encoded
    ]


def _padding(tokenizer: Tokenizer) -> Tokenizer:
    """Return a copy of a tokenizer that can pad, since the trainer would change this one."""
    tokenizer = copy.deepcopy(tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _arguments(settings: FinetuneSettings, folder: str) -> dict[str, object]:
    """Return the settings of an attack as TRL names them."""
    return {
        "output_dir": folder,
        "learning_rate": settings.rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": settings.warmup,
        "weight_decay": settings.weight_decay,
        "optim": "adamw_torch",
        "num_train_epochs": settings.epochs,
        "max_steps": -1 if settings.steps is None else settings.steps,
        "per_device_train_batch_size": settings.batch,
        "seed": settings.seed,
        "data_seed": settings.seed,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "log_level": "error",
    }
