"""How near the change of each matrix is to one direction: the weight-recovery energy.

    E_1 = mean over m in W of σ_1(Δ_m)² / Σ_i σ_i(Δ_m)²

with Δ_m the change of matrix m, σ_i its singular values, and W the matrices that write to the
residual stream (of attention its output, of an MLP its last) in blocks ⌊0.33 L⌋ to ⌊0.67 L⌋ of L
blocks, both included. So it is defined by Hurtado (arXiv 2607.01854, section 3 and appendix D),
after Zhong and Raghunathan (arXiv 2508.00161). A matrix that did not change has no such share and
is left out. Here W is found by derivatives and not by names (`resect.edit.writers`), and of a layer
of experts each expert's matrix counts.

It is near 1 for every edit of low rank, such as taking a direction out of a model or a LoRA of rank
1, whatever that edit is for, and small where a full fine-tune moved all weights. Hurtado's audit
reads it beside a second signal, the refusal gap in activations, which is not computed here; no
verdict of ours rests on it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from resect.edit.writers import find_writers
from resect.model import find_prunable
from resect.records import CausalModel
from resect.stats import rng
from resect.weights.change import change, where_exact

# Of the blocks; appendix D.
BAND = (0.33, 0.67)
# Matrices of at most so many rows or columns have all their singular values taken.
WHOLE = 512
# Of larger ones the first comes by iteration on so many directions, until it stands still.
DIRECTIONS, MOST_ROUNDS, STILL = 8, 100, 1e-5
# Tokens that are put to the model to see which matrices write.
TOKENS = 16


def rank_one_shares(model: CausalModel, tuned: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the share of the first singular direction in the change of each matrix of W.

    Args:
        model: The model before.
        tuned: Checkpoint tensor name to the weights after, of the same shapes.

    Returns:
        Checkpoint tensor name to σ_1² / Σ σ_i², for those that changed.
    """
    weights = find_prunable(model).weights
    count = 1 + max((weight.layer for weight in weights), default=0)
    start, end = (int(share * count) for share in BAND)
    tokens = torch.arange(TOKENS).remainder(model.config.get_text_config().vocab_size)[None]
    tokens = tokens.to(next(model.get_input_embeddings().parameters()).device)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    writers = {writer.name for writer in find_writers(model, inputs)}
    parameters = dict(model.named_parameters())
    shares = {}
    for weight in weights:
        if weight.name not in writers or not start <= weight.layer <= end:
            continue
        for tensor in weight.places:
            before = tensor.view(parameters[weight.name].detach())
            share = top_share(change(before, tuned[tensor.name]).view(before.shape))
            if share is not None:
                shares[tensor.name] = share
    return shares


def top_share(delta: Tensor) -> float | None:
    """Return σ_1² / Σ σ_i² of a matrix [m, n]; None of zeros and of what is no number."""
    delta = where_exact(delta)
    energy = float(delta.double().square().sum())
    if not energy or not math.isfinite(energy):
        return None
    if min(delta.shape) <= WHOLE:
        return float(torch.linalg.svdvals(delta.double())[0].square()) / energy
    return min(1.0, _largest(delta) / energy)


def _largest(delta: Tensor) -> float:
    """Return σ_1² of a large matrix [m, n], from below, by subspace iteration."""
    start = rng(f"rank one/{tuple(delta.shape)}").standard_normal((delta.shape[1], DIRECTIONS))
    basis = torch.from_numpy(start).to(delta.device, delta.dtype)
    largest = 0.0
    for _ in range(MOST_ROUNDS):
        within = torch.linalg.qr(delta @ basis).Q.T @ delta
        squared = float(torch.linalg.eigvalsh((within @ within.T).double())[-1])
        if squared - largest <= STILL * squared:
            return max(squared, largest)
        largest = squared
        basis = torch.linalg.qr(within.T).Q
    return largest
