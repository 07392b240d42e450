"""Measure any judge on replies that people labelled: what `resect judge check` calls."""

from __future__ import annotations

from dataclasses import dataclass

from resect.errors import InputError
from resect.evaluation.judges import find_judge
from resect.evaluation.judges.error import ErrorRow, HeldOut, calls_hit, error_rows, is_chance
from resect.evaluation.judges.fitted import fitted_of
from resect.evaluation.labels import Labelled, Labels
from resect.evaluation.probes import Goal
from resect.records import Reply
from resect.stats import near_duplicates


@dataclass(frozen=True)
class Checked:
    """How a judge errs on some labelled replies.

    Attributes:
        rows: Over all replies, and by category.
        judged: Replies that were put to it.
        seen: Replies that were left out, since a fitted judge was fitted on their prompts.
        chance: Whether it is no better than chance, so that no rate of it can be corrected.
    """

    rows: list[ErrorRow]
    judged: int
    seen: int
    chance: bool


def check_judge(judge: str, labels: Labels, means: Goal | None = None) -> Checked:
    """Put labelled replies to a judge and compare.

    Args:
        judge: Its name.
        labels: The replies.
        means: What a label of 1 says of a reply; None for what it said where the judge was fitted,
            and that it complies for any other judge.

    Raises:
        InputError: The judge is unknown, or it was fitted on the prompts of all these replies.
    """
    judge_many, fitted = find_judge(judge), fitted_of(judge)
    goal: Goal = means or ("comply" if fitted is None else fitted.means)
    rows = [row for row in labels.rows if fitted is None or not fitted.saw(row.prompt)]
    if not rows:
        raise InputError(
            "the judge was fitted on the prompts of all these replies",
            got=", ".join(labels.hashes),
            allowed="labelled replies to other prompts",
            fix="its file has what cross-validation gave, under errors",
        )
    judgements = judge_many(
        [_reply(row, number, goal) for number, row in enumerate(rows)], [goal] * len(rows)
    )
    held_out = HeldOut(
        tuple(near_duplicates([row.prompt for row in rows])),
        tuple(row.category for row in rows),
        tuple(row.hit for row in rows),
        tuple(None if said.score is None else calls_hit(said, goal) for said in judgements),
        tuple(said.score for said in judgements),
    )
    measured = error_rows(held_out)
    left_out = len(labels.rows) - len(rows)
    return Checked(measured, len(rows), left_out, is_chance(measured[0]))


def _reply(row: Labelled, number: int, goal: Goal) -> Reply:
    return Reply(
        example_id=str(number),
        probe="generation" if goal == "comply" else "refusal",
        attack="none",
        category=row.category,
        prompt=row.prompt,
        prefix="",
        text=row.text,
        key=dict(row.answers),
    )
