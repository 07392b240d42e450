"""Masks keep what they need to undo themselves, and are refused where they do not belong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import resect
import tiny
from masked import make, same, state
from resect.edit.live import removed
from resect.errors import InputError, MismatchError
from resect.model import prunable_tensors
from resect.weights.controls import random_mask
from resect.weights.mask import Mask, places_in

ARCHITECTURES = ("llama", "qwen3", "gpt2")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("alpha", [0.0, 0.5, -1.0])
def test_edit_restores_every_bit(architecture: str, dtype: torch.dtype, alpha: float) -> None:
    model = tiny.build(architecture, dtype=dtype)
    mask, before = make(model), state(model)
    with removed(model, mask, alpha=alpha):
        assert not same(model, before)
        for name, entry in mask.tensors.items():
            flat = dict(model.named_parameters())[name].reshape(-1)
            assert torch.equal(flat[entry.index], entry.value * alpha)
            assert int((flat != before[name].reshape(-1)).sum()) <= entry.index.numel()
    assert same(model, before)


@pytest.mark.parametrize("shape", [(7,), (5, 9), (3, 4, 5)])
def test_places_are_those_that_torch_finds(shape: tuple[int, ...]) -> None:
    tensor = torch.zeros(shape)
    index = torch.arange(tensor.numel()).flip(0)
    places, expected = places_in(tensor, index), torch.unravel_index(index, shape)
    assert all(torch.equal(*axes) for axes in zip(places, expected, strict=True))
    assert [axis.numel() for axis in places_in(tensor, index[:0])] == [0] * len(shape)


def test_edit_restores_after_an_exception_and_nested() -> None:
    model = tiny.build("llama")
    mask, before = make(model), state(model)
    second_mask = random_mask(mask, prunable_tensors(model))
    with pytest.raises(ZeroDivisionError), removed(model, mask):
        raise ZeroDivisionError
    assert same(model, before)
    with removed(model, mask):
        inside = state(model)
        with removed(model, second_mask):
            assert not same(model, inside)
        assert same(model, inside)
    assert same(model, before)


def test_a_cut_cannot_be_made_twice() -> None:
    model = tiny.build("llama")
    mask = make(model)
    with removed(model, mask):
        inside = state(model)
        with pytest.raises(MismatchError, match="another value"), removed(model, mask):
            pass
        assert same(model, inside)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_roundtrip(architecture: str, dtype: torch.dtype, tmp_path: Path) -> None:
    mask = make(tiny.build(architecture, dtype=dtype))
    mask.save(tmp_path / "a.mask.safetensors")
    loaded = Mask.load(tmp_path / "a.mask.safetensors")
    assert loaded.meta == mask.meta
    assert list(loaded.tensors) == list(mask.tensors)
    assert loaded.count == mask.count > 0
    for name, entry in mask.tensors.items():
        read = loaded.tensors[name]
        assert read.shape == entry.shape
        assert torch.equal(read.index, entry.index)
        assert torch.equal(read.value, entry.value)
        assert read.value.dtype == dtype


def test_wrong_models_are_refused_with_the_first_mismatch(tmp_path: Path) -> None:
    model = tiny.build("llama")
    mask, before = make(model), state(model)
    for stranger, message in (
        (tiny.build("llama", seed=1), "has another value"),
        (tiny.build("gpt2"), "the model has no tensor model.layers.0"),
        (tiny.build("qwen3", seed=2), "another value"),
    ):
        with pytest.raises(MismatchError, match=message), removed(stranger, mask):
            pass
    name, entry = next((n, t) for n, t in mask.tensors.items() if t.index.numel())
    with torch.no_grad():
        dict(model.named_parameters())[name].view(-1)[entry.index[0]] += 1e-3
    wrong = f"flat index {int(entry.index[0])}"
    with pytest.raises(MismatchError, match=wrong), removed(model, mask):
        pass
    with torch.no_grad():
        dict(model.named_parameters())[name].view(-1)[entry.index[0]] = entry.value[0]
    assert same(model, before)


def test_broken_mask_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mask.safetensors"
    with pytest.raises(InputError, match="no such file"):
        Mask.load(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="not a readable artefact"):
        Mask.load(path)
    make(tiny.build("llama")).save(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="not a readable artefact"):
        Mask.load(path)
    tiny.build("llama").save_pretrained(tmp_path / "m")
    with pytest.raises(InputError, match="another program"):
        Mask.load(tmp_path / "m" / "model.safetensors")


def test_algebra() -> None:
    model = tiny.build("llama")
    small, large = make(model, 0.02), make(model, 0.05)
    second_mask = random_mask(large, prunable_tensors(model))
    assert small.intersect(large).count == small.count
    assert large.subtract(small).count == large.count - small.count
    assert small.union(large).count == large.count
    assert large.union(second_mask).count == 2 * large.count
    assert small.overlap(large) == pytest.approx(small.count / large.count)
    assert large.overlap(second_mask) == 0
    joined = large.union(second_mask)
    before = state(model)
    with removed(model, joined):
        assert not same(model, before)
    assert same(model, before)
    with pytest.raises(MismatchError, match="different models"):
        large.union(make(tiny.build("gpt2")))


def test_a_live_model_is_cut_in_one_line_and_mended_after_it_was_moved_and_wrapped() -> None:
    from peft import LoraConfig, get_peft_model

    model = tiny.build("qwen3_moe")
    mask, before = make(model), state(model)
    cut = resect.apply(model, mask)
    assert not same(model, before)
    with pytest.raises(MismatchError, match="another value"):
        resect.apply(model, mask)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # what model.to(another device) does
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    cut.revert()
    assert same(wrapped.unload(), before)
    assert not cut.active
    cut.revert()
    with resect.apply(model, mask, alpha=0.5) as halved:
        assert halved is model
        assert not same(model, before)
        model.double()
    assert all(torch.equal(p, before[name].double()) for name, p in model.named_parameters())


def test_a_cut_that_fails_half_way_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.build("llama")
    mask, before = make(model), state(model)
    real, calls = torch.zeros_like, []

    def fail(like: torch.Tensor, *, dtype: torch.dtype | None = None) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise MemoryError
        return real(like, dtype=dtype)

    monkeypatch.setattr(torch, "zeros_like", fail)
    with pytest.raises(MemoryError):
        resect.apply(model, mask)
    assert same(model, before)
