"""Score files lose nothing in packing, are as small as promised, and damage is seen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file

import tiny
from resect.attribution.engine import attribute_many
from resect.attribution.settings import Pass
from resect.errors import InputError
from resect.weights.packing import DTYPES, from_gaps, pack, to_gaps, unpack
from resect.weights.scores import Scores


@pytest.mark.parametrize("name", [name for name in DTYPES if "float" in name])
@pytest.mark.parametrize("count", [0, 1, 1000])
def test_a_row_comes_back_bit_for_bit(name: str, count: int) -> None:
    row = torch.randn(count, generator=torch.Generator().manual_seed(1)).to(DTYPES[name])
    if count > 1:
        row[:3] = torch.tensor([float("inf"), -0.0, 1e-30])
    packed, packing = pack(row)
    unpacked = unpack(packed, json.loads(json.dumps(packing)), 10**6)
    assert unpacked.dtype == row.dtype
    assert torch.equal(unpacked.view(torch.uint8), row.view(torch.uint8))


@pytest.mark.parametrize("code", [np.uint8, np.uint16])
def test_gaps_of_any_length_come_back(code: type[np.uint8] | type[np.uint16]) -> None:
    escape = np.iinfo(code).max
    # On the edge of the type, beside it, far beyond it, and past what 32 bits hold.
    steps = [1, 1, escape, escape + 1, escape + 2, 5 * escape, 2**33 // escape]
    index = np.cumsum(steps).astype(np.int64)
    for row in (index, index - 1, index[:0], np.array([2**20], dtype=np.int64)):
        assert from_gaps(to_gaps(row, code)).tolist() == row.tolist()


@pytest.mark.parametrize(
    "damage", ["short", "long", "flipped", "count", "dtype", "negative", "all", "bomb"]
)
def test_damage_is_seen(damage: str) -> None:
    packed, packing = pack(torch.rand(500))
    if damage == "short":
        packed = packed[:-1]
    if damage == "long":
        packed = torch.cat([packed, packed[-1:]])
    if damage == "flipped":
        packed[-6] ^= 255
    if damage == "count":
        packing = packing._replace(length=501)
    if damage == "negative":
        packing = packing._replace(length=-1)
    if damage == "all":
        packing = packing._replace(deflated=len(packed) + 1)
    if damage == "bomb":
        packed, packing = pack(torch.zeros(10**6 + 1, dtype=torch.uint8))
        assert len(packed) < 10_000
    if damage == "dtype":
        packing = packing._replace(dtype="int8")
    with pytest.raises((ValueError, KeyError)):
        unpack(packed, packing, 10**6)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scores")
    config = tiny.configuration("llama").to_dict() | {"hidden_size": 192, "head_dim": 48}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).eval()
    scored = attribute_many(
        model,
        tiny.tokenizer(),
        tiny.examples(3),
        reductions=("signed", "mean_of_abs"),
        settings=Pass(keep=1e-2),
    )
    for reduction, scores in scored.items():
        scores.save(path / reduction)
    return path


def test_files_hold_their_share_of_dense_ones(files: Path) -> None:
    for reduction, bytes_a_weight in (("mean_of_abs", 4), ("signed", 4 + 4)):
        scores = Scores.load(files / reduction)
        blobs = sum(tensor.numel() for tensor in _raw(files / reduction)[0].values())
        candidates = sum(tensor.index.numel() for tensor in scores.tensors.values())
        assert blobs < candidates * (bytes_a_weight + 0.2)
        assert blobs < 0.02 * bytes_a_weight * scores.total


def test_a_changed_file_is_refused(files: Path, tmp_path: Path) -> None:
    blobs, header = _raw(files / "signed")
    changes: dict[str, tuple[dict[str, torch.Tensor], dict[str, object]]] = {
        "laid out": (blobs, {key: value for key, value in header.items() if key != "layout"}),
        "not a whole": (blobs | {"value": blobs["value"][:-1]}, header),
        "not a whole score": ({k: v for k, v in blobs.items() if k != "gap"}, header),
    }
    for words, (data, changed) in changes.items():
        save_file(data, tmp_path / "bad", {"resect": json.dumps(changed)})
        with pytest.raises(InputError, match=words):
            Scores.load(tmp_path / "bad")


def _raw(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["resect"])
        return {name: file.get_tensor(name) for name in list(file.keys())}, header
