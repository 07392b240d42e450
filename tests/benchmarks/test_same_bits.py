"""Two runs are the same if their tensors, tables and results are, and not otherwise."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("same_bits", ROOT / "benchmarks" / "same_bits.py")
assert SPEC is not None
assert SPEC.loader is not None
same_bits = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(same_bits)


def run(
    folder: Path, *, value: float = 1.0, verdict: str = "supported", table: bytes = b"1"
) -> Path:
    (folder / "masks").mkdir(parents=True)
    save_file(
        {"w": torch.tensor([value, 2]), "of": torch.zeros(())},
        folder / "masks" / "a.safetensors",
        metadata={"where": str(folder)},
    )
    origin = {"command": str(folder), "seconds": len(str(folder)), "portable": True}
    results = {"claims": [{"verdict": verdict}], "provenance": origin}
    (folder / "results.json").write_text(json.dumps(results), "utf-8")
    (folder / "table.parquet").write_bytes(table)
    (folder / "report.md").write_text(str(folder), "utf-8")
    return folder


def test_where_and_when_a_run_was_made_does_not_count(tmp_path: Path) -> None:
    assert not list(same_bits.differences(run(tmp_path / "a"), run(tmp_path / "longer")))


@pytest.mark.parametrize(
    ("change", "file"),
    [
        # The last bit of a weight.
        ({"value": 1.0 + 2.0**-23}, "masks/a.safetensors"),
        ({"verdict": "inconclusive"}, "results.json"),
        ({"table": b"2"}, "table.parquet"),
    ],
)
def test_what_a_run_found_counts(tmp_path: Path, change: dict[str, object], file: str) -> None:
    found = same_bits.differences(run(tmp_path / "a"), run(tmp_path / "b", **change))  # type: ignore[arg-type]
    assert list(found) == [f"{file}: differs"]


def test_a_file_that_is_missing_counts(tmp_path: Path) -> None:
    one, two = run(tmp_path / "a"), run(tmp_path / "b")
    (two / "table.parquet").unlink()
    assert list(same_bits.differences(one, two)) == ["table.parquet: in one of the folders alone"]


def test_weights_of_emulated_processors_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An emulator that runs the program as it is, and says which processor it was asked for."""
    emulator = tmp_path / "qemu-x86_64"
    emulator.write_text('#!/bin/sh\nshift; PROCESSOR=$1 export PROCESSOR; shift; exec "$@"\n')
    emulator.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(same_bits, "TINY", "print('bits')")
    assert same_bits.main(["--emulated", "Haswell", "EPYC"]) == 0
    assert capsys.readouterr().out.splitlines() == ["here: bits", "Haswell: bits", "EPYC: bits"]
    monkeypatch.setattr(same_bits, "TINY", "import os; print(os.environ.get('PROCESSOR'))")
    assert same_bits.main(["--emulated", "EPYC"]) == 1
