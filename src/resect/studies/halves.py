"""Which prompts stand together, and on which half: one to choose a cut on, one to test it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

from resect.files.origin import hash_value
from resect.stats import near_duplicates

# The prompts on which a cut is chosen, those on which it is tested, or all.
Half = Literal["selection", "test", ""]


class PromptOf(NamedTuple):
    """A category, and the text of a prompt of it."""

    category: str
    text: str


class Place(NamedTuple):
    """Where a prompt stands: with which others, and on which half."""

    group: str
    half: Half


@lru_cache(maxsize=512)
def deal(prompts: Sequence[PromptOf], alike: float) -> list[Place]:
    """Return the group and the half of each prompt.

    Prompts of a category that say the same are a group, named by one of its texts, and stay
    together. Within each category groups go to the two halves in turn, in the order of a hash of
    their name, so that the halves are of one size and do not depend on the order of a file.
    """
    places: dict[PromptOf, Place] = {}
    half_of: dict[str, Half] = {}
    for category in sorted({prompt.category for prompt in prompts}):
        texts = sorted({prompt.text for prompt in prompts if prompt.category == category})
        groups: dict[int, list[str]] = {}
        for number, text in zip(near_duplicates(texts, alike), texts, strict=True):
            groups.setdefault(number, []).append(text)
        turn = 0
        for group in sorted(groups.values(), key=lambda group: hash_value(["half", group[0]])):
            # The same text may stand in two categories.
            dealt = [half_of[text] for text in group if text in half_of]
            half: Half = dealt[0] if dealt else ("test", "selection")[turn % 2]
            turn += not dealt
            half_of |= dict.fromkeys(group, half)
            places |= {PromptOf(category, text): Place(group[0], half) for text in group}
    return [places[prompt] for prompt in prompts]
