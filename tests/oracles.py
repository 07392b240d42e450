"""Slow and obvious twins of the fast paths."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from resect.evaluation.ask import made
from resect.records import CausalModel, Encoded
from resect.weights.fill import Filled
from resect.weights.mask import Mask


def example_loss(model: CausalModel, example: Encoded) -> Tensor:
    """Mean NLL of the scored tokens of one example, with the plain logits of the model."""
    ids = torch.tensor([example.input_ids])
    log_probs = torch.log_softmax(model(input_ids=ids).logits[0].float(), dim=-1)
    scored = range(example.first_scored, len(example.input_ids))
    return -torch.stack([log_probs[t - 1, example.input_ids[t]] for t in scored]).mean()


def mean_loss(model: CausalModel, examples: Sequence[Encoded]) -> float:
    """Mean over examples of the mean NLL of scored tokens, in the model's own dtype."""
    total = 0.0
    with torch.no_grad():
        for example in examples:
            logits = model(input_ids=torch.tensor([example.input_ids])).logits[0]
            log_probs = torch.log_softmax(logits, dim=-1)
            scored = range(example.first_scored, len(example.input_ids))
            nll = [-float(log_probs[token - 1, example.input_ids[token]]) for token in scored]
            total += sum(nll) / len(nll)
    return total / len(examples)


def gradients(
    model: CausalModel, names: Sequence[str], examples: Sequence[Encoded]
) -> dict[str, Tensor]:
    """Gradients of parameters, one example at a time: [E, *shape] by name."""
    parameters = {name: model.get_parameter(name) for name in names}
    by_name: dict[str, list[Tensor]] = {name: [] for name in names}
    for example in examples:
        model.zero_grad(set_to_none=True)
        example_loss(model, example).backward()  # type: ignore[no-untyped-call]
        for name, parameter in parameters.items():
            # An expert that no token reached has no part in the loss.
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            by_name[name].append(gradient.clone())
    model.zero_grad(set_to_none=True)
    return {name: torch.stack(by_example) for name, by_example in by_name.items()}


def score(weight: Tensor, gradients: Tensor, reduction: str) -> Tensor:
    """Scores of one parameter from the definition and its gradients [E, *shape]."""
    weight, gradients = weight.detach().float(), gradients.float()
    mean = gradients.mean(dim=0)
    by_name: dict[str, Tensor] = {
        "signed": -(weight * mean),
        "opposite": weight * mean,
        "abs_of_mean": (weight * mean).abs(),
        "mean_of_abs": weight.abs() * gradients.abs().mean(dim=0),
        "fisher": -(weight * mean) + weight**2 * (gradients**2).mean(dim=0) / 2,
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
            (-value, order, index, name)
            for order, (name, tensor) in enumerate(scores.items())
            for index, value in enumerate(tensor.reshape(-1).tolist())
        ]
        if scope == "model":
            best = sorted(ranked)[: int(fraction * len(ranked))]
        else:
            best = []
            for name, tensor in scores.items():
                rows = sorted(entry for entry in ranked if entry[3] == name)
                best += rows[: int(fraction * tensor.numel())]
        return {(name, index) for _, _, index, name in best}

    taken = {(n, index) for n, index in top(target, q) if float(target[n].reshape(-1)[index]) > 0}
    chosen = taken - top(preserve, p)
    return {name: sorted(index for n, index in chosen if n == name) for name in target}


def reference_nll(model: CausalModel, row: Sequence[int], start: int) -> float:
    """Mean NLL of a row's tokens from `start` on: a row a pass, a token a cross-entropy."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([list(row)])).logits[0].float()
        losses = [
            torch.nn.functional.cross_entropy(logits[place - 1], torch.tensor(row[place]))
            for place in range(start, len(row))
        ]
    return float(torch.stack(losses).mean())


def without_direction(weight: Tensor, direction: Tensor, axis: int, strength: float) -> Tensor:
    """A weight less its part along a direction, vector by vector, in fp64."""
    moved = weight.detach().double().movedim(axis, -1)
    edited = [
        vector
        - strength
        * sum(v * d for v, d in zip(vector, direction.double(), strict=True))
        * direction.double()
        for vector in moved.reshape(-1, moved.shape[-1])
    ]
    return torch.stack(edited).reshape(moved.shape).movedim(-1, axis).to(weight.dtype)


def mean_states(model: CausalModel, examples: Sequence[Encoded], layer: int) -> Tensor:
    """Mean of the hidden states [h] from which scored tokens are predicted, an example at a time.

    Args:
        model: One whose hidden states are those after its blocks, but for the last, which has
            passed the final norm.
        examples: The examples.
        layer: Position of the block.
    """
    means = []
    for example in examples:
        ids = torch.tensor([example.input_ids])
        with torch.no_grad():
            states = model(input_ids=ids, output_hidden_states=True).hidden_states[layer + 1][0]
        positions = [t - 1 for t in range(example.first_scored, len(example.input_ids))]
        means.append(torch.stack([states[t].double() for t in positions]).mean(dim=0))
    return torch.stack(means).mean(dim=0)


def cut_by_cut(
    model: CausalModel, variants: Sequence[Mask | Filled | None], inputs: dict[str, Tensor]
) -> Tensor:
    """Logits [V * R, T, V'] of the same rows [R, T] under one variant after the other."""
    logits = []
    for variant in variants:
        with torch.inference_mode(), made(model, variant):
            logits.append(model(**inputs, use_cache=False).logits)
    return torch.cat(logits)
