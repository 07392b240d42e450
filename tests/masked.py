"""A tiny model, a mask for it, and its whole state."""

from __future__ import annotations

import torch

import tiny
from resect.attribution.engine import attribute_many
from resect.attribution.settings import Pass
from resect.records import CausalModel
from resect.weights.mask import Mask
from resect.weights.select import select


def make(model: CausalModel, q: float = 0.05) -> Mask:
    scores = attribute_many(model, tiny.tokenizer(), tiny.examples(3), settings=Pass(dense=True))
    return select(scores["signed"], None, q=q, p=0)


def state(model: CausalModel) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(model: CausalModel, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(p, before[name]) for name, p in model.named_parameters())
