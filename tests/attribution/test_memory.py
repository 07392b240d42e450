"""Weights come from disk in pieces, limits of memory are seen, and the plan heeds them."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import tiny
from resect.attribution import choices
from resect.attribution.score import ScoreRequest, score_model
from resect.attribution.settings import Pass
from resect.errors import InputError
from resect.files.writing import write_text
from resect.machine import memory
from resect.machine.memory import Free
from resect.model import faults, files, load_model
from resect.weights.scores import Scores


@pytest.mark.parametrize("dtype", files.DTYPES.values())
@pytest.mark.parametrize("piece", [1, 7, 64, 10**6])
def test_pieces_make_the_tensor(piece: int, dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {"b": torch.randn(3, 5).to(dtype), "a": torch.randn(4).to(dtype), "c": torch.ones(())}
    tensors["empty"] = torch.zeros(0, 3, dtype=dtype)
    save_file(tensors, path)
    entries = files.entries([path])
    assert set(entries) == set(tensors)
    for name, tensor in tensors.items():
        for target in (
            torch.full_like(tensor, 9),
            torch.full((*tensor.shape[::-1],), 9.0).permute(tuple(reversed(range(tensor.dim())))),
        ):
            files.read_into(entries[name], target, piece=piece)
            assert torch.equal(target, tensor.to(target.dtype))
    with pytest.raises(InputError, match="does not fit the configuration"):
        files.read_into(entries["b"], torch.zeros(5, 3))


def _file(path: Path, header: object, data: bytes = b"\0" * 8) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BROKEN: dict[str, object] = {
    "no JSON": b"{]",
    "no object": [1],
    "deep": b"[" * 100_000,
    "entry no object": {"a": 1},
    "no offsets": {"a": {"dtype": "F32", "shape": [2]}},
    "beyond the end": {"a": ENTRY | {"data_offsets": [0, 9]}},
    "backwards": {"a": ENTRY | {"data_offsets": [8, 0]}},
    "negative": {"a": ENTRY | {"data_offsets": [-8, 0]}},
    "bool": {"a": ENTRY | {"shape": [True, 2]}},
    "other size": {"a": ENTRY | {"shape": [3]}},
    "huge": {"a": ENTRY | {"shape": [2**70]}},
}


@pytest.mark.parametrize("damage", BROKEN)
def test_broken_headers_are_refused(damage: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not readable"):
        files.entries([_file(tmp_path / "a.safetensors", BROKEN[damage])])


def test_other_broken_files(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for content in (b"", b"\xff" * 8, b"\xff" * 7 + b"\0"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="is not readable"):
            files.entries([path])
    entries = files.entries([_file(path, {"a": ENTRY, "q": ENTRY | {"dtype": "I8"}})])
    with pytest.raises(InputError, match="no gradient"):
        files.read_into(entries["q"], torch.zeros(2))
    path.write_bytes(path.read_bytes()[:-1])  # cut after its header was read
    with pytest.raises(InputError, match="ends early"):
        files.read_into(entries["a"], torch.zeros(2))


def _group(folder: Path, limit: str, used: int, stat: str = "", *, old: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current")
    if old:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for name, text in (*zip(names, (limit, str(used)), strict=True), ("memory.stat", stat)):
        write_text(folder / name, text)


def test_the_limits_of_all_groups_around_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "GROUPS", tmp_path)
    monkeypatch.setattr(memory, "OWN", tmp_path / "own")
    assert memory.left_of_group() == float("inf")
    write_text(tmp_path / "own", "0::/job/step\n")
    _group(tmp_path / "job" / "step", "max", 10)
    assert memory.left_of_group() == float("inf")
    # Pages of files can be dropped, unless they are mapped.
    _group(tmp_path / "job", "1000", 700, "inactive_file 200\nactive_file 50\nfile_mapped 30\n")
    assert memory.left_of_group() == 1000 - 700 + 220
    write_text(tmp_path / "own", "3:cpu:/x\n2:memory:/a/b\n")
    stat = "inactive_file 1\ntotal_cache 9\ntotal_inactive_file 40\ntotal_mapped_file 10\n"
    _group(tmp_path / "memory" / "a", "500", 100, stat, old=True)
    assert memory.left_of_group() == 500 - 100 + 30


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count no data")
def test_limits_of_the_process_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory.left_of_limits() == float("inf")
    for limited, limit in ((resource.RLIMIT_AS, 2**50), (resource.RLIMIT_DATA, 2**45)):
        old = resource.getrlimit(limited)
        resource.setrlimit(limited, (limit, old[1]))
        try:
            assert 0.9 * limit < memory.left_of_limits() < limit
        finally:
            resource.setrlimit(limited, old)


def _prepared(folder: Path) -> ScoreRequest:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=tiny.VOCABULARY,
        hidden_size=32,
        intermediate_size=96,
        num_hidden_layers=6,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    rows = "".join(json.dumps(row) + "\n" for row in tiny.rows(4, "a"))
    write_text(folder / "d.jsonl", rows)
    settings = Pass(reduction="mean_of_abs", keep=0.1)
    return ScoreRequest(str(folder), str(folder / "d.jsonl"), settings)


def test_the_plan_chooses_to_read_block_by_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    request = _prepared(tmp_path / "m")
    notes: list[str] = []

    def scored(**changes: Any) -> Scores:
        return score_model(replace(request, **changes), on_note=notes.append)

    expected = scored()
    assert (expected.meta.streamed, notes) == (False, [])
    assert scored(stream=True).meta.streamed
    assert notes == []
    monkeypatch.setattr(choices, "free_memory", lambda _devices: Free(2e5, 0.0))
    streamed = scored()
    assert streamed.meta.streamed
    assert len(notes) == 1
    assert "block by block" in notes[0]
    assert "--no-stream" in notes[0]
    streamed.save(tmp_path / "a.scores.safetensors")
    loaded = Scores.load(tmp_path / "a.scores.safetensors")
    assert loaded.meta == replace(expected.meta, streamed=True)
    assert loaded.summary() == f"{expected.summary()}, read block by block from disk"
    for name, tensor in expected.tensors.items():
        assert torch.equal(loaded.tensors[name].index, tensor.index)
    # Who chooses otherwise, or says how a model is to be held in memory, gets it in memory.
    one_by_one = replace(request.settings, layers_per_pass=3)
    for changes in ({"stream": False}, {"settings": one_by_one}):
        assert not scored(**changes).meta.streamed
    assert len(notes) == 1


def test_too_little_memory_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = _prepared(tmp_path / "m")

    def fail(*_args: object, **_kwargs: object) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes\nat c10")

    monkeypatch.setattr(torch, "zeros_like", fail)
    with pytest.raises(InputError, match="does not fit into memory") as caught:
        score_model(request)
    assert "use --stream" in str(caught.value)
    assert "c10" not in str(caught.value)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", fail)
    with pytest.raises(InputError, match="does not fit into memory") as caught:
        load_model(request.model)
    assert "--stream" in str(caught.value)
    assert memory.is_out_of_memory(MemoryError())
    assert not memory.is_out_of_memory(RuntimeError("else"))
    assert MemoryError in faults.LOAD_FAULTS
