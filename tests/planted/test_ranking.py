"""What the benchmark cuts is what the definition of a cut gives, by sorting python tuples."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch

import oracles
from resect.attribution.engine import attribute
from resect.attribution.rounds import contrasted
from resect.model import prunable_tensors
from resect.organism.recipe import Recipe
from resect.planted.plant import BenignRecipe, PlantedRecipe, plant
from resect.planted.ranking import Subject, cut, rank, with_rounds
from resect.planted.trial import subject_of
from resect.planted.variants import Variant
from resect.weights.mask import Mask
from resect.weights.scores import Scores

SMALL = PlantedRecipe(
    share=0.05, steps=3, batch=6, benign=BenignRecipe(Recipe.tiny(), steps=3, batch=6)
)
COUNTS = (1, 14, 100, 870)
ONCE = [
    Variant(scope="tensor"),
    Variant(scope="tensor", p=0.01),
    Variant(scope="model"),
    Variant(scope="model", p=0.01),
    Variant(contrast="style", p=0.01),
    Variant(contrast="style", scope="model", p=0.01),
    Variant(method="magnitude", p=0.01),
]
IN_ROUNDS = [replace(variant, rounds=4) for variant in ONCE if variant.method == "snip"]
UNITS = [
    Variant(unit="neuron"),
    Variant(unit="neuron", p=0.1),
    Variant(unit="neuron", scope="model", p=0.1),
    Variant(unit="head", scope="model"),
]
Weights = set[tuple[str, int]]


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    planted = plant(SMALL, root=tmp_path_factory.mktemp("plants"))
    return subject_of(planted, SMALL)


def dense(scores: Scores) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, tensor in scores.tensors.items():
        tensors[name] = torch.full((tensor.size,), float("-inf"))
        tensors[name][tensor.index] = tensor.value
    return tensors


def as_pairs(places: dict[str, list[int]]) -> Weights:
    return {(name, index) for name, row in places.items() for index in row}


def pairs_of(mask: Mask) -> Weights:
    return as_pairs({name: tensor.index.tolist() for name, tensor in mask.tensors.items()})


def slow_cut(subject: Subject, variant: Variant, q: float) -> Weights:
    """The headers of `weights/select.py` and `attribution/rounds.py`, word by word."""
    protected: Weights = set()
    importance = subject.protecting(variant)
    if importance is not None:
        values = dense(importance)
        protected = as_pairs(oracles.select(values, values, variant.p, 0, variant.scope))
    aimed: Weights = set()
    for turn in range(variant.rounds):
        values = dense(scores_without(subject, variant, aimed - protected))
        ranked = sorted(
            (-value, number, index, name)
            for number, (name, row) in enumerate(values.items())
            for index, value in enumerate(row.tolist())
            if value > 0 and (name, index) not in aimed
        )
        for name in values if variant.scope == "tensor" else [""]:
            free = [(n, index) for _, _, index, n in ranked if n == name or not name]
            size = sum(row.numel() for n, row in values.items() if n == name or not name)
            taken = sum(n == name or not name for n, _ in aimed)
            aimed |= set(free[: int(q * size) * (turn + 1) // variant.rounds - taken])
    return aimed - protected


def scores_without(subject: Subject, variant: Variant, removed: Weights) -> Scores:
    """Scores of the model in which some weights are zero."""
    weights = prunable_tensors(subject.loaded.model)
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    with torch.no_grad():
        for name, index in removed:
            weights[name].view(-1)[index] = 0
    examples = contrasted(subject.target(variant), subject.contrast(variant))
    settings = replace(subject.settings(variant), dense=True)
    scores = attribute(*subject.loaded, examples, settings)
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(before[name])
    return scores


@pytest.mark.parametrize("variant", [*ONCE, *IN_ROUNDS], ids=lambda variant: variant.name)
def test_a_cut_is_what_its_definition_says(subject: Subject, variant: Variant) -> None:
    ranking = rank(subject, variant)
    for count in COUNTS[-2:] if variant.rounds > 1 else COUNTS:
        q = ranking.fraction(count)
        mask = cut(subject, variant, ranking, count)
        assert pairs_of(mask) == slow_cut(subject, variant, q)
        assert mask.count > 0


@pytest.mark.parametrize("variant", ONCE, ids=lambda variant: variant.name)
def test_a_cut_is_the_largest_of_no_more_weights(subject: Subject, variant: Variant) -> None:
    ranking = rank(subject, variant)
    for count in COUNTS[2:]:
        mask = cut(subject, variant, ranking, count)
        assert mask.count <= count < len(slow_cut(subject, variant, ranking.entry[count] + 1e-9))
    smallest = cut(subject, variant, ranking, 1)
    assert not slow_cut(subject, variant, ranking.entry[0] - 1e-9)
    assert smallest.count >= 1
    if variant.scope == "model":
        assert {cut(subject, variant, ranking, count).count for count in COUNTS} == set(COUNTS)


@pytest.mark.parametrize("variant", ONCE, ids=lambda variant: variant.name)
def test_the_order_is_that_in_which_cuts_grow(subject: Subject, variant: Variant) -> None:
    ranking = rank(subject, variant)
    assert sorted(ranking.order) == list(range(subject.starts[-1]))
    for count in (*COUNTS, 2000):
        mask = cut(subject, variant, ranking, count)
        assert set(ranking.order[: mask.count]) == set(subject.numbers(mask))
    never = set(ranking.order[len(ranking.entry) :])
    assert never == set(subject.protected(variant))
    assert bool(never) == bool(variant.p)


def test_numbers_and_masks_say_the_same(subject: Subject) -> None:
    numbers = rank(subject, Variant(method="random")).order[:100]
    mask = subject.mask(numbers)
    assert set(subject.numbers(mask)) == set(numbers)
    weights = prunable_tensors(subject.loaded.model)
    for name, tensor in mask.tensors.items():
        assert torch.equal(tensor.value, weights[name].reshape(-1)[tensor.index])


def test_smaller_cuts_come_first() -> None:
    order = torch.tensor([3, 1, 4, 0, 2]).numpy()
    cuts = [torch.tensor(numbers).numpy() for numbers in ([2], [4, 2], [0, 1, 4])]
    assert with_rounds(order, cuts).tolist() == [2, 4, 1, 0, 3]


def slow_units(subject: Subject, unit: str) -> list[list[tuple[Weights, Weights]]]:
    """All weights of each unit and its ways out, by family, for the organism's Llama."""
    families, config = [], cast("Any", subject.loaded.model.config)
    out = "mlp.down_proj.weight" if unit == "neuron" else "self_attn.o_proj.weight"
    into = ("mlp.gate_proj", "mlp.up_proj") if unit == "neuron" else ("self_attn.q_proj",)
    for name in (name for name in subject.shapes if name.endswith(out)):
        block, (high, wide) = name.removesuffix(out), subject.shapes[name]
        width = 1 if unit == "neuron" else config.head_dim
        family = []
        for start in range(0, wide, width):
            mine = range(start, start + width)
            ways_out = {(name, row * wide + place) for row in range(high) for place in mine}
            readers = [f"{block}{reader}.weight" for reader in into]
            if unit == "head":
                others = [f"{block}self_attn.{kv}_proj.weight" for kv in "kv"]
                readers += [other for other in others if subject.shapes[other][0] == wide]
            whole = {(n, r * high + c) for n in readers for r in mine for c in range(high)}
            family.append((whole | ways_out, ways_out))
        families.append(family)
    return families


