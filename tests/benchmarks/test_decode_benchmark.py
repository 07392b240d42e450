"""The script that times replies, at a size that shows it runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import mapped
from resect.machine.products import CHOICE, TORCH


def test_the_arms_give_the_same_tokens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What it would choose on some processors holds for the process.
    monkeypatch.setenv(CHOICE, TORCH)
    decode = mapped.script("decode")
    path = tmp_path / "decode.json"
    assert decode.main(["--quick", "--rounds", "1", "-o", str(path)]) == 0
    cases = json.loads(path.read_text(encoding="utf-8"))["cases"]
    assert [case["case"] for case in cases] == list(decode.CASES)
    size = decode.TINY
    assert cases[0]["tokens"] == size.prompts * size.tokens > cases[1]["tokens"] > 0
    for case in cases:
        assert case["different"] == {"now": 0, "continuous": 0}
        assert all(ratio > 0 for ratios in case["ratios"].values() for ratio in ratios)
    assert "| tiny | ends |" in capsys.readouterr().out


def test_tokens_count_from_the_first_that_differs_on() -> None:
    decode = mapped.script("decode")
    before = [[1, 2, 3], [4, 5], [6]]
    assert decode.different(before, before) == 0
    assert decode.different(before, [[1, 9, 3], [4, 5, 6], []]) == 2 + 1 + 1
