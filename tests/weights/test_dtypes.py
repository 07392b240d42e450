"""A mask belongs to the checkpoint, in whatever dtype it was scored; inf and NaN are bits, too."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from command_line import call, ok, write
from resect.edit import prune_checkpoint, removed, restore_checkpoint
from resect.errors import MismatchError
from resect.model import load_model, model_fingerprint, prunable_tensors
from resect.weights.mask import Mask, MaskTensor

TENSOR = "model.layers.0.mlp.up_proj.weight"
PAIRS = [("float16", "float32"), ("bfloat16", "float32"), ("float32", "bfloat16")]


def folder_of(path: Path, dtype: str, architecture: str = "llama") -> Path:
    return tiny.save(architecture, path, dtype=getattr(torch, dtype))


def located(model: Path, path: Path, *options: str) -> Mask:
    """Score a behaviour, and select from it alone."""
    data = write(path / "t.jsonl", tiny.rows(6, "t"))
    scores = path / "t.scores.safetensors"
    ok("score", model, "--data", data, "--keep", "0.2", "-o", scores, *options)
    mask = path / "t.mask.safetensors"
    ok("select", scores, scores, "--q", "0.05", "--p", "0", "-o", mask)
    return Mask.load(mask)


@pytest.mark.parametrize(("stored", "scored"), PAIRS)
@pytest.mark.parametrize("options", [[], ["--stream"]], ids=["memory", "stream"])
def test_a_mask_scored_in_another_dtype_is_the_checkpoints(
    stored: str, scored: str, options: list[str], tmp_path: Path
) -> None:
    model = folder_of(tmp_path / "m", stored)
    mask = located(model, tmp_path, "--dtype", scored, *options)
    files = load_file(model / "model.safetensors")
    assert mask.count
    for name, entry in mask.tensors.items():
        assert torch.equal(entry.value, files[name].view(-1)[entry.index])
    assert mask.meta["model_fingerprint"] == model_fingerprint(load_model(model).model)
    ok("prune", model, tmp_path / "t.mask.safetensors", "-o", tmp_path / "cut")
    ok("restore", tmp_path / "cut", tmp_path / "t.mask.safetensors", "-o", tmp_path / "mended")
    assert (tmp_path / "mended/model.safetensors").read_bytes() == (
        model / "model.safetensors"
    ).read_bytes()


def test_experts_are_read_back_from_either_layout(tmp_path: Path) -> None:
    for name, original in (("split", True), ("fused", False)):
        model = tiny.save("mixtral", tmp_path / name, save_original_format=original)
        place = tmp_path / f"{name}.located"
        place.mkdir()
        mask = located(model, place, "--dtype", "bfloat16")
        weights = prunable_tensors(load_model(model).model)
        for tensor, entry in mask.tensors.items():
            assert torch.equal(entry.value, weights[tensor].reshape(-1)[entry.index])


def test_a_model_in_memory_that_changed_keeps_its_values(tmp_path: Path) -> None:
    model = load_model(folder_of(tmp_path / "m", "bfloat16"), dtype="float32").model
    before = model_fingerprint(model)
    with torch.no_grad():
        model.get_parameter(TENSOR).add_(1e-6)
    assert model_fingerprint(model) != before


def test_a_loading_that_rounds_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = folder_of(tmp_path / "m", "float32")
    with caplog.at_level(logging.WARNING, "resect"):
        load_model(model, dtype="float32")
        assert not caplog.records
        load_model(model, dtype="bfloat16")
    assert "float32 and are rounded to bfloat16" in caplog.text


def values_of(folder: Path, dtype: torch.dtype) -> Mask:
    """Return a mask as earlier versions made it, with values in the dtype of the scoring."""
    index = torch.tensor([1, 5, 40])
    tensor = load_file(folder / "model.safetensors")[TENSOR]
    value = tensor.view(-1)[index].to(dtype)
    entry = MaskTensor(tuple(tensor.shape), index, value, torch.zeros(3, dtype=torch.uint8))
    return Mask({TENSOR: entry}, {})


@pytest.mark.parametrize(("stored", "scored"), PAIRS)
def test_older_masks_stay_usable(stored: str, scored: str, tmp_path: Path) -> None:
    model = folder_of(tmp_path / "m", stored)
    mask = values_of(model, getattr(torch, scored))
    loaded = load_model(model, device="cpu").model
    with removed(loaded, mask):
        assert int((loaded.get_parameter(TENSOR) == 0).sum()) == 3
    prune_checkpoint(model, mask, tmp_path / "cut")
    if scored == "float32":
        restore_checkpoint(tmp_path / "cut", mask, tmp_path / "mended")
        after = load_file(tmp_path / "mended/model.safetensors")
        assert torch.equal(after[TENSOR], load_file(model / "model.safetensors")[TENSOR])
        return
    # Their values were rounded, so that they can cut and not mend.
    with pytest.raises(MismatchError, match="rounded values"):
        restore_checkpoint(tmp_path / "cut", mask, tmp_path / "mended")


def test_a_rounded_copy_is_another_checkpoint(tmp_path: Path) -> None:
    mask = values_of(folder_of(tmp_path / "m", "float32"), torch.float32)
    copy = folder_of(tmp_path / "copy", "bfloat16")
    with pytest.raises(MismatchError, match="another dtype"):
        prune_checkpoint(copy, mask, tmp_path / "cut")


@pytest.mark.parametrize("alpha", [0.0, 0.5, -1.0])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("odd", [float("inf"), float("-inf"), float("nan"), -0.0])
def test_odd_values_are_cut_and_mended(
    odd: float, dtype: str, alpha: float, tmp_path: Path
) -> None:
    model = folder_of(tmp_path / "m", dtype)
    file = model / "model.safetensors"
    tensors = load_file(file)
    tensors[TENSOR].view(-1)[5] = odd
    save_file(tensors, file, {"format": "pt"})
    mask = values_of(model, getattr(torch, dtype))
    loaded = load_model(model, device="cpu").model
    with removed(loaded, mask, alpha=alpha):
        pass
    prune_checkpoint(model, mask, tmp_path / "cut", alpha=alpha)
    cut = load_file(tmp_path / "cut/model.safetensors")[TENSOR].view(-1)[[1, 5, 40]]
    assert alpha or not cut.any()
    restore_checkpoint(tmp_path / "cut", mask, tmp_path / "mended")
    assert (tmp_path / "mended/model.safetensors").read_bytes() == file.read_bytes()


def overflowing(folder: Path) -> Path:
    """Save a float16 model whose logits are NaN."""
    tiny.save("llama", folder, dtype=torch.float16)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for layer in (0, 1):
        tensors[f"model.layers.{layer}.mlp.down_proj.weight"].fill_(60000.0)
    save_file(tensors, file, {"format": "pt"})
    return folder


def test_numbers_that_overflow_are_one_message_in_every_command(tmp_path: Path) -> None:
    broken = overflowing(tmp_path / "half")
    whole = tiny.save("llama", tmp_path / "whole", dtype=torch.float16)
    calibration, evaluation = (
        tiny.rows(8, name, split=split)
        for name, split in (("c", "calibration"), ("ee", "evaluation"))
    )
    data = write(tmp_path / "t.jsonl", calibration + evaluation)
    eighth = ["--max-new-tokens", "4", "-o", tmp_path / "out"]
    ways = ["--probe", "generation"], ["--probe", "likelihood"]
    commands = [
        ["score", broken, "--data", data, "-o", tmp_path / "out"],
        *(["eval", broken, *way, "--data", data, *eighth] for way in ways),
        ["audit", whole, broken, "--target", data, "--preserve", data, "--q", "0.02", "--p", "0.02",
         *eighth],
        ["data", "collect", broken, "--data", data, "--attack", "none",
         "-o", tmp_path / "out.jsonl"],
    ]  # fmt: skip
    for command in commands:
        done = call(*command)
        assert done.returncode == 2, (command[0], done.stderr)
        assert "not finite" in done.stderr, (command[0], done.stderr)
        assert "next step: use the model in bfloat16 or float32" in done.stderr
        # What was collected before an error stays in a folder of its own, to go on from.
        assert not [path for path in tmp_path.glob("out*") if path.suffix != ".parts"]
