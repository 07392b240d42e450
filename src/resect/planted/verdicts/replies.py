"""What is answered in a run that never ran, and the arithmetic that draws it."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from resect.stats import Array
from resect.studies.halves import Place, PromptOf, deal

# Of NLLs: how much rises and intact ones differ from prompt to prompt (standard deviation of the
# logarithm), what is added by chance and what a broken model adds (nats).
RISES, FACTORS, JITTER, BROKEN_RISE = 0.5, 0.4, 0.02, 10.0
OUTCOMES = ("wrong", "partial", "complied", "refused", "incoherent")


class Replies(NamedTuple):
    """What was answered to each prompt.

    Attributes:
        scores: [prompts], NaN where nothing could be scored.
        kinds: [prompts], numbers of `OUTCOMES`, -1 where nothing could be scored or was said.
        nlls: [prompts], nats a token, NaN where nothing could be scored; None if replies are asked
            for.
    """

    scores: Array
    kinds: np.ndarray
    nlls: Array | None = None

    def outcomes(self) -> list[str | None]:
        """Return an outcome a prompt, None where nothing could be scored."""
        return [None if kind < 0 else OUTCOMES[kind] for kind in self.kinds]

    def graded(self) -> list[float | None]:
        """Return a score a prompt, None where nothing could be scored."""
        return known(self.scores)

    def read(self) -> list[float | None]:
        """Return an NLL a prompt, None where there is none."""
        return [None] * len(self.scores) if self.nlls is None else known(self.nlls)


@lru_cache(maxsize=256)
def texts_of(opening: str, count: int) -> tuple[str, ...]:
    """Return prompts of one word each, which no two have in common."""
    return tuple(f"{opening}n{number:04}" for number in range(count))


@lru_cache(maxsize=256)
def dealt(texts: tuple[str, ...], categories: tuple[str, ...], alike: float) -> list[Place]:
    """Return the half and the group of each prompt; `alike` is `evaluation.alike`."""
    prompts = tuple(map(PromptOf, categories, texts))
    return deal(prompts, alike)


def known(numbers: Array) -> list[float | None]:
    """Return numbers with None in the place of NaN."""
    return [None if math.isnan(number) else number for number in numbers.tolist()]


def factors(normal: Array, deviation: float) -> Array:
    """Return log-normal factors of mean 1."""
    values: Array = np.exp(deviation * normal - deviation**2 / 2)
    return values


def quantiles(shares: Array) -> Array:
    """Return below which value a standard normal lies with each probability in [0, 1]."""
    from scipy import special  # a part of a second to load

    values: Array = special.ndtri(np.clip(shares, 0.0, 1.0))
    return values
