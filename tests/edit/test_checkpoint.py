"""Checkpoint folders: cut and restored bit for bit, in one file or in shards."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tiny
from masked import make
from resect.edit.checkpoint import fitted_to_files, prune_checkpoint, restore_checkpoint
from resect.errors import InputError, MismatchError
from resect.model import load_model, prunable_tensors

CASES = [
    ("llama", torch.float32, {}),
    ("llama", torch.bfloat16, {"max_shard_size": "4KB"}),
    ("qwen3", torch.bfloat16, {}),
    ("gpt2", torch.float32, {}),
    ("gpt2", torch.float32, {"max_shard_size": "4KB"}),
    ("mixtral", torch.bfloat16, {"max_shard_size": "4KB"}),
]
# Every layout on disk: fused, transposed, matrices of experts, one tensor for all experts, renamed.
EVERY: list[tuple[str, torch.dtype, dict[str, Any]]] = [
    (name, torch.float32, {}) for name in [*tiny.ARCHITECTURES, "gemma3_vision"]
]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize(("architecture", "dtype", "options"), CASES + EVERY)
def test_prune_and_restore(
    architecture: str, dtype: torch.dtype, options: dict[str, Any], alpha: float, tmp_path: Path
) -> None:
    source = tiny.save(architecture, tmp_path / "m", dtype=dtype, **options)
    if options:
        assert len(list(source.glob("*.safetensors"))) > 1
    mask = make(load_model(source).model)
    before = tensors(source)
    counts = prune_checkpoint(source, mask, tmp_path / "cut", alpha=alpha)
    assert counts["weights"] == mask.count > 0
    cut = tensors(tmp_path / "cut")
    for name, tensor in before.items():
        changed = (tensor != cut[name]).reshape(-1).nonzero().squeeze(1)
        entry = mask.tensors.get(name)
        assert changed.tolist() == ([] if entry is None else entry.index.tolist())
        if alpha == 0 and entry is not None:
            zeros = (cut[name] == 0).reshape(-1).nonzero().squeeze(1)
            assert zeros.tolist() == entry.index.tolist()
    loaded = load_model(tmp_path / "cut").model
    assert loaded.dtype == dtype
    # The names on disk are those in memory: what was loaded lacks exactly the masked weights.
    in_memory = prunable_tensors(loaded)
    assert list(in_memory) == list(mask.tensors)
    for name, entry in mask.tensors.items():
        assert torch.equal(in_memory[name].reshape(-1)[entry.index], entry.value * alpha)
    restore_checkpoint(tmp_path / "cut", mask, tmp_path / "back")
    back = tensors(tmp_path / "back")
    assert list(back) == list(before)
    assert all(torch.equal(tensor, back[name]) for name, tensor in before.items())
    assert {p.name for p in source.iterdir()} == {p.name for p in (tmp_path / "back").iterdir()}
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            assert path.read_bytes() == (tmp_path / "back" / path.name).read_bytes()
    assert all(torch.equal(tensor, tensors(source)[name]) for name, tensor in before.items())


# Loads with transformers alone, and lists for each folder where prunable tensors are zero.
FRESH = """
import json, sys, transformers
from pathlib import Path
from resect.model import prunable_tensors
for folder in sorted(Path(sys.argv[1]).iterdir()):
    name = json.loads((folder / "cut/config.json").read_text())["architectures"][0]
    model = getattr(transformers, name).from_pretrained(folder / "cut")
    zeros = {n: (t == 0).reshape(-1).nonzero().squeeze(1).tolist()
             for n, t in prunable_tensors(model).items()}
    whole = sum(int((p == 0).sum()) for p in model.parameters() if p.dim() > 1)
    print(json.dumps([folder.name, zeros, whole]), flush=True)
