"""Deal prompts to calibration and evaluation so that no two that say the same stand apart.

Near-duplicates (`resect.stats.groups`) of a scored prompt would make held-out prompts look better
than they are. A group goes to one side as a whole; of a group that is asked, one prompt is.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from resect import stats
from resect.errors import InputError
from resect.stats.groups import ALIKE, near_duplicates


class Dealt(NamedTuple):
    """Places of prompts in the list they were dealt from, rising.

    Attributes:
        calibration: Those to score.
        evaluation: Those to ask.
    """

    calibration: tuple[int, ...]
    evaluation: tuple[int, ...]


def deal_prompts(
    prompts: Sequence[str],
    *,
    calibration: int,
    evaluation: int,
    label: str,
    seed: int = 0,
    alike: float = ALIKE,
) -> Dealt:
    """Draw prompts for both sides.

    Args:
        prompts: All there are.
        calibration: How many to score.
        evaluation: How many to ask.
        label: Name of the draw.
        seed: Its seed.
        alike: Least share of common content words, in (0, 1], that makes two prompts alike.

    Raises:
        InputError: There are too few.
    """
    groups = near_duplicates(prompts, alike)
    members: dict[int, list[int]] = {}
    for place, group in enumerate(groups):
        members.setdefault(group, []).append(place)
    order = stats.rng(f"sides/{label}", seed).permutation(len(members)).tolist()
    asked = [members[group][0] for group in order[:evaluation]]
    scored = [place for group in order[evaluation:] for place in members[group]]
    if len(asked) < evaluation or len(scored) < calibration:
        raise InputError(
            f"too few prompts of the set {label} that say different things",
            got=f"{len(prompts)} prompts in {len(members)} groups of near-duplicates",
            allowed=f"{evaluation} to ask and {calibration} others to score",
            fix="ask for fewer, or give more prompts",
        )
    return Dealt(tuple(sorted(scored[:calibration])), tuple(sorted(asked)))


def within_category(prompts: Sequence[str], categories: Sequence[str]) -> list[int]:
    """Return the places of prompts that say nothing which a prompt of another category says.

    Of near-duplicates those stay that are of the category of the first of them.

    Args:
        prompts: All there are.
        categories: The category of each.
    """
    category_of: dict[int, str] = {}
    groups = near_duplicates(prompts, ALIKE)
    return [
        number
        for number, (group, category) in enumerate(zip(groups, categories, strict=True))
        if category_of.setdefault(group, category) == category
    ]


def apart_from(used: Collection[str], prompts: Sequence[str]) -> list[int]:
    """Return the places of prompts that say nothing which a used one of them says.

    Args:
        used: Some of the prompts.
        prompts: All there are.
    """
    groups = near_duplicates(prompts, ALIKE)
    taken = {group for group, text in zip(groups, prompts, strict=True) if text in used}
    return [number for number, group in enumerate(groups) if group not in taken]
