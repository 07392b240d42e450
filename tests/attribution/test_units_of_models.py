"""Units of real layouts: by hand, by what a cut of them does, and what their scores predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from oracles import mean_loss
from resect.attribution.engine import attribute_many
from resect.attribution.settings import Pass
from resect.attribution.units import find_units, random_like
from resect.edit.live import removed
from resect.model import prunable_tensors
from resect.model.prunable import find_prunable
from resect.weights.mask import Mask, MaskTensor
from resect.weights.scores import Scores
from resect.weights.select import select
from resect.weights.units import Family, Units, places_of

Unit = set[tuple[str, int]]


def rows(name: str, numbers: Sequence[int], width: int) -> Unit:
    return {(name, row * width + column) for row in numbers for column in range(width)}


def columns(name: str, numbers: Sequence[int], height: int, width: int) -> Unit:
    return {(name, row * width + column) for row in range(height) for column in numbers}


def by_hand(architecture: str, layer: int) -> dict[str, list[tuple[Unit, Unit]]]:
    """All weights of each unit of a layer and its ways out, written out for one layout each.

    The models have a width of 16, 24 neurons (GPT-2: 64) and 2 heads of 8; Llama's share k and v.
    """
    at = f"model.layers.{layer}"
    units: dict[str, list[tuple[Unit, Unit]]] = {"neuron": [], "head": [], "expert": []}
    if architecture == "llama":
        for i in range(24):
            out = columns(f"{at}.mlp.down_proj.weight", [i], 16, 24)
            into = rows(f"{at}.mlp.gate_proj.weight", [i], 16)
            units["neuron"].append((into | rows(f"{at}.mlp.up_proj.weight", [i], 16) | out, out))
        for head in range(2):
            mine = range(head * 8, head * 8 + 8)
            out = columns(f"{at}.self_attn.o_proj.weight", mine, 16, 16)
            units["head"].append((rows(f"{at}.self_attn.q_proj.weight", mine, 16) | out, out))
    if architecture == "gpt2":
        at = f"transformer.h.{layer}"
        for i in range(64):
            out = rows(f"{at}.mlp.c_proj.weight", [i], 16)
            units["neuron"].append((columns(f"{at}.mlp.c_fc.weight", [i], 16, 64) | out, out))
        for head in range(2):
            mine = range(head * 8, head * 8 + 8)
            thirds = [third * 16 + place for third in range(3) for place in mine]
            out = rows(f"{at}.attn.c_proj.weight", mine, 16)
            whole = columns(f"{at}.attn.c_attn.weight", thirds, 16, 48) | out
            units["head"].append((whole, out))
    if architecture == "gpt_oss":
        # gate and up in turns [4, 16, 48], down [4, 24, 16], with all experts in one tensor.
        names = [f"{at}.mlp.experts.{name}" for name in ("gate_up_proj", "down_proj")]
        for expert in range(4):
            up = {(names[0], expert * 768 + place) for place in range(768)}
            down = {(names[1], expert * 384 + place) for place in range(384)}
            units["expert"].append((up | down, down))
            for i in range(24):
                pair = columns(names[0], [2 * i, 2 * i + 1], 16, 48)
                into = {(name, expert * 768 + place) for name, place in pair}
                out = {(name, expert * 384 + place) for name, place in rows(names[1], [i], 16)}
                units["neuron"].append((into | out, out))
    if architecture == "mixtral":
        for expert in range(4):
            one = f"{at}.block_sparse_moe.experts.{expert}"
            gate, leads_out, up_name = (f"{one}.w{n}.weight" for n in (1, 2, 3))
            out = rows(leads_out, range(16), 24)
            into = rows(gate, range(24), 16) | rows(up_name, range(24), 16)
            units["expert"].append((into | out, out))
            for i in range(24):
                out = columns(leads_out, [i], 16, 24)
                into = rows(gate, [i], 16) | rows(up_name, [i], 16)
                units["neuron"].append((into | out, out))
    return units


def places(family: Family, unit: int, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return places_of([family], [torch.tensor([unit])], shapes)


def dense(scores: Scores) -> dict[str, Tensor]:
    flat = {}
    for name, tensor in scores.tensors.items():
        flat[name] = torch.empty(tensor.size)
        flat[name][tensor.index] = tensor.value
    return flat


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_oss", "mixtral"])
def test_masks_are_those_by_hand(architecture: str) -> None:
    """Units, their scores, and the mask of the best of them, bit for bit, by loops over weights."""
    model = tiny.build(architecture)
    examples = tiny.examples(2)
    scores = attribute_many(model, tiny.tokenizer(), examples, settings=Pass(dense=True))["signed"]
    weights, flat = prunable_tensors(model), dense(scores)
    layers = [by_hand(architecture, layer) for layer in range(2)]
    for unit in ("neuron", "head", "expert"):
        expected = [layer[unit] for layer in layers if layer[unit]]
        if not expected:
            continue
        # Experts are families of neurons of their own.
        mixed = unit == "neuron" and scores.units["expert"].families
        size = len(expected[0]) // (4 if mixed else 1)
        families = [one[i : i + size] for one in expected for i in range(0, len(one), size)]
        assert [family.count for family in scores.units[unit].families] == [size] * len(families)
        chosen: Unit = set()
        for family in families:
            values = [sum(float(flat[n][index]) for n, index in out) for _, out in family]
            ranked = sorted(range(size), key=lambda number: -values[number])
            room = int(0.5 * sum(len(whole) for whole, _ in family))
            for number in ranked:
                room -= len(family[number][0])
                if room >= 0 and values[number] > 0:
                    chosen |= family[number][0]
        mask = select(scores, None, q=0.5, p=0, unit=unit)
        assert chosen
        for name, tensor in mask.tensors.items():
            index = torch.tensor(sorted(i for n, i in chosen if n == name), dtype=torch.int64)
            assert torch.equal(tensor.index, index), (unit, name)
            assert torch.equal(tensor.value, weights[name].detach().reshape(-1)[index])


def mask_of(model: Any, places: Mapping[str, Tensor]) -> Mask:
    tensors = {}
    for name, weight in prunable_tensors(model).items():
        index = places.get(name, torch.empty(0, dtype=torch.int64))
        value = weight.detach().reshape(-1)[index].clone()
        rounds = torch.zeros(len(index), dtype=torch.uint8)
        tensors[name] = MaskTensor(tuple(weight.shape), index, value, rounds)
    return Mask(tensors, {})


def ways_out(family: Family, unit: int, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    pieces = tuple(piece for piece in family.pieces if piece.leads_out)
    return places(Family(family.name, pieces), unit, shapes)


# What stands in each: norms over all heads; fused gate and up; one expert of several tensors, and
# all in one; shared experts beside them.
LAYOUTS = {
    "llama": ("neuron", "head"),
    "gpt2": ("neuron", "head"),
    "olmo2": ("neuron", "head"),
    "phi3": ("neuron",),
    "mixtral": ("neuron", "head", "expert"),
    "gpt_oss": ("neuron", "head", "expert"),
    "granitemoe": ("neuron", "head", "expert"),
    "deepseek_v3": ("neuron", "expert"),
    "qwen2_moe": ("neuron", "head", "expert"),
}


@pytest.mark.parametrize("architecture", LAYOUTS)
def test_a_whole_unit_does_what_its_ways_out_do(architecture: str) -> None:
    """If anything else belonged to another unit as well, logits would tell."""
    model = tiny.build(architecture)
    units = find_units(model, find_prunable(model))
    shapes = {name: tuple(weight.shape) for name, weight in prunable_tensors(model).items()}
    assert tuple(unit for unit in units if units[unit].families) == LAYOUTS[architecture]
    ids = torch.randint(4, 60, (2, 10), generator=torch.Generator().manual_seed(0))

    def logits(cut: Mapping[str, Tensor]) -> Tensor:
        with removed(model, mask_of(model, cut)), torch.no_grad():
            return torch.Tensor(model(input_ids=ids).logits)

    intact = logits({})
    for unit in LAYOUTS[architecture]:
        moved = 0.0
        for family in units[unit].families[:: max(1, len(units[unit].families) - 1)]:
            number = family.count - 1
            whole = logits(places(family, number, shapes))
            out = logits(ways_out(family, number, shapes))
            assert torch.allclose(whole, out, rtol=0, atol=1e-5), (unit, family.name)
            moved = max(moved, float((whole - intact).abs().max()))
        assert moved > 0.05, unit


@pytest.mark.parametrize(
    ("architecture", "unit", "reason"),
    [
        ("llama", "expert", "a model without any expert"),
        ("bloom", "head", "query_key_value"),
        ("phi3", "head", "qkv_proj"),
        ("deepseek_v3", "head", "kv_a_proj_with_mqa"),
        ("llama4", "neuron", "does not say which axis"),
    ],
)
def test_what_is_not_told_apart_says_why(architecture: str, unit: str, reason: str) -> None:
    model = tiny.build(architecture)
    units = find_units(model, find_prunable(model))[unit]
    assert units.families == ()
    assert reason in units.refusal


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_score_of_a_unit_is_what_removing_it_does(architecture: str) -> None:
    """To first order in what units add: with half of that, a quarter of the error is left.

    A sum over all weights of a unit is another number, which no smaller contribution mends: it
    counts what passes through once for each matrix on the way.
    """
    examples = tiny.examples(2)
    errors = []
    for scale in (0.002, 0.001):
        model = tiny.build(architecture, dtype=torch.float64)
        weights = prunable_tensors(model)
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        units = find_units(model, find_prunable(model))
        families = [family for unit in ("neuron", "head") for family in units[unit].families]
        with torch.no_grad():
            for family in families:
                for piece in family.pieces:
                    if piece.leads_out:
                        weights[piece.tensor].mul_(scale)
        settings = Pass(dense=True)
        scores = attribute_many(model, tiny.tokenizer(), examples, settings=settings)["signed"]
        flat, intact = dense(scores), mean_loss(model, examples)
        predicted, measured, over_all = [], [], []
        for family in families:
            values = family.scores(lambda name: flat[name].view(shapes[name]))  # noqa: B023
            for number in (0, family.count - 1):
                cut = places(family, number, shapes)
                with removed(model, mask_of(model, cut)):
                    measured.append(mean_loss(model, examples) - intact)
                predicted.append(float(values[number]))
                sums = [flat[name][index].double().sum() for name, index in cut.items()]
                over_all.append(float(sum(sums)))
        apart = torch.tensor(predicted) - torch.tensor(measured)
        errors.append(float(apart.norm()))
        assert errors[-1] < 0.1 * float(torch.tensor(measured).norm())
        beside = float((torch.tensor(over_all) - torch.tensor(measured)).norm())
        assert beside > 0.5 * float(torch.tensor(measured).norm())
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.2)


def test_only_dense_scores_say_where_units_are() -> None:
    model, words = tiny.build("llama"), tiny.tokenizer()
    sparse = attribute_many(model, words, tiny.examples(2), settings=Pass(keep=0.1))["signed"]
    assert sparse.units == {}
    whole = attribute_many(model, words, tiny.examples(2), settings=Pass(keep=1.0))["signed"]
    assert set(whole.units) == {"neuron", "head", "expert"}
    assert isinstance(whole.units["expert"], Units)


def test_a_random_control_of_units_has_units() -> None:
    model = tiny.build("llama")
    scores = attribute_many(model, tiny.tokenizer(), tiny.examples(2), settings=Pass(dense=True))
    weights = prunable_tensors(model)
    for unit in ("weight", "neuron"):
        mask = select(scores["signed"], None, q=0.2, p=0, unit=unit)
        control = random_like(mask, model, weights, label="x", seed=0)
        for name, tensor in mask.tensors.items():
            index = control.tensors[name].index
            assert len(index) == len(tensor.index)
            assert not torch.isin(index, tensor.index).any()
            if unit == "neuron" and "gate" in name:
                assert len(set((index // 16).tolist())) * 16 == len(index) > 0
