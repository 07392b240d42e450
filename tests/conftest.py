"""Inputs that the reliability tests share: a tiny model, its data, a tiny organism."""

from __future__ import annotations

from pathlib import Path

import pytest
from kill import prepared


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `m`, `harm.jsonl`, `benign.jsonl`, `study.yaml` and `zoo`."""
    base = tmp_path_factory.mktemp("inputs")
    prepared(base)
    return base
