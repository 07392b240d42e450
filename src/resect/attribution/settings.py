"""How a pass is made, and what its artefact says of the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LARGE = 1_000_000_000


@dataclass(frozen=True)
class AttributeSettings:
    """How a pass is made, and what its artefact says of the data.

    Attributes:
        method: Name in `resect.attribution.methods.METHODS`.
        reduction: Reduction that `attribute` returns.
        batch_size: Examples a batch; None fills batches up to `batch_tokens`.
        batch_tokens: Tokens a batch, padding included; "auto" for a number by device.
        keep: Largest fraction that can be selected later; None for 1e-2, or 1e-3 for models of
            more than a billion prunable weights.
        dense: Keep the score of every weight.
        accumulator: Where sums are kept; "auto" for a plan that fits into the free memory
            (`resect.attribution.plan`), which may also make batches smaller, use checkpointing and
            score fewer layers a pass, unless those are given.
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
