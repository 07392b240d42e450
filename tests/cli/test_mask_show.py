"""`resect mask show`: a large mask is a short table, and every tensor is there if asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from command_line import call
from resect.weights.mask import Mask, MaskTensor

LAYERS, EXPERTS = 30, 4


def tensor(size: int, removed: int) -> MaskTensor:
    """Return a mask of the first weights of a matrix of `size` rows and two columns."""
    index = torch.arange(removed)
    rounds = torch.zeros(removed, dtype=torch.uint8)
    return MaskTensor((size, 2), index, torch.ones(removed), rounds)


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    tensors = {}
    for layer in range(LAYERS):
        place = f"model.layers.{layer}"
        tensors[f"{place}.self_attn.q_proj.weight"] = tensor(8, 2)
        tensors[f"{place}.mlp.down_proj.weight"] = tensor(16, layer % 2)
        for expert in range(EXPERTS):
            tensors[f"{place}.mlp.experts.{expert}.up_proj.weight"] = tensor(4, 1)
    path = tmp_path / "harm.mask.safetensors"
    scored = {"method": "snip", "data_hash": "0af3", "category": ""}
    Mask(tensors, {"q": 0.01, "target": scored}).save(path)
    return path


def tables(path: Path, *options: str) -> dict[str, list[dict[str, object]]]:
    done = call("--json", "mask", "show", path, *options)
    assert done.returncode == 0, done.stderr
    shown = [json.loads(line) for line in done.stdout.splitlines()]
    return {table["title"]: table["rows"] for table in shown}


def test_a_row_for_each_module(mask: Path) -> None:
    shown = tables(mask)
    title = next(iter(shown))
    assert "weights removed" in title
    rows = {row["module"]: row for row in shown[title]}
    assert list(rows) == ["self_attn.q_proj", "mlp.down_proj", "mlp.experts.*.up_proj"]
    assert rows["self_attn.q_proj"]["removed"] == 2 * LAYERS
    assert rows["self_attn.q_proj"]["percent"] == pytest.approx(100 / 8)
    assert rows["mlp.down_proj"]["of them cut"] == LAYERS // 2
    assert rows["mlp.experts.*.up_proj"]["tensors"] == LAYERS * EXPERTS
    assert "tensors" not in shown
    assert len(call("mask", "show", mask).stdout.splitlines()) < 20


def test_where_it_comes_from_is_told_in_rows(mask: Path) -> None:
    origin = {row["key"]: row["value"] for row in tables(mask)["origin"]}
    assert origin == {"q": "0.01", "target, method": "snip", "target, data_hash": "0af3"}


def test_every_tensor_if_asked_for(mask: Path) -> None:
    shown = tables(mask, "--all")
    assert len(shown["tensors"]) == LAYERS * (2 + EXPERTS)
    assert shown["tensors"][0]["tensor"] == "model.layers.0.self_attn.q_proj.weight"
    kinds = next(iter(shown.values()))
    assert sum(int(str(row["removed"])) for row in kinds) == sum(
        int(str(row["removed"])) for row in shown["tensors"]
    )
