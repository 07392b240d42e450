"""Which device is taken; nothing here can run on any GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tiny
from command_line import call, write
from resect.errors import InputError
from resect.machine.devices import DEVICE, count_of, is_accelerator
from resect.machine.memory import free_memory, is_out_of_memory
from resect.model.load import find_device
from resect.weights.change import exact_device, sum_over


@pytest.mark.parametrize("kind", ["mps", "xpu"])
def test_other_gpus_are_taken_where_torch_has_them(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(getattr(torch, kind), "device_count", lambda: 0)
    with pytest.raises(InputError, match="its torch cannot use it"):
        find_device(kind)
    monkeypatch.setattr(getattr(torch, kind), "device_count", lambda: 1)
    assert find_device(kind) == kind
    assert find_device(f"{kind}:0") == f"{kind}:0"
    with pytest.raises(InputError, match=f"{kind}:0") as error:
        find_device(f"{kind}:1")
    assert DEVICE in str(error.value)
    # Named, and never by themselves.
    assert find_device(None) == ("cuda" if count_of("cuda") else "cpu")
    monkeypatch.setenv(DEVICE, kind)
    assert find_device(None) == kind
    assert is_accelerator(torch.device(kind))
    assert exact_device(torch.device(kind)).type == "cpu"


def test_what_is_no_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nowhere", "meta", "vulkan"):
        with pytest.raises(InputError, match="device") as error:
            find_device(name)
        assert "cpu, auto" in str(error.value)
    assert find_device("auto") == "auto"
    assert find_device("cpu") == "cpu"
    monkeypatch.setenv(DEVICE, "cpu")
    assert find_device(None) == "cpu"


def test_a_gpu_without_memory_of_its_own_has_that_of_the_machine() -> None:
    free = free_memory([torch.device("mps")])
    assert free.host == 0
    assert free.device > 0
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"))
    assert sum_over(torch.ones(3)) == 3


@pytest.mark.skipif(bool(count_of("mps")), reason="this machine has one")
def test_a_command_says_so_in_one_message(tmp_path: Path) -> None:
    data = write(tmp_path / "d.jsonl", tiny.rows(4, "a"))
    done = call("score", tiny.save("llama", tmp_path / "m"), "--data", data, "--device", "mps",
                "-o", tmp_path / "a.scores.safetensors")  # fmt: skip
    assert done.returncode == 2
    assert "or its torch cannot use it" in done.stderr
    assert not (tmp_path / "a.scores.safetensors").exists()
