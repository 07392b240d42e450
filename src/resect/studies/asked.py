"""What the rows of a run say of one prompt each."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from resect.studies.halves import Half


class Asked(NamedTuple):
    """What a row says of one prompt.

    Attributes:
        category: The category of the prompt.
        group: Prompts that say the same share it, and are drawn together.
        half: On which half of the prompts it is.
        score: In [0, 1]; None if it has none.
        outcome: What the reply was; None if that is unknown.
        nll: Of the answer, nats per token; None if it was not measured.
        example: Its id, which several replies to it share.
    """

    category: str
    group: str
    half: Half
    score: float | None
    outcome: str | None
    nll: float | None = None
    example: str = ""


def best_of(rows: Iterable[Asked], outcomes: Collection[str]) -> list[Asked]:
    """Return one row a prompt, with the best score of its replies."""
    replies: dict[str, list[Asked]] = {}
    for row in rows:
        if outcomes:
            hit = None if row.outcome is None else float(row.outcome in outcomes)
            row = row._replace(score=hit)
        replies.setdefault(row.example, []).append(row)
    return [together[0]._replace(score=_largest(together)) for together in replies.values()]


def _largest(rows: Sequence[Asked]) -> float | None:
    scores = [row.score for row in rows if row.score is not None]
    largest = max(scores, default=0.0)
    # A reply without a score may have been the best one, unless none can be better.
    return largest if len(scores) == len(rows) or largest >= 1 else None
