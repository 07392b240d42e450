"""What stands in the place of cut weights, and random sets that do as much damage as a mask."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch

import tiny
from masked import make, same, state
from resect.edit.live import removed, replaced
from resect.errors import InputError, MismatchError
from resect.model import prunable_tensors
from resect.studies.cells import Cut
from resect.weights.controls import MOST_MEASURED, damage_matched
from resect.weights.fill import Filling, fill
from resect.weights.mask import Mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("filling", [0.0, 0.25, "mean", "resampled"])
def test_values_stand_in_the_place_of_weights_and_every_bit_comes_back(
    filling: Filling, dtype: torch.dtype
) -> None:
    model = tiny.build("gpt2", dtype=dtype)
    mask, before = make(model), state(model)
    original = {name: tensor.clone() for name, tensor in prunable_tensors(model).items()}
    filled = fill(mask, prunable_tensors(model), filling, label="a", seed=1)
    with pytest.raises(ZeroDivisionError), replaced(model, filled):
        assert not same(model, before)
        for name, tensor in prunable_tensors(model).items():
            # One weight after the other.
            flat, old = tensor.reshape(-1).tolist(), original[name].reshape(-1).tolist()
            cut = set(mask.tensors[name].index.tolist())
            mean = sum(old) / len(old)
            for place, value in enumerate(flat):
                if place not in cut:
                    assert value == old[place]
                elif filling == "mean":
                    assert value == pytest.approx(mean, rel=1e-2, abs=1e-4)
                elif filling == "resampled":
                    assert value in set(old)
                else:
                    assert value == pytest.approx(old[place] * float(filling), rel=1e-6)
        raise ZeroDivisionError
    assert same(model, before)
    again = fill(mask, prunable_tensors(model), filling, label="a", seed=1)
    assert all(torch.equal(filled.values[name], again.values[name]) for name in filled.values)


def test_resampled_values_depend_on_the_seed_and_zero_is_the_cut_itself() -> None:
    model = tiny.build("llama")
    mask, weights = make(model), prunable_tensors(model)
    draws = [fill(mask, weights, "resampled", seed=seed).values for seed in (0, 1)]
    assert any(not torch.equal(draws[0][name], draws[1][name]) for name in draws[0])
    with removed(model, mask):
        cut = state(model)
    with replaced(model, fill(mask, weights, 0.0)):
        assert same(model, cut)
    with pytest.raises(MismatchError):
        fill(mask, prunable_tensors(tiny.build("llama", seed=1)), "mean")


@pytest.mark.parametrize("text", ["scale:", "scale:much", "scale:nan", "half", "mean:2"])
def test_unknown_values_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="in the place of cut weights"):
        Cut("harm", "target", 0.1, instead=text)


def test_scale_is_read_as_a_factor() -> None:
    assert Cut("harm", "target", 0.1, instead="scale:0.25").filling == 0.25
    assert Cut("harm", "target", 0.1).filling == 0


def grown(damage: Callable[[Mask], float], most_times: float = 50) -> Mask:
    model = tiny.build("llama")
    mask = make(model, 0.005)
    calls = []

    def measure(candidate: Mask) -> float:
        assert candidate is mask or candidate.intersect(mask).count == 0
        calls.append(candidate.count)
        return damage(candidate) if candidate is not mask else 1.0

    control = damage_matched(mask, prunable_tensors(model), measure, seed=3, most_times=most_times)
    assert len(calls) == control.meta["damage"]["measured"] <= MOST_MEASURED
    return control


def test_a_random_set_grows_until_it_does_the_damage() -> None:
    count = make(tiny.build("llama"), 0.005).count
    control = grown(lambda mask: mask.count / (7 * count))
    numbers = control.meta["damage"]
    assert not numbers["capped"]
    assert 1 <= numbers["reached"] < 1.05
    assert numbers["times"] == pytest.approx(7, rel=0.05)
    # The same proportions as the mask, in every tensor.
    for name, entry in make(tiny.build("llama"), 0.005).tensors.items():
        assert abs(control.tensors[name].index.numel() - numbers["times"] * len(entry.index)) < 1


def test_a_random_set_of_more_damage_shrinks() -> None:
    count = make(tiny.build("llama"), 0.005).count
    numbers = grown(lambda mask: 3 * mask.count / count).meta["damage"]
    assert 0.2 < numbers["times"] < 0.5
    assert 1 <= numbers["reached"] < 1.5  # the mask has few weights


def test_the_cap_is_said_and_what_is_no_number_is_more_than_any_damage() -> None:
    numbers = grown(lambda mask: 0.0, most_times=6).meta["damage"]
    assert (numbers["capped"], numbers["times"], numbers["reached"]) == (True, 6, 0)
    numbers = grown(lambda mask: math.nan).meta["damage"]
    assert not numbers["capped"]
    assert numbers["reached"] is None


def test_sizes_are_nested() -> None:
    sizes: list[Mask] = []

    def damage(mask: Mask) -> float:
        sizes.append(mask)
        return mask.count / 500

    grown(damage)
    sizes.sort(key=lambda mask: mask.count)
    assert len({mask.count for mask in sizes}) > 3
    for small, large in itertools.pairwise(sizes):
        assert small.subtract(large).count == 0
