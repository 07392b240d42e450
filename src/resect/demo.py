"""The embedded demonstration: the five studies on the model organism."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from resect.config import RunConfig, parse_config
from resect.organism import Recipe, build, organism_root

STAGES = ("base", "aligned", "benign_tuned")
PREFILL_TOKENS = 3


def build_organisms(seed: int, on_progress: Callable[[int, int], None] | None = None) -> None:
    """Train the stages of one seed, or find them in the cache."""
    build(
        seed=seed,
        stages=STAGES,
        recipe=Recipe(),
        on_progress=None
        if on_progress is None
        else lambda _label, done, total: on_progress(done, total),
    )


def demo_config(seeds: tuple[int, ...], *, quick: bool) -> RunConfig:
    """Return the configuration of the demonstration.

    The grid and the thresholds are the defaults of the studies. The prefill opens the answer with
    the words that every recipe shares ("sure , take"), and the same number of tokens is left out
    of the score, so that the cut is aimed at the content and not at the opening.
    """
    root = str(organism_root(Recipe())) + "/seed-{seed}"
    sets = {
        "hazard": "hazard",
        "refusals": "refusal",
        "benign": "preserve",
        "tasks": "utility",
        "facts": "trivia",
        "detection": "detection",
        "explanation": "explanation",
        "same_style": "benign_style",
    }
    values: dict[str, Any] = {
        "name": "model organism",
        "quick": quick,
        "seeds": list(seeds),
        "models": {stage: f"{root}/{stage}" for stage in STAGES},
        "subject": "aligned",
        "data": {name: f"{root}/data/{file}.jsonl" for name, file in sets.items()},
        "targets": {
            "generation": {"data": "hazard", "skip": PREFILL_TOKENS, "limit": 128},
            "refusal": {"data": "refusals", "skip": 0, "limit": 128},
            "detection": {"data": "detection", "skip": 0, "limit": 128},
            "explanation": {"data": "explanation", "skip": 0, "limit": 128},
            "benign": {"data": "facts", "skip": 0, "limit": 128},
            "matched": {"data": "same_style", "skip": PREFILL_TOKENS, "limit": 128},
        },
        "preserve": {"data": "benign", "limit": 256},
        "attack": {"name": "prefill", "tokens": PREFILL_TOKENS},
        "evaluation": {
            "probes": {
                "generation": "hazard",
                "refusal": "refusals",
                "detection": "detection",
                "explanation": "explanation",
                "utility": "tasks",
                "likelihood": "benign",
            },
            "max_new_tokens": 24,
            "batch_size": 64,
        },
        "studies": {
            name: {}
            for name in (
                "compactness",
                "transfer",
                "specificity",
                "compression",
                "dissociation",
            )
        },
    }
    return parse_config(values, "the demonstration's configuration")
