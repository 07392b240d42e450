"""An adapter of which a part finds no place is not audited as if that part had changed nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import tiny
from resect.audit.loading import load_tuned
from resect.errors import InputError
from resect.model import load_model, prunable_tensors

Tensors = dict[str, torch.Tensor]
B = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save("llama", tmp_path_factory.mktemp("base") / "model")


def adapter(base: Path, folder: Path, change: Callable[[Tensors], Tensors]) -> Path:
    """Save an adapter that changes every matrix, and change its file."""
    lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(load_model(base).model, lora).save_pretrained(str(folder))
    file = folder / "adapter_model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return folder


def wrapped(tensors: Tensors) -> Tensors:
    return {
        name.replace("base_model.model.", "base_model.model._orig_mod."): tensor
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (wrapped, ["does not fit", "_orig_mod.", "next step"]),
        (lambda tensors: {n: t for n, t in tensors.items() if n != B}, ["up_proj.lora_B"]),
        (lambda tensors: tensors | {B.replace("layers.1", "layers.7"): tensors[B].clone()},
         ["no place", "layers.7"]),
    ],
    ids=["wrapper", "one gone", "one too many"],
)  # fmt: skip
def test_an_adapter_that_does_not_fit_is_refused(
    change: Callable[[Tensors], Tensors], words: list[str], base: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as error:
        load_tuned(str(base), str(adapter(base, tmp_path / "a", change)))
    for word in words:
        assert word in str(error.value)


def test_a_whole_adapter_changes_every_matrix(base: Path, tmp_path: Path) -> None:
    tuned = prunable_tensors(load_tuned(str(base), str(adapter(base, tmp_path / "a", dict))))
    before = prunable_tensors(load_model(base).model)
    assert all(not torch.equal(before[name], tuned[name]) for name in before)
