"""Seeded draws, each named by its use.

A draw's generator depends on its label and the seed alone, so that adding a study changes no other
study's draw.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def seed_of(label: str, seed: int = 0) -> int:
    """Return a 63-bit seed that depends on the label and the seed alone."""
    digest = hashlib.sha256(f"{seed}/{label}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def rng(label: str, seed: int = 0) -> np.random.Generator:
    """Return the generator named by `label`; the same label and seed give the same stream."""
    import numpy as np

    return np.random.default_rng(seed_of(label, seed))
