"""Rounding to few bits: as far as it says, zeros stay zeros, and every bit comes back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import tiny
from resect.edit.live import removed
from resect.errors import InputError
from resect.evaluation.attacks import attacked, parse_attack
from resect.evaluation.attacks.family import Work
from resect.evaluation.attacks.quantise import QuantiseSettings
from resect.model import LoadedModel, prunable_tensors
from resect.weights.rounding import rounded


def slowly(weight: Tensor, bits: int, group: int) -> Tensor:
    """Round one weight after the other."""
    rows = weight.float().reshape(-1, weight.shape[-1]).tolist()
    top = 2 ** (bits - 1) - 1
    for row in rows:
        for start in range(0, len(row), group):
            scale = max(abs(value) for value in row[start : start + group]) / top
            for place in range(start, min(start + group, len(row))):
                row[place] = scale * round(row[place] / scale) if scale else 0.0
    return torch.tensor(rows).reshape(weight.shape)


@pytest.mark.parametrize(("bits", "group"), [(8, 128), (4, 5), (2, 1), (3, 7)])
def test_it_is_the_formula(bits: int, group: int) -> None:
    weight = torch.randn(3, 4, 23, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight[1, 2] = 0
    weight[0, 0, ::2] = 0
    close = rounded(weight.float(), bits, group)
    assert torch.allclose(close, slowly(weight, bits, group), atol=1e-6)
    assert bool((close[weight == 0] == 0).all())
    row = close[2, 3, :group]
    assert len(set(row.abs().tolist())) <= 2 ** (bits - 1)


def test_more_bits_and_smaller_groups_are_closer() -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(1))

    def error(bits: int, group: int) -> float:
        return float((rounded(weight, bits, group) - weight).square().mean())

    assert error(8, 64) < error(4, 64) / 50
    assert error(4, 8) < error(4, 64)
    assert rounded(weight.bfloat16(), 4, 64).dtype == torch.bfloat16


def test_it_is_read_and_costs_nothing() -> None:
    attack = parse_attack("quantise:bits=4,group=32+prefill:3")
    assert (attack.on_model, attack.tokens) == (QuantiseSettings(4, 32), 3)
    assert (attack.roles, attack.work(100)) == ((), Work())
    for wrong in ("quantise:bits=1", "quantise:bits=9", "quantise:group=0", "quantise:rank=2"):
        with pytest.raises(InputError):
            parse_attack(wrong)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
def test_a_cut_model_is_rounded_and_comes_back(architecture: str, tmp_path: Path) -> None:
    model = tiny.build(architecture)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    mask = tiny.cut(model)
    with removed(model, mask):
        cut = {name: tensor.clone() for name, tensor in prunable_tensors(model).items()}
        loaded = LoadedModel(model, tiny.tokenizer())
        with attacked(loaded, parse_attack("quantise:bits=4,group=8")):
            for name, tensor in prunable_tensors(model).items():
                assert torch.equal(tensor, rounded(cut[name], 4, 8))
                assert not torch.equal(tensor, cut[name])
                assert bool((tensor.flatten()[mask.tensors[name].index] == 0).all())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
