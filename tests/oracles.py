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


def gradients(model: Any, names: Sequence[str], examples: Sequence[Encoded]) -> dict[str, Tensor]:
    """Gradients of parameters, one example at a time: [E, *shape] by name."""
    parameters = {name: model.get_parameter(name) for name in names}
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for example in examples:
        model.zero_grad(set_to_none=True)
        example_loss(model, example).backward()  # type: ignore[no-untyped-call]
        for name, parameter in parameters.items():
            # An expert that no token reached has no part in the loss.
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            found[name].append(gradient.clone())
    model.zero_grad(set_to_none=True)
    return {name: torch.stack(each) for name, each in found.items()}


def score(weight: Tensor, each: Tensor, reduction: str) -> Tensor:
    """Scores of one parameter from the definition and its gradients [E, *shape]."""
    weight, each = weight.detach().float(), each.float()
    mean = each.mean(dim=0)
    by_name: dict[str, Tensor] = {
        "signed": -(weight * mean),
        "opposite": weight * mean,
        "abs_of_mean": (weight * mean).abs(),
        "mean_of_abs": weight.abs() * each.abs().mean(dim=0),
        "fisher": -(weight * mean) + weight**2 * (each**2).mean(dim=0) / 2,
        "gradient": mean.abs(),
        "magnitude": weight.abs(),
    }
    return by_name[reduction]


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
