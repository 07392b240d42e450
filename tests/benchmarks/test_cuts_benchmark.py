"""The script that times cuts against an earlier build, at a size that shows it runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import mapped
from resect.machine.products import CHOICE, TORCH


def test_the_arms_ask_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its processes inherit it, so that both builds multiply alike.
    monkeypatch.setenv(CHOICE, TORCH)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    script, path = mapped.script("cuts"), tmp_path / "cuts.json"
    arguments = [
        "--quick",
        "--cuts",
        "3",
        "--rounds",
        "1",
        "--arms",
        "now,together continuous,bfloat16",
    ]
    assert script.main([*arguments, "-o", str(path)]) == 0
    replies, likelihood = json.loads(path.read_text(encoding="utf-8"))["cases"]
    assert 0 < replies["tokens"] <= 3 * 5 * 3
    # The earlier build is this one here.
    assert (
        replies["arms"]["now"]["different"]
        == replies["arms"]["together continuous"]["different"]
        == 0
    )
    assert likelihood["arms"]["now"]["nll"] == 0
    assert likelihood["arms"]["together continuous"]["nll"] < 1e-5
    assert 0 < likelihood["arms"]["bfloat16"]["nll"] < 0.1
    assert "| replies | 3 | together continuous |" in capsys.readouterr().out


def test_half_of_the_cuts_are_nested() -> None:
    script = mapped.script("cuts")
    masks = script.cuts(script.TINY, 6)
    nested, others = masks[::2], masks[1::2]
    counts = [mask.count for mask in nested]
    assert counts == sorted(counts) == [mask.count for mask in others]
    assert nested[2].overlap(nested[0]) == pytest.approx(counts[0] / counts[2])
    assert others[2].overlap(nested[2]) < 0.2
