"""Checkpoints that lack weights are refused: transformers fills the holes with random numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from command_line import call, ok, write
from resect.errors import InputError
from resect.model import load_model
from resect.model.load import load_reported

Tensors = dict[str, torch.Tensor]
UP = "model.layers.1.mlp.up_proj.weight"


def changed(
    folder: Path, change: Callable[[Tensors], Tensors], architecture: str = "qwen2"
) -> Path:
    """Save a tiny model, whose head is a matrix of its own, and change its file."""
    tiny.save(architecture, folder)
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return folder


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def wrapped(tensors: Tensors) -> Tensors:
    return {f"_orig_mod.{name}": value for name, value in tensors.items()}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without(UP), [UP, "lacks 1 weight", "random numbers"]),
        (without("lm_head.weight"), ["lm_head.weight"]),
        (without("model.norm.weight"), ["model.norm.weight"]),
        (wrapped, ["_orig_mod.", "prefix of a training wrapper"]),
    ],
    ids=["matrix", "head", "norm", "wrapper"],
)
def test_a_checkpoint_with_holes_is_refused(
    change: Callable[[Tensors], Tensors], words: list[str], tmp_path: Path
) -> None:
    with pytest.raises(InputError) as error:
        load_model(changed(tmp_path / "m", change))
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("stream", [False, True])
def test_no_command_goes_on_with_random_numbers(stream: bool, tmp_path: Path) -> None:
    model = changed(tmp_path / "m", without(UP))
    data = write(tmp_path / "t.jsonl", tiny.rows(6, "t"))
    words = ["score", model, "--data", data, "-o", tmp_path / "s.scores.safetensors"]
    done = call(*words, *(["--stream"] if stream else []))
    assert done.returncode == 2
    assert UP in done.stderr
    assert not (tmp_path / "s.scores.safetensors").exists()


def test_coverage_names_what_the_model_has_no_place_for(tmp_path: Path) -> None:
    extra = {"model.layers.0.mlp.adapter.weight": torch.zeros(2, 2)}
    model = changed(tmp_path / "m", lambda tensors: tensors | extra)
    assert load_reported(model).unplaced == tuple(extra)
    assert "model.layers.0.mlp.adapter.weight" in ok("coverage", str(model))


@pytest.mark.parametrize("architecture", [*tiny.ARCHITECTURES])
def test_whole_checkpoints_load_without_a_word(architecture: str, tmp_path: Path) -> None:
    assert load_reported(tiny.save(architecture, tmp_path / "m")).unplaced == ()
