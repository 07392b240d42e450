"""Strata of a rate: the scored rows of each category of each seed, named `SEED/CATEGORY`."""

from __future__ import annotations

from typing import NamedTuple

# Of a category; see `with_enough`.
LEAST_PROMPTS = 5


class Scored(NamedTuple):
    """A score, None where there is none, and the group of the prompt."""

    group: str
    score: float | None


def unscored_share(strata: dict[str, list[Scored]]) -> float:
    """Return the share of replies without a score; 1 if there are no replies."""
    scores = [row.score for rows in strata.values() for row in rows]
    return sum(score is None for score in scores) / len(scores) if scores else 1.0


def with_enough(strata: dict[str, list[Scored]]) -> dict[str, list[Scored]]:
    """Return strata of at least `LEAST_PROMPTS`; smaller categories of a seed are one stratum.

    Prompts that say the same count once. A bootstrap within a stratum of one or two prompts has no
    spread to speak of.
    """
    enough: dict[str, list[Scored]] = {}
    for name, rows in strata.items():
        few = len({row.group for row in rows}) < LEAST_PROMPTS
        key = f"{name.partition('/')[0]}/\N{HORIZONTAL ELLIPSIS}" if few else name
        enough.setdefault(key, []).extend(rows)
    return enough


def score_lists(strata: dict[str, list[Scored]]) -> dict[str, list[float | None]]:
    """Return the scores of each stratum."""
    return {name: [row.score for row in rows] for name, rows in strata.items()}


def group_lists(strata: dict[str, list[Scored]]) -> dict[str, list[str]]:
    """Return the groups of the prompts of each stratum."""
    return {name: [row.group for row in rows] for name, rows in strata.items()}
