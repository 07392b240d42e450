"""Masks are sets: the laws of sets hold, chance is chance, and nothing forgets its origin."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from typer.testing import CliRunner

from resect.cli import app
from resect.errors import InputError, MismatchError, ResectError
from resect.weights.algebra import against_chance, chance_overlap, combine, overlaps
from resect.weights.mask import Mask, MaskTensor

SHAPES = {"a.weight": (3, 4), "b.weight": (2, 2), "c.weight": (5, 1)}
WEIGHTS = {
    name: torch.randn(shape, generator=torch.Generator().manual_seed(seed)).reshape(-1)
    for seed, (name, shape) in enumerate(SHAPES.items())
}
ALL = frozenset((name, index) for name, weight in WEIGHTS.items() for index in range(len(weight)))

Places = frozenset[tuple[str, int]]


def mask_of(places: Places, name: str = "m", fingerprint: str = "f0") -> Mask:
    tensors = {}
    for tensor, shape in SHAPES.items():
        flat = sorted(index for name_, index in places if name_ == tensor)
        index = torch.tensor(flat, dtype=torch.int64)
        tensors[tensor] = MaskTensor(
            shape, index, WEIGHTS[tensor][index], torch.zeros(len(index), dtype=torch.uint8)
        )
    return Mask(tensors, {"model_fingerprint": fingerprint, "model_id": "here", "own": name})


def places_of(mask: Mask) -> Places:
    return frozenset((name, int(index)) for name, t in mask.tensors.items() for index in t.index)


def check(mask: Mask) -> Mask:
    """Every mask is sorted, without repeats, and holds the model's values."""
    for name, tensor in mask.tensors.items():
        assert tensor.index.tolist() == sorted(set(tensor.index.tolist()))
        assert torch.equal(tensor.value, WEIGHTS[name][tensor.index])
        assert tensor.round.shape == tensor.index.shape
    return mask


places = st.frozensets(st.sampled_from(sorted(ALL)))


@given(places, places, places)
def test_every_operation_is_that_of_sets(set_x: Places, set_y: Places, set_z: Places) -> None:
    masks = {"x": mask_of(set_x), "y": mask_of(set_y), "z": mask_of(set_z)}
    assert places_of(check(combine("union", masks))) == set_x | set_y | set_z
    assert places_of(check(combine("intersect", masks))) == set_x & set_y & set_z
    assert places_of(check(combine("subtract", masks))) == set_x - set_y - set_z


@given(places, places, places)
def test_the_laws_of_sets(set_a: Places, set_b: Places, set_c: Places) -> None:
    a, b, c = mask_of(set_a), mask_of(set_b), mask_of(set_c)
    for pair in (
        (a.union(b), b.union(a)),
        (a.intersect(b), b.intersect(a)),
        (a.union(b).union(c), a.union(b.union(c))),
        (a.intersect(b).intersect(c), a.intersect(b.intersect(c))),
        (a.intersect(b.union(c)), a.intersect(b).union(a.intersect(c))),
        (a.union(b.intersect(c)), a.union(b).intersect(a.union(c))),
        (a.subtract(b.union(c)), a.subtract(b).intersect(a.subtract(c))),
        (a.subtract(b.intersect(c)), a.subtract(b).union(a.subtract(c))),
        (a.union(a), a),
        (a.intersect(a), a),
        (a.union(a.intersect(b)), a),
        (a.subtract(b).union(a.intersect(b)), a),
    ):
        assert check(pair[0]).hash == check(pair[1]).hash
    assert a.subtract(a).count == 0
    assert a.union(b).count == a.count + b.count - a.intersect(b).count
    assert (a.hash == b.hash) == (set_a == set_b)


@given(places, places)
def test_overlap_against_chance(set_x: Places, set_y: Places) -> None:
    overlap = overlaps({"x": mask_of(set_x), "y": mask_of(set_y)})[0]
    assert overlap.shared == len(set_x & set_y)
    union = set_x | set_y
    assert overlap.jaccard == pytest.approx(len(set_x & set_y) / len(union) if union else 0)
    expected = sum(
        sum(t == name for t, _ in set_x) * sum(t == name for t, _ in set_y) / len(weight)
        for name, weight in WEIGHTS.items()
    )
    assert overlap.expected == pytest.approx(expected)
    assert 0 <= overlap.p_value <= 1 + 1e-9


def test_expected_overlap_is_the_mean_over_random_sets() -> None:
    draw = torch.Generator().manual_seed(1)

    def random(counts: dict[str, int]) -> Places:
        return frozenset(
            (name, int(index))
            for name, count in counts.items()
            for index in torch.randperm(len(WEIGHTS[name]), generator=draw)[:count]
        )

    counts = {"a.weight": 6, "b.weight": 1, "c.weight": 3}
    fixed = random(counts)
    shared = [len(fixed & random(counts)) for _ in range(2000)]
    overlap = overlaps({"x": mask_of(fixed), "y": mask_of(random(counts))})[0]
    # Standard error of the mean: at most sqrt(21) / 2 / sqrt(2000) = 0.05.
    assert sum(shared) / len(shared) == pytest.approx(overlap.expected, abs=0.15)


def exact_p_value(counts: list[tuple[int, int, int]], shared: int) -> float:
    """Return P(X ≥ shared) by convolution, from (n, k₁, k₂) of every tensor."""
    total = np.ones(1)
    for size, mine, theirs in counts:
        number = scipy_stats.hypergeom(size, mine, theirs)
        total = np.convolve(total, number.pmf(np.arange(min(mine, theirs) + 1)))
    return float(total[shared:].sum())


