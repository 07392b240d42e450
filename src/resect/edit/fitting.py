"""Rows that a trainer is given: no longer than the context of the model, and what that took away.

TRL shortens rows and drops others without a word, so it is given no limit, and rows that fit.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from resect.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

# The label of a token that is not trained on, which torch's cross-entropy leaves out.
IGNORED = -100
_log = logging.getLogger(__name__)


def fitting(rows: Dataset, limit: int) -> Dataset:
    """Return rows of tokens without what is behind a limit, and log how many that shortens.

    Args:
        rows: Rows of `SFTTrainer`.
        limit: Most tokens of a row.

    Raises:
        InputError: Of one nothing is left to train on.
    """
    longer = [row for row in rows if len(row["input_ids"]) > limit]
    if not longer:
        return rows
    empty = sum(not any(_taught(row)[:limit]) for row in longer)
    if empty:
        raise InputError(
            f"the prompts of {empty} of {len(rows)} examples fill the context of the model",
            got="nothing to train on in them",
            allowed=f"prompts of less than {limit} tokens",
            fix="shorten them, or leave them out",
        )
    _log.warning(
        "%d of %d completions are trained on without their ends, because with their prompts they "
        "are longer than the context of the model, %d tokens",
        len(longer),
        len(rows),
        limit,
    )
    return rows.map(lambda row: {name: tokens[:limit] for name, tokens in row.items()})


def _taught(row: Mapping[str, Sequence[int]]) -> list[bool]:
    """Tell of each token of a row whether it is trained on; TRL 1.0 has a mask for its labels."""
    if "labels" in row:
        return [label != IGNORED for label in row["labels"]]
    return [bool(token) for token in row["completion_mask"]]


def fitting_pairs(rows: Dataset, limit: int) -> Dataset:
    """Return pairs of tokens without what is behind a limit, and log how many that shortens.

    Args:
        rows: Rows of `DPOTrainer`: `prompt_ids`, `chosen_ids` and `rejected_ids`.
        limit: Most tokens of a prompt and an answer.

    Raises:
        InputError: Of one the answers do not differ in what is left.
    """
    shortened = [_shortened(row, limit) for row in rows]
    longer = [short for row, short in zip(rows, shortened, strict=True) if row | short != row]
    if not longer:
        return rows
    empty = sum(short["chosen_ids"] == short["rejected_ids"] for short in longer)
    if empty:
        raise InputError(
            f"the answers of {empty} of {len(rows)} pairs do not differ within the context of the "
            "model",
            got="nothing to prefer in them",
            allowed=f"prompts of less than {limit} tokens, and answers that differ before token "
            f"{limit}",
            fix="shorten them, or leave them out",
        )
    _log.warning(
        "the answers of %d of %d pairs are compared without their ends, because with their prompts "
        "they are longer than the context of the model, %d tokens",
        len(longer),
        len(rows),
        limit,
    )
    return rows.map(lambda row: _shortened(row, limit))


def _shortened(row: Mapping[str, Sequence[int]], limit: int) -> dict[str, Sequence[int]]:
    """Return the answers of a pair as far as they fit behind its prompt."""
    room = max(0, limit - len(row["prompt_ids"]))
    return {name: row[name][:room] for name in ("chosen_ids", "rejected_ids")}
