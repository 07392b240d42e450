"""The configuration of a run of seconds, on an organism of seconds."""

from __future__ import annotations

from typing import Any

from resect.organism import Organism


def tiny_values(built: Organism, frontier: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a configuration with one study."""
    return {
        "name": "tiny",
        "models": {"aligned": str(built.stage("aligned"))},
        "data": {name: str(built.data(name)) for name in ("hazard", "preserve", "utility")},
        "targets": {"generation": {"data": "hazard", "skip": 3, "limit": 8}},
        "preserve": {"data": "preserve", "limit": 8},
        "attack": {"name": "prefill", "tokens": 3},
        "evaluation": {
            "probes": {"generation": "hazard", "utility": "utility", "likelihood": "preserve"},
            "limit": 6,
            "max_new_tokens": 3,
        },
        "studies": {"frontier": frontier},
    }
