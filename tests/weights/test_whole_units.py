"""Whole units by eye, by count and by slow loops, and the random units that a mask is held to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from resect.errors import InputError, MismatchError
from resect.weights.controls import random_units
from resect.weights.mask import Mask
from resect.weights.scores import ScoreMeta, Scores, TensorScores
from resect.weights.select import next_slice, select
from resect.weights.units import Family, Piece, Units

# Two MLPs of three neurons that read two numbers: `in` [3, 2] by rows, `out` [2, 3] by columns.
NEURONS = Units(
    tuple(
        Family(
            f"mlp{n}",
            (
                Piece(f"in{n}", 0, 3, 0, 0, 1, 1, leads_out=False),
                Piece(f"out{n}", 0, 3, 1, 0, 1, 1, leads_out=True),
            ),
        )
        for n in range(2)
    )
)
# Their scores are sums over columns of `out`: 5, 1, -2 and 4, 4, 3; what leads in does not count.
TARGET = {
    "in0": [[9.0, 9.0], [9.0, 9.0], [9.0, 9.0]],
    "out0": [[2.0, 1.0, 0.0], [3.0, 0.0, -2.0]],
    "in1": [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]],
    "out1": [[0.0, 2.0, 1.0], [4.0, 2.0, 2.0]],
    "alone": [[50.0, 50.0]],
}
# 0, 7, 1 and 2, 0, 1.
PRESERVE = {
    "in0": [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]],
    "out0": [[0.0, 7.0, 0.0], [0.0, 0.0, 1.0]],
    "in1": [[9.0, 9.0], [9.0, 9.0], [9.0, 9.0]],
    "out1": [[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]],
    "alone": [[0.0, 0.0]],
}


META: dict[str, Any] = {
    "method": "snip", "keep": 1.0, "model_id": "m", "model_fingerprint": "f",
    "tokenizer_fingerprint": "t", "data_hash": "d", "examples": 1, "tokens": 1, "format": "raw",
    "skip": 0, "category": "", "seed": 0,
}  # fmt: skip


def scores(values: dict[str, Any], reduction: str = "signed") -> Scores:
    tensors = {}
    for name, value in values.items():
        dense = torch.tensor(value)
        order = dense.reshape(-1).argsort(descending=True, stable=True)
        flat = dense.reshape(-1)[order]
        tensors[name] = TensorScores(tuple(dense.shape), order, flat, flat.abs())
    return Scores(tensors, ScoreMeta(reduction=reduction, **META))


def indices(mask: Mask) -> dict[str, list[int]]:
    return {name: tensor.index.tolist() for name, tensor in mask.tensors.items()}


def units_of(values: dict[str, Any], reduction: str = "signed") -> Scores:
    return replace(scores(values, reduction), units={"neuron": NEURONS})


def neurons(mask: Mask) -> set[tuple[int, int]]:
    """The neurons of a mask, which must have all of each: rows of `in`, columns of `out`."""
    places, found = indices(mask), set()
    for n in range(2):
        rows = {flat // 2 for flat in places[f"in{n}"]}
        assert places[f"in{n}"] == sorted(2 * row + side for row in rows for side in range(2))
        assert places[f"out{n}"] == sorted(3 * side + row for row in rows for side in range(2))
        found |= {(n, row) for row in rows}
    assert places["alone"] == []
    return found


@pytest.mark.parametrize(
    ("q", "p", "scope", "expected"),
    [
        (1.0, 0.0, "tensor", {(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)}),  # only scores above 0
        (1.0, 1.0, "tensor", set()),  # everything is protected
        (1 / 3, 0.0, "tensor", {(0, 0), (1, 0)}),  # one of each MLP; of equal ones the first
        (0.33, 0.0, "tensor", set()),  # 3.96 of the 4 weights that a neuron has
        (2 / 3, 1 / 3, "tensor", {(0, 0), (1, 1)}),  # protected: 1 of the first, 0 of the second
        (8 / 26, 0.0, "model", {(0, 0), (1, 0)}),  # of 26 weights, `alone` among them
        (0.3, 0.0, "model", {(0, 0)}),
        (12 / 26, 8 / 26, "model", {(0, 0), (1, 1)}),  # protected: 0, 1 and 1, 0
        (1.0, 0.0, "model", {(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)}),
    ],
)
def test_truth_table(q: float, p: float, scope: Any, expected: set[tuple[int, int]]) -> None:
    target, preserve = units_of(TARGET), units_of(PRESERVE, "mean_of_abs")
    mask = select(target, preserve, q=q, p=p, scope=scope, unit="neuron")
    assert neurons(mask) == expected
    assert (mask.meta["unit"], mask.meta["units"]) == ("neuron", len(expected))
    for name, tensor in mask.tensors.items():
        kept = torch.tensor(TARGET[name]).abs().reshape(-1)
        assert torch.equal(tensor.value, kept[tensor.index])


def test_next_units_in_line() -> None:
    target = units_of(TARGET)
    mask = next_slice(target, None, q=1 / 3, p=0, unit="neuron")
    assert neurons(mask) == {(0, 1), (1, 1)}
    assert "units" not in mask.meta


def slowly(piece: Piece, shape: tuple[int, ...], unit: int) -> Iterator[int]:
    """Flat indices of a unit's weights in a tensor, by asking every weight of it."""
    flat = torch.arange(torch.Size(shape).numel()).view(shape)
    for places in torch.cartesian_prod(*map(torch.arange, shape)).tolist():
        rest = places if piece.expert is None else places[1:]
        along = rest[piece.axis] - piece.offset - piece.step * (unit - piece.first)
        if (piece.expert in (None, places[0])) and 0 <= along < piece.width:
            yield int(flat[tuple(places)])


