"""A model of three times the memory that there is gets the mask that it has in memory."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest


def _load() -> Any:
    path = Path(__file__).parents[2] / "benchmarks" / "limited.py"
    spec = importlib.util.spec_from_file_location("limited", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and a limit that counts data")
def test_a_model_of_three_times_the_memory() -> None:
    limited = _load()
    measured = limited.measure(limited.Size(256, 704, 24))
    assert measured["weights"] > 75e6
    assert measured["weights"] >= 3 * measured["limit"]
    # By the plan's own choice, and it says so.
    assert (measured["streamed"], measured["plain_streamed"]) == (True, False)
    assert len(measured["notes"]) == 1
    assert measured["notes"][0].startswith("the model is read block by block from disk")
    assert measured["same_mask"]
    assert measured["mask"] > 1000
    assert measured["resident"] < measured["limit"]
    # The limit is one: a model in memory does not fit into it, and the user is told what to do.
    assert "does not fit into memory" in measured["in_memory"]
    assert "--stream" in measured["in_memory"]
