"""Energies of a change against a loop over weights."""

from __future__ import annotations

import torch

from resect.weights.change import change, sum_over


def test_the_energy_in_a_set_is_the_sum_over_its_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(4, 5, generator=generator)
    after = before + torch.randn(4, 5, generator=generator)
    delta = change(before, after)
    index = torch.tensor([0, 7, 19])
    inside = sum((float(after.view(-1)[i]) - float(before.view(-1)[i])) ** 2 for i in index)
    # Δ and Δ² are rounded to fp32, each by at most 2⁻²⁴ of itself.
    assert abs(sum_over(delta.square(), index) - inside) <= 1e-6 * inside
    assert sum_over(delta.square(), index[:0]) == 0
    whole = sum_over(delta.square(), torch.arange(20))
    assert sum_over(delta.square()) == whole


def test_a_change_in_half_precision_is_taken_in_fp32() -> None:
    before = torch.tensor([1.0, 256.0], dtype=torch.bfloat16)
    after = torch.tensor([1.0078125, -2.0], dtype=torch.bfloat16)
    assert change(before, after).tolist() == [0.0078125, -258.0]
