"""Labelled replies in invented words, of which a classifier can learn."""

from __future__ import annotations

from typing import Any

from resect.stats import rng

GOOD = ("zorpa", "miltu", "krendo", "vashti")
BAD = ("ollen", "pimba", "trusk", "yarro")
FILL = tuple(f"n{number}x" for number in range(30))
CATEGORIES = ("tides", "looms")


def rows(count: int = 60, *, noise: float = 0.0, replies: int = 2) -> list[dict[str, Any]]:
    """Return labelled replies: hits have words of GOOD, others of BAD.

    Args:
        count: Different prompts.
        noise: How often a label is turned round.
        replies: Replies to each prompt.
    """
    draw = rng(f"test/labelled/{count}/{noise}/{replies}")
    made = []
    for number in range(count):
        for reply in range(replies):
            hit = bool(draw.random() < 0.5)
            words = [*draw.choice(GOOD if hit else BAD, 3), *draw.choice(FILL, 6)]
            turned = draw.random() < noise
            made.append(
                {
                    # No two prompts share half of their words.
                    "prompt": f"p{number}a p{number}b p{number}c",
                    "reply": " ".join([*map(str, words), f"r{reply}"]),
                    "label": float(hit != turned),
                    "category": CATEGORIES[number % 2],
                }
            )
    return made
