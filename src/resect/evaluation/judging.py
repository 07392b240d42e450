"""Verdicts on replies, and the rows of records that hold both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from resect.evaluation.ask import EvaluationSettings
from resect.evaluation.judges import find_judge
from resect.evaluation.probes import find_probe
from resect.records import Judgement, Reply


def judge_replies(replies: Sequence[Reply], settings: EvaluationSettings) -> list[Judgement]:
    """Judge stored replies; needs no model but the judge's own.

    Raises:
        InputError: An unknown judge.
    """
    judges = {"configured": find_judge(settings.judge), "exact": find_judge("exact")}
    never = Judgement("none", "none", None, reason="measured, not judged")
    verdicts = [never] * len(replies)
    for kind, judge in judges.items():
        probes = [find_probe(reply.probe) for reply in replies]
        places = [at for at, probe in enumerate(probes) if probe.judged == kind]
        found = judge([replies[at] for at in places], [probes[at].asked for at in places])
        for at, verdict in zip(places, found, strict=True):
            verdicts[at] = verdict
    return verdicts


def rows_of(replies: Sequence[Reply], verdicts: Sequence[Judgement] | None) -> list[dict[str, Any]]:
    """Return flat rows for a record file; verdict columns are null before judging."""
    blank: dict[str, Any] = {column.name: None for column in fields(Judgement)}
    return [
        {
            **asdict(reply),
            **(blank if verdicts is None else asdict(verdicts[at])),
        }
        for at, reply in enumerate(replies)
    ]


def reply_of(row: Mapping[str, Any]) -> Reply:
    """Return the reply that a record row holds."""
    names = {column.name for column in fields(Reply)}
    return Reply(**{key: value for key, value in row.items() if key in names})