"""


def test_cut_folders_load_in_a_fresh_process_with_zeros_exactly_at_the_mask(
    tmp_path: Path,
) -> None:
    wanted = {}
    for architecture in [*tiny.ARCHITECTURES, "gemma3_vision"]:
        model = tiny.build(architecture)
        with torch.no_grad():  # small experts may start with a zero of their own, biases do
            for parameter in model.parameters():
                parameter.masked_fill_(parameter == 0, 0.1)
        folder = tmp_path / architecture
        model.save_pretrained(folder / "m")
        mask = make(model)
        prune_checkpoint(folder / "m", mask, folder / "cut")
        wanted[architecture] = {n: t.index.tolist() for n, t in mask.tensors.items()}
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(tmp_path)], capture_output=True, check=True, text=True
    )
    found = {}
    for line in done.stdout.splitlines():
        name, zeros, whole = json.loads(line)
        found[name] = zeros
        # No weight elsewhere is zero, not in embeddings, routers or norms either.
        assert whole == sum(map(len, zeros.values())) > 0, name
    assert found == wanted


def test_names_of_old_files_without_the_wrapper_prefix(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    source = tiny.save("gpt2", tmp_path / "m")
    mask = make(load_model(source).model)
    weights = load_file(source / "model.safetensors")
    save_file(
        {name.removeprefix("transformer."): tensor for name, tensor in weights.items()},
        source / "model.safetensors",
        {"format": "pt"},
    )
    prune_checkpoint(source, mask, tmp_path / "cut")
    restore_checkpoint(tmp_path / "cut", mask, tmp_path / "back")
    back = tensors(tmp_path / "back")
    assert all(torch.equal(t, back[n.removeprefix("transformer.")]) for n, t in weights.items())


def test_wrong_folders_leave_nothing(tmp_path: Path) -> None:
    source = tiny.save("llama", tmp_path / "m")
    mask = make(load_model(source).model)
    for other, message in (
        (tiny.save("llama", tmp_path / "seed", seed=1), "another value"),
        (tiny.save("llama", tmp_path / "bf16", dtype=torch.bfloat16), "another dtype"),
        (tiny.save("gpt2", tmp_path / "gpt2"), "no tensor"),
    ):
        with pytest.raises(MismatchError, match=message):
            prune_checkpoint(other, mask, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="lacks safetensors weights"):
        prune_checkpoint(tmp_path / "empty", mask, tmp_path / "out")
    with pytest.raises(InputError, match="no such checkpoint folder"):
        prune_checkpoint(tmp_path / "none", mask, tmp_path / "out")
    with pytest.raises(InputError, match="not empty"):
        prune_checkpoint(source, mask, tmp_path / "m")
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.iterdir() if ".part" in path.name]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
def test_a_mask_is_fitted_to_the_files_or_refused(architecture: str, tmp_path: Path) -> None:
    source = tiny.save(architecture, tmp_path / "m", max_shard_size="4KB")
    mask = make(load_model(source).model)
    before = tensors(source)
    in_files = fitted_to_files(source, mask)
    assert in_files.count == mask.count
    for name, entry in in_files.tensors.items():
        assert torch.equal(before[name].reshape(-1)[entry.index], entry.value)
    other = tiny.save(architecture, tmp_path / "other", seed=1)
    with pytest.raises(MismatchError, match="another value than in the mask"):
        fitted_to_files(other, mask)
    assert "another value" in str(fitted_to_files(other, mask, force=True).meta["forced"])
    with pytest.raises(MismatchError, match="no tensor"):
        fitted_to_files(tiny.save("bloom", tmp_path / "bloom"), mask, force=True)


def test_a_folder_with_two_sets_of_weights_is_refused(tmp_path: Path) -> None:
    # What transformers loads of it is model.safetensors, whatever an index names.
    folder = tiny.save("llama", tmp_path / "model")
    shards = tmp_path / "shards"
    tiny.build("llama", seed=3).save_pretrained(str(shards), max_shard_size="8KB")
    mask = tiny.cut(load_model(folder).model, 0.05)
    for path in shards.glob("model*"):
        shutil.copyfile(path, folder / path.name)
    with pytest.raises(InputError, match="two sets of weights") as error:
        prune_checkpoint(folder, mask, tmp_path / "cut")
    assert "transformers loads model.safetensors" in str(error.value)
