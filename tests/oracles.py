"""Slow and obvious twins of the fast paths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from resect.records import Encoded


def example_loss(model: Any, example: Encoded) -> Tensor:
    """Mean NLL of the scored tokens of one example, with the plain logits of the model."""
    ids = torch.tensor([example.input_ids])
    log_probs = torch.log_softmax(model(input_ids=ids).logits[0].float(), dim=-1)
    places = range(example.first_scored, len(example.input_ids))
    return -torch.stack([log_probs[at - 1, example.input_ids[at]] for at in places]).mean()


def gradients(model: Any, name: str, examples: Sequence[Encoded]) -> Tensor:
    """Gradients of one tensor, one example at a time: [E, *shape]."""
    parameter = dict(model.named_parameters())[name]
    found = []
    for example in examples:
        model.zero_grad(set_to_none=True)
        example_loss(model, example).backward()  # type: ignore[no-untyped-call]
        found.append(parameter.grad.clone())
    model.zero_grad(set_to_none=True)
    return torch.stack(found)


def score(model: Any, name: str, examples: Sequence[Encoded], reduction: str) -> Tensor:
    """Scores of one tensor from the definition."""
    weight = dict(model.named_parameters())[name].detach().float()
    each = gradients(model, name, examples).float()
    mean = each.mean(dim=0)
    return {
        "signed": -(weight * mean),
        "opposite": weight * mean,
        "abs_of_mean": (weight * mean).abs(),
        "mean_of_abs": weight.abs() * each.abs().mean(dim=0),
    }[reduction]


def select(
    target: dict[str, Tensor], preserve: dict[str, Tensor], q: float, p: float, scope: str
) -> dict[str, list[int]]:
    """The set difference by sorting python tuples."""

    def top(scores: dict[str, Tensor], fraction: float) -> set[tuple[str, int]]:
        ranked = [
            (-value, place, at, name)
            for place, (name, tensor) in enumerate(scores.items())
            for at, value in enumerate(tensor.reshape(-1).tolist())
        ]
        if scope == "model":
            kept = sorted(ranked)[: int(fraction * len(ranked))]
        else:
            kept = []
            for name, tensor in scores.items():
                own = sorted(entry for entry in ranked if entry[3] == name)
                kept += own[: int(fraction * tensor.numel())]
        return {(name, at) for _, _, at, name in kept}

    taken = {(name, at) for name, at in top(target, q) if float(target[name].reshape(-1)[at]) > 0}
    chosen = taken - top(preserve, p)
    return {name: sorted(at for n, at in chosen if n == name) for name in target}
