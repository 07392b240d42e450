"""How a pass over the data is made: what the user chooses, and what is left to the free memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from resect.errors import InputError
from resect.model.load import find_device
from resect.model.plan import Work, shape_of, streamed
from resect.model.prunable import Coverage
from resect.model.room import Reading, how_to_read, least_free, plan_for
from resect.ranks import ALONE, Ranks
from resect.records import Encoded

# Measured on two CPU cores: batches of 4 to 8 rows of 128 tokens are quickest, 32 are slower.
CPU_TOKENS = 1024
GPU_TOKENS = 8192
LARGE = 1_000_000_000

_log = logging.getLogger(__name__)


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
        accumulator: Where sums are kept; "auto" for a plan that fits into the free memory
            (`resect.model.plan`), which may also make batches smaller, use checkpointing and score
            fewer layers a pass, unless those are given.
        layers_per_pass: Layers that are scored in one pass over the data, to save memory; None for
            all of them, or as planned.
        checkpoint: Compute activations again in the backward pass, to save memory.
        allow_partial: Leave block weights of an unknown kind alone instead of refusing them.
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
    allow_partial: bool = False
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


def planned(
    model: Any,
    encoded: Sequence[Encoded],
    settings: AttributeSettings,
    coverage: Coverage,
    sums: int,
    ranks: Ranks = ALONE,
) -> AttributeSettings:
    """Return settings with nothing left open that depends on the free memory.

    Args:
        model: A Hugging Face causal LM.
        encoded: All examples of the job.
        settings: What the user has chosen.
        coverage: The model's prunable weights.
        sums: Kinds of sums that are kept of each weight.
        ranks: The processes that share the examples; all get the same settings.
    """
    tokens = settings.batch_tokens
    if tokens == "auto":
        on_gpu = model.get_input_embeddings().weight.is_cuda
        tokens = GPU_TOKENS if on_gpu else CPU_TOKENS
    if settings.accumulator != "auto":
        return replace(settings, batch_tokens=tokens)
    found = plan_for(
        model,
        coverage,
        encoded,
        sums=sums,
        batch_tokens=tokens,
        batch_size=settings.batch_size,
        # What the user has chosen is not made smaller before it has failed.
        fixed=settings.batch_tokens != "auto",
        keep=settings.fraction(coverage.total),
        ranks=ranks,
    )
    if ranks.rank == 0:
        _log.log(logging.INFO if found.fits else logging.WARNING, "%s", found.summary())
    return replace(
        settings,
        accumulator="cpu" if found.accumulator == "cpu" else "device",
        layers_per_pass=settings.layers_per_pass or found.layers,
        checkpoint=settings.checkpoint or found.checkpoint,
        batch_tokens=found.batch_tokens,
    )


def streamed_tokens(
    model: Any,
    encoded: Sequence[Encoded],
    settings: AttributeSettings,
    coverage: Coverage,
    *,
    sums: int,
    ranks: Ranks = ALONE,
) -> int:
    """Return the most tokens of a batch for a model that is read block by block.

    Args:
        model: The model; where it runs is where its embeddings are.
        encoded: All examples of the job.
        settings: What the user has chosen.
        coverage: The model's prunable weights.
        sums: Kinds of sums that are kept of each weight.
        ranks: The processes that share the examples; all get the same.
    """
    if settings.batch_tokens != "auto":
        return settings.batch_tokens
    device = model.get_input_embeddings().weight.device
    work = _work(encoded, settings, GPU_TOKENS if device.type == "cuda" else CPU_TOKENS, sums)
    work = replace(work, keep=settings.fraction(coverage.total))
    return streamed(shape_of(model, coverage), work, least_free({device}, ranks)).tokens


def _work(examples: Sequence[Encoded], settings: AttributeSettings, tokens: int, sums: int) -> Work:
    longest = max(len(example.input_ids) for example in examples)
    return Work(
        tokens=sum(len(example.input_ids) for example in examples),
        scored=sum(example.scored_tokens for example in examples),
        batch_tokens=(settings.batch_size or 0) * longest or tokens,
        longest=(settings.batch_size or 1) * longest,
        sums=sums,
    )


def reading(
    folder: Path,
    encoded: Callable[[], Sequence[Encoded]],
    settings: AttributeSettings,
    *,
    sums: int,
    dtype: str | None = None,
    device: str | None = None,
    ranks: Ranks = ALONE,
) -> Reading:
    """Choose whether a checkpoint folder is loaded or read block by block (`how_to_read`).

    Args:
        folder: A checkpoint folder with safetensors weights.
        encoded: Returns all examples of the job; not called for a small model.
        settings: What the user has chosen.
        sums: Kinds of sums that are kept of each weight.
        dtype: Dtype of the weights in memory; None for the one on disk.
        device: Where the model runs; None for a GPU if there is one.
        ranks: The processes that share the examples; all choose the same.

    Raises:
        InputError: There is no example, or the folder is no checkpoint of a causal LM.
        CoverageError: The model has block weights of an unknown kind.
    """
    on_gpu = torch.device(find_device(device)).type == "cuda"
    tokens = GPU_TOKENS if on_gpu else CPU_TOKENS

    def work() -> Work:
        examples = encoded()
        if not examples:
            raise InputError("there is no example to score")
        return _work(examples, settings, tokens, sums)

    keep = settings.fraction
    return how_to_read(folder, work, keep=keep, dtype=dtype, device=device, ranks=ranks)
