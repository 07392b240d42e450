"""The organism of seconds that many tests ask, made once for all of them."""

from __future__ import annotations

import fcntl
import os

import pytest

from resect.organism import Organism, Recipe, build


def tiny_organism(factory: pytest.TempPathFactory) -> Organism:
    """Return it with all its stages; processes that test at the same time share it."""
    base = factory.getbasetemp()
    folder = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with (folder / "tiny-organism.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return build(seed=0, recipe=Recipe.tiny(), root=folder / "tiny-organism")
