"""The script that compares cuts together with cuts one by one, at a size that shows it runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import mapped


def test_the_arms_are_the_same_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    together = mapped.script("together")
    assert together.main(["--quick", "-o", str(tmp_path / "together.json")]) == 0
    measured = json.loads((tmp_path / "together.json").read_text(encoding="utf-8"))
    size = together.TINY
    for case in measured["cases"]:
        assert case["different"] == 0
        assert case["ratio"] > 0
        # Of the first arm the rows of one cut, of the second those of several.
        assert case["rows"]["together"] == size.together * case["rows"]["one by one"]
    assert "| replies, few prompts |" in capsys.readouterr().out
    likelihoods = [case["nll"] for case in measured["cases"] if case["nll"] is not None]
    assert likelihoods == pytest.approx([0, 0], abs=1e-5)
    assert measured["cases"][-1]["tokens"] > 0
    loaded = together.build(size)
    nested, others = (together.cuts(loaded.model, size)[part] for part in (slice(3), slice(3, 6)))
    counts = [mask.count for mask in nested]
    assert counts == sorted(counts) == [mask.count for mask in others]
    assert nested[2].overlap(nested[0]) == pytest.approx(counts[0] / counts[2])
    assert others[2].overlap(nested[2]) < 0.2
