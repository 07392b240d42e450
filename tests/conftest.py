"""Inputs that the reliability tests share: a tiny model, its data, a tiny organism."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from kill import prepared


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start torch's own generator anew: adapters that a library fills are the same in every run."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """Take away Inspect's handler after a test, or later ones write to a console that is gone."""
    yield
    for handler in list(logging.root.handlers):
        if type(handler).__module__.startswith("inspect_ai"):
            logging.root.removeHandler(handler)


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `m`, `harm.jsonl`, `benign.jsonl`, `study.yaml` and `zoo`."""
    base = tmp_path_factory.mktemp("inputs")
    prepared(base)
    return base


@pytest.fixture(scope="module")
def without_paper() -> Iterator[None]:
    """Leave out the files of figures, which take most of a report's time; the page has its own."""
    from resect.report import compare, html

    with pytest.MonkeyPatch.context() as patch:
        for module in (compare, html):
            patch.setattr(module, "write_figures", lambda _drawings, _folder: None)
        yield
