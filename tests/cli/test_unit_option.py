"""Whole units on the command line: scored, selected, cut, undone; and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tiny
from command_line import call, ok, write
from resect.weights.mask import Mask


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("units")
    tiny.save("llama", folder / "m")
    harm = write(folder / "harm.jsonl", tiny.rows(4, "c"))
    benign = write(folder / "benign.jsonl", tiny.rows(4, "b"))
    words = ("score", folder / "m", "--data")
    ok(*words, harm, "--dense", "-o", folder / "harm.scores.safetensors")
    kind = ("--reduction", "mean_of_abs", "-o", folder / "benign.scores.safetensors")
    ok(*words, benign, "--dense", *kind)
    ok(*words, harm, "--keep", 0.5, "-o", folder / "few.scores.safetensors")
    return folder


def select(base: Path, unit: str, output: Path, target: str = "harm") -> tuple[object, ...]:
    scores = [base / f"{name}.scores.safetensors" for name in (target, "benign")]
    return ("select", *scores, "--q", 0.3, "--p", 0.2, "--unit", unit, "-o", output)


def test_selected_cut_and_undone(base: Path, tmp_path: Path) -> None:
    mask, cut, whole = (tmp_path / name for name in ("n.mask.safetensors", "cut", "whole"))
    shown = ok(*select(base, "neuron", mask))
    removed = Mask.load(mask)
    # Of 24 neurons of each of two MLPs, 48 weights each.
    assert f"{removed.meta['units']} whole neurons" in shown
    assert removed.count == 48 * removed.meta["units"] > 0
    ok("prune", base / "m", mask, "-o", cut)
    before, after = (load_file(folder / "model.safetensors") for folder in (base / "m", cut))
    for name, tensor in removed.tensors.items():
        changed = (before[name] != after[name]).reshape(-1).nonzero()[:, 0]
        assert torch.equal(changed, tensor.index)
    for layer in range(2):
        mlp = f"model.layers.{layer}.mlp"
        gone = (after[f"{mlp}.gate_proj.weight"] == 0).all(1)
        assert torch.equal((after[f"{mlp}.down_proj.weight"] == 0).all(0), gone)
        assert torch.equal((after[f"{mlp}.up_proj.weight"] == 0).all(1), gone)
    ok("restore", cut, mask, "-o", whole)
    again = load_file(whole / "model.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in before.items())
    control = tmp_path / "r.mask.safetensors"
    ok("mask", "random", mask, "--model", base / "m", "-o", control)
    drawn = Mask.load(control)
    assert drawn.intersect(removed).count == 0
    assert drawn.count == removed.count


@pytest.mark.parametrize(
    ("unit", "target", "said"),
    [
        ("expert", "harm", "no expert can be told apart in this model"),
        ("neuron", "few", "score again with --dense"),
        ("layer", "harm", "is not one of"),
    ],
)
def test_what_cannot_be_cut_is_refused(
    base: Path, tmp_path: Path, unit: str, target: str, said: str
) -> None:
    done = call(*select(base, unit, tmp_path / "x.mask.safetensors", target))
    assert done.returncode == 2
    assert said in " ".join(done.stderr.replace("│", " ").split())
    assert not list(tmp_path.iterdir())
