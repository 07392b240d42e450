"""Inputs that the reliability tests share: a tiny model, its data, a tiny organism."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from kill import prepared


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start torch's own generator anew: adapters that a library fills are the same in every run."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `m`, `harm.jsonl`, `benign.jsonl`, `study.yaml` and `zoo`."""
    base = tmp_path_factory.mktemp("inputs")
    prepared(base)
    return base
