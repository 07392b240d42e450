"""How far attacks that train reached, for the report of a run; reads `attacks/` alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from resect import files
from resect.report.words import percent, readable

FOLDER = "attacks"
PARTIAL = "an attack on all of them might bring out more"


def reached(run: Path) -> dict[str, float]:
    """Return for each attack with adapters the least share of the prunable weights that had one.

    Empty for runs of earlier versions, which do not say so.

    Raises:
        InputError: A file holds something else.
    """
    shares: dict[str, float] = {}
    for path in sorted((run / FOLDER).glob("*.json")):
        with files.expecting(path, "record of an attack"):
            facts = dict(files.read_json(path))
            name, share = str(facts["cell_attack"]), facts.get("adapted_share")
            if share is not None:
                shares[name] = min(float(share), shares.get(name, 1.0))
    return shares


def reach_sentence(shares: Mapping[str, float]) -> str:
    """Return how far attacks reached, in one sentence; "" if none is known."""
    words = [
        f"{readable(name, options=False)}: adapters on {percent(share)} of the prunable weights"
        + (f", and {PARTIAL}" if share < 1 else "")
        for name, share in shares.items()
    ]
    return "; ".join(words)