@given(places, places)
def test_the_p_value_bounds_the_exact_one(set_x: Places, set_y: Places) -> None:
    """From Λ + 1 on, where the theorem holds."""
    chance = against_chance(mask_of(set_x), mask_of(set_y))
    counts = [
        (len(weight), sum(t == name for t, _ in set_x), sum(t == name for t, _ in set_y))
        for name, weight in WEIGHTS.items()
    ]
    if chance.shared >= chance.expected + 1:
        assert chance.p_value >= exact_p_value(counts, chance.shared) - 1e-12


def test_few_shared_weights_have_nearly_the_exact_p_value() -> None:
    # It is too large by about X²/2·(1/k₁ + 1/k₂), here 4 %.
    size, count, shared = 1_000_000, 1000, 6
    empty = torch.zeros(count, dtype=torch.uint8)
    masks = []
    for start in (0, count - shared):
        index = torch.arange(start, start + count)
        masks.append(Mask({"t": MaskTensor((size,), index, torch.ones(count), empty)}, {}))
    chance = against_chance(*masks)
    assert (chance.shared, chance.expected, chance.enrichment) == (6, 1.0, 6.0)
    assert chance.p_value == pytest.approx(exact_p_value([(size, count, count)], shared), rel=0.1)
    # `mask overlap` and the studies say the same of the same masks.
    (row,), study = overlaps(dict(zip("ab", masks, strict=True))), chance_overlap(*masks)
    assert (row.p_value, row.enrichment) == (study["p_value"], study["enrichment"])
    assert row.jaccard == study["jaccard"] == chance.jaccard


def test_the_origin_of_all_parents_is_kept(tmp_path: Path) -> None:
    some = sorted(ALL)
    a, b = mask_of(frozenset(some[:6]), "first"), mask_of(frozenset(some[3:9]), "second")
    inner = combine("union", {"a": a, "b": b})
    outer = combine("subtract", {"u": inner, "c": mask_of(frozenset(some[:1]), "third")})
    outer.save(tmp_path / "o.mask.safetensors")
    meta = Mask.load(tmp_path / "o.mask.safetensors").meta
    assert meta["operation"] == "subtract"
    assert meta["model_fingerprint"] == "f0"
    assert [parent["name"] for parent in meta["parents"]] == ["u", "c"]
    assert meta["parents"][0]["hash"] == inner.hash
    grand = meta["parents"][0]["meta"]["parents"]
    assert [parent["meta"]["own"] for parent in grand] == ["first", "second"]
    assert [parent["count"] for parent in grand] == [6, 6]


def test_masks_of_different_models_are_refused() -> None:
    a = mask_of(frozenset([("a.weight", 1), ("a.weight", 5)]))
    stranger = mask_of(frozenset([("a.weight", 2)]), fingerprint="f1")
    with pytest.raises(MismatchError, match="fingerprints f0 and f1"):
        combine("union", {"a": a, "b": stranger})
    tensors = dict(mask_of(frozenset([("a.weight", 5)])).tensors)
    tensors["a.weight"] = MaskTensor(
        (3, 4), torch.tensor([5]), torch.tensor([9.0]), torch.zeros(1, dtype=torch.uint8)
    )
    with pytest.raises(MismatchError, match="another value in"):
        a.intersect(Mask(tensors, {}))
    reshaped = dict(a.tensors)
    reshaped["b.weight"] = MaskTensor(
        (4, 1), torch.tensor([], dtype=torch.int64), torch.tensor([]), torch.tensor([])
    )
    with pytest.raises(MismatchError, match="weight as"):
        a.union(Mask(reshaped, {}))
    with pytest.raises(MismatchError, match="in one"):
        a.subtract(Mask({name: t for name, t in a.tensors.items() if name != "c.weight"}, {}))
    # The third mask is of another model, and nothing of it would remain in the intersection.
    with pytest.raises(MismatchError):
        combine("subtract", {"a": a, "b": mask_of(ALL), "c": stranger})


def test_one_mask_or_an_unknown_operation_is_refused() -> None:
    with pytest.raises(InputError, match="two masks or more"):
        combine("union", {"a": mask_of(ALL)})
    with pytest.raises(ResectError, match="intersect, subtract, union"):
        combine("xor", {"a": mask_of(ALL), "b": mask_of(ALL)})  # type: ignore[arg-type]


def test_the_command_line_combines_files(tmp_path: Path) -> None:
    some = sorted(ALL)
    files = [str(tmp_path / f"{name}.mask.safetensors") for name in "ab"]
    mask_of(frozenset(some[:6])).save(files[0])
    mask_of(frozenset(some[3:9])).save(files[1])
    out = tmp_path / "out.mask.safetensors"
    for command, count in (("union", 9), ("intersect", 3), ("subtract", 3)):
        done = CliRunner().invoke(app, ["mask", command, *files, "-o", str(out)])
        assert done.exit_code == 0, done.output
        assert Mask.load(out).count == count
        assert [parent["name"] for parent in Mask.load(out).meta["parents"]] == files
    shown = CliRunner().invoke(app, ["mask", "overlap", *files]).output
    assert "3 shared, Jaccard 0.3333" in shown
    twice = CliRunner().invoke(app, ["mask", "union", files[0], files[0], "-o", str(out)])
    assert isinstance(twice.exception, InputError)