@pytest.mark.parametrize(
    ("piece", "shape"),
    [
        (Piece("w", 0, 3, 0, 0, 2, 2, True), (6, 4)),  # heads: two rows each
        (Piece("w", 0, 2, 1, 4, 2, 2, True), (3, 8)),  # the second third of a fused matrix
        (Piece("w", 0, 3, 1, 1, 1, 2, True), (2, 6)),  # gate and up in turns
        (Piece("w", 2, 2, 0, 0, 1, 1, True), (2, 3, 2)),  # whole experts, the third and the fourth
        (Piece("w", 0, 3, 1, 0, 1, 1, True, 1), (2, 2, 3)),  # neurons of the second expert
        (Piece("w", 0, 2, 0, 2, 1, 1, True, 0), (2, 4, 3)),
    ],
)
def test_places_and_sums_are_those_of_slow_loops(piece: Piece, shape: tuple[int, ...]) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    shapes = {"w": shape}
    sums = piece.sums(values)
    for number in range(piece.number):
        unit = piece.first + number
        expected = list(slowly(piece, shape, unit))
        places = piece.places(torch.tensor([unit]), shapes)
        assert sorted(places.tolist()) == expected
        assert len(expected) == piece.size(shapes) > 0
        assert float(sums[number]) == pytest.approx(sum(values.view(-1)[expected].tolist()))
    assert piece.places(torch.tensor([99]), shapes).numel() == 0


def test_scores_keep_their_units_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "a.scores.safetensors"
    units_of(TARGET).save(path)
    again = Scores.load(path)
    assert again.units == {"neuron": NEURONS}
    mask = select(again, None, q=1 / 3, p=0, unit="neuron")
    assert neurons(mask) == {(0, 0), (1, 0)}
    scores(TARGET).save(path)
    assert Scores.load(path).units == {}


@pytest.mark.parametrize(
    "broken",
    [
        {"neuron": {"families": [["mlp", [["gone", 0, 3, 0, 0, 1, 1, True]]]], "refusal": ""}},
        {"neuron": {"families": [["mlp", [["in0", 0, 4, 0, 0, 1, 1, True]]]], "refusal": ""}},
        {"neuron": {"families": [["mlp", [["in0", 0, 3, 0, -1, 1, 1, True]]]], "refusal": ""}},
        {"neuron": {"families": 3, "refusal": ""}},
        {"neuron": {"families": [["mlp", [["in0"]]]], "refusal": ""}},
        [1],
    ],
)
def test_a_file_whose_units_do_not_fit_is_refused(tmp_path: Path, broken: object) -> None:
    path = tmp_path / "a.scores.safetensors"
    units_of(TARGET).save(path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["resect"])
        blobs = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(blobs, path, {"resect": json.dumps(header | {"units": broken})})
    with pytest.raises(InputError, match="not a whole score file"):
        Scores.load(path)


def test_what_has_no_such_units_is_refused() -> None:
    target = units_of(TARGET)
    with pytest.raises(InputError, match="unit") as unknown:
        select(target, None, q=0.5, p=0, unit="layer")  # type: ignore[arg-type]
    assert "expert, head, neuron, weight" in str(unknown.value)
    with pytest.raises(InputError, match="score again with --dense"):
        select(scores(TARGET), None, q=0.5, p=0, unit="neuron")
    few = scores(TARGET)
    few = replace(few, meta=replace(few.meta, keep=0.1))
    with pytest.raises(InputError, match="score again with --dense"):
        select(few, None, q=0.5, p=0, unit="neuron")
    with pytest.raises(InputError, match="score again with --dense"):
        select(target, scores(PRESERVE, "mean_of_abs"), q=0.5, p=0.5, unit="neuron")
    none = replace(target, units={"head": Units(refusal="no head"), "neuron": NEURONS})
    with pytest.raises(InputError, match="no head can be told apart") as refused:
        select(none, None, q=0.5, p=0, unit="head")
    assert "weight, neuron" in str(refused.value)
    assert "--unit neuron" in str(refused.value)
    fewer = {"neuron": Units(NEURONS.families[:1])}
    apart = replace(units_of(PRESERVE, "mean_of_abs"), units=fewer)
    with pytest.raises(MismatchError, match="in different ways"):
        select(target, apart, q=0.5, p=0.5, unit="neuron")
    # A file that says dense and lacks a weight.
    first = target.tensors["out0"]
    short = replace(first, index=first.index[:-1], value=first.value[:-1], weight=first.weight[:-1])
    with pytest.raises(InputError, match="some have no score"):
        select(
            replace(target, tensors={**target.tensors, "out0": short}),
            None, q=0.5, p=0, unit="neuron",
        )  # fmt: skip


def test_random_units_are_as_many_of_each_family_and_others() -> None:
    target = units_of(TARGET)
    mask = select(target, None, q=1 / 3, p=0, unit="neuron")
    weights = {name: torch.tensor(values).abs() for name, values in TARGET.items()}
    drawn: set[tuple[int, int]] = set()
    for seed in range(8):
        control = random_units(mask, weights, NEURONS.families, label="x", seed=seed)
        chosen = neurons(control)
        assert len(chosen) == 2
        assert {n for n, _ in chosen} == {0, 1}
        assert not chosen & neurons(mask)
        drawn |= chosen
    assert drawn == {(0, 1), (0, 2), (1, 1), (1, 2)}
    assert control.meta["control"] == "random"
    again = random_units(mask, weights, NEURONS.families, label="x", seed=7)
    assert indices(again) == indices(control)
    single = select(target, None, q=1 / 6, p=0)
    with pytest.raises(MismatchError, match="parts of some"):
        random_units(single, weights, NEURONS.families)