def slow_cut_of_units(subject: Subject, variant: Variant, q: float) -> Weights:
    """The header of `weights/whole.py`, word by word."""
    families = slow_units(subject, variant.unit)
    if variant.scope == "model":
        families = [[unit for family in families for unit in family]]

    def top(scores: Scores, fraction: float, above: float) -> list[int]:
        flat, numbers, shift = dense(scores), [], 0
        for family in families:
            values = [sum(float(flat[n][i]) for n, i in ways_out) for _, ways_out in family]
            whole = sum(len(weights) for weights, _ in family)
            room = int(fraction * (scores.total if variant.scope == "model" else whole))
            for number in sorted(range(len(family)), key=lambda n: (-values[n], n)):
                room -= len(family[number][0])
                if room >= 0 and values[number] > above:
                    numbers.append(shift + number)
            shift += len(family)
        return numbers

    aimed = top(subject.scores(variant), q, 0.0)
    importance = subject.protecting(variant)
    safe = [] if importance is None else top(importance, variant.p, -1.0)
    every = [weights for family in families for weights, _ in family]
    return {place for number in set(aimed) - set(safe) for place in every[number]}


@pytest.mark.parametrize("variant", UNITS, ids=lambda variant: variant.name)
def test_a_cut_of_units_is_what_its_definition_says(subject: Subject, variant: Variant) -> None:
    ranking = rank(subject, variant)
    assert sorted(ranking.order.tolist()) == list(range(int(subject.starts[-1])))
    for count in (1, 870, 2000):
        mask = cut(subject, variant, ranking, count)
        assert pairs_of(mask) == slow_cut_of_units(subject, variant, ranking.fraction(count))
        assert 0 < mask.count <= max(count, cut(subject, variant, ranking, 1).count)
        # Membership and cuts are of one order, until scores fall below 0.
        assert set(ranking.order[: mask.count].tolist()) == set(subject.numbers(mask).tolist())
