"""The first test: a score predicts what a cut does.

For signed SNIP, scaling a set of weights by (1 - ε) changes the mean loss by ε·Σ a_w to first
order. The residual is of second order, so halving ε divides it by four. The model is in float64, so
that the residual is seen and not the rounding.
"""

from __future__ import annotations

import pytest
import torch

import tiny
from oracles import example_loss, mean_loss
from resect.attribution.engine import attribute_many
from resect.attribution.settings import Pass
from resect.edit.live import removed
from resect.weights.select import select


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("reduction", ["signed", "opposite"])
def test_predicted_change_is_the_measured_one(architecture: str, reduction: str) -> None:
    model = tiny.build(architecture, dtype=torch.float64)
    examples = tiny.examples(6)
    settings = Pass(dense=True)
    scores = attribute_many(
        model, tiny.tokenizer(), examples, reductions=(reduction,), settings=settings
    )[reduction]
    mask = select(scores, None, q=0.02, p=0, scope="model")
    assert mask.count > 20
    predicted = sum(
        float(tensor.value[torch.isin(tensor.index, mask.tensors[name].index)].double().sum())
        for name, tensor in scores.tensors.items()
    )
    sign = 1 if reduction == "signed" else -1

    def loss() -> float:
        with torch.no_grad():
            return float(torch.stack([example_loss(model, e).double() for e in examples]).mean())

    # The oracle of the gradients rounds to float32; here the second order must be seen.
    intact = mean_loss(model, examples)
    assert intact == pytest.approx(loss(), rel=1e-5)
    residuals = []
    for epsilon in (0.004, 0.002):
        with removed(model, mask, alpha=1 - epsilon):
            change = mean_loss(model, examples) - intact
        residuals.append(abs(change - sign * epsilon * predicted))
        assert change == pytest.approx(sign * epsilon * predicted, rel=0.1)
    assert residuals[0] / residuals[1] == pytest.approx(4, rel=0.15)
