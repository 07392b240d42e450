"""Judgements on replies, and the rows of record files, which are written and read here alone.

A row holds a reply and what a judge says of it: a column for each field of `Reply`, then one for
each field of `Judgement`, null before anything is judged. Writers may put columns of their own in
front. `resect eval` puts `variant` and `judge_at`: its files hold a row for each reply and judge,
and `judge_at` numbers the judges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from resect import files
from resect.evaluation.ask import EvaluationSettings
from resect.evaluation.coherence import floor_for, incoherent, with_outcome
from resect.evaluation.judges import find_judge, label_of
from resect.evaluation.judges.content import content_share
from resect.evaluation.likelihood import score
from resect.evaluation.probes import Probe, find_probe
from resect.evaluation.recognition import of_two
from resect.evaluation.spoken import lacks_answer, to_judge
from resect.evaluation.tasks import is_marked, mark_of
from resect.records import Judgement, Reply

NOT_JUDGED = Judgement("none", "none", None, reason="measured, not judged")
Row = dict[str, object]


class Answer(NamedTuple):
    """A reply with the probe that it answers, and what a judge says of it once it is judged."""

    reply: Reply
    probe: Probe
    judgement: Judgement = NOT_JUDGED


def answers_of(replies: Sequence[Reply]) -> list[Answer]:
    """Return replies with their probes, not yet judged.

    Raises:
        InputError: A reply names an unknown probe.
    """
    probes = {name: find_probe(name) for name in dict.fromkeys(reply.probe for reply in replies)}
    return [Answer(reply, probes[reply.probe]) for reply in replies]


def judge_answers(
    answers: Sequence[Answer], judge: str, coherence: str | None = None
) -> list[Answer]:
    """Return the answers with judgements; needs no model but the judge's own.

    Args:
        answers: Answers to any probes; those to a probe that is never judged stay as they are.
        judge: Name of the judge for the probes that leave it to the configuration.
        coherence: The floor of coherence of that judge, as `evaluation.coherence` reads it; None
            for the judge's own.

    A judge sees the answer alone, without a thought before it; a thought without an answer is
    unscored, and what is below the floor is incoherent. What lm-eval has marked keeps its mark.

    Raises:
        InputError: An unknown judge, or a floor that cannot be read.
    """
    floor = floor_for(judge, coherence)
    judges = {"configured": find_judge(judge), "exact": find_judge("exact")}
    judged = list(answers)
    for judged_by, judge_many in judges.items():
        positions = [
            position
            for position, answer in enumerate(answers)
            if answer.probe.judged == judged_by and not is_marked(answer.reply)
        ]
        replies = {position: to_judge(answers[position].reply) for position in positions}
        floored = floor if judged_by == "configured" else None
        answered = [position for position in positions if not lacks_answer(replies[position])]
        broken = [
            position
            for position in answered
            if floored is not None and floored.broken(replies[position])
        ]
        answered = [position for position in answered if position not in set(broken)]
        judgements = judge_many(
            [replies[position] for position in answered],
            [answers[position].probe.goal for position in answered],
        )
        name = _short_name(judge) if judged_by == "configured" else judged_by
        said = dict.fromkeys(positions, _unanswered(name)) | dict(
            zip(answered, judgements, strict=True)
        )
        said |= {position: incoherent(label_of(judge), replies[position]) for position in broken}
        for position, judgement in said.items():
            if floored is not None:
                judgement = with_outcome(judgement, answers[position].probe.goal)
            judged[position] = answers[position]._replace(judgement=judgement)
    return [_measured(answer) for answer in judged]


def _measured(answer: Answer) -> Answer:
    """Return an answer whose score was measured with it; any other as it is."""
    if is_marked(answer.reply):
        return answer._replace(judgement=mark_of(answer.reply))
    if answer.probe.judged == "likelihood":
        return answer._replace(judgement=of_two(answer.reply))
    return answer


def _short_name(judge: str) -> str:
    """Return what a judge is called that has not seen a reply; a fitted one by its file, too."""
    kind = judge.partition(":")[0]
    return label_of(judge) if kind == "fitted" else kind


def _unanswered(judge: str) -> Judgement:
    """Return what every judge says of a thought without an answer."""
    return Judgement(judge, f"{judge}/no-answer", None, reason="a thought without an answer")


def judge_replies(replies: Sequence[Reply], settings: EvaluationSettings) -> list[Judgement]:
    """Judge stored replies; needs no model but the judge's own, and none for a likelihood.

    Raises:
        InputError: An unknown judge, or a floor of coherence that cannot be read.
    """
    if settings.measure == "likelihood":
        return [mark_of(reply) if is_marked(reply) else score(reply) for reply in replies]
    answers = judge_answers(answers_of(replies), settings.judge, settings.coherence)
    return [answer.judgement for answer in answers]


def rows_of(replies: Sequence[Reply], judgements: Sequence[Judgement] | None) -> list[Row]:
    """Return a row for each reply; the columns of the judgement are null if there are none yet."""
    blank: Row = {column.name: None for column in fields(Judgement)}
    marked = any(map(is_marked, replies))
    # Fields by name; what is in them is shared with the replies and not copied.
    rows: list[Row] = [dict(vars(reply)) for reply in replies]
    if not marked:
        # Records look as they did before there were marks.
        rows = [{key: value for key, value in row.items() if key != "mark"} for row in rows]
    if judgements is None:
        return [{**row, **blank} for row in rows]
    return [{**row, **vars(judged)} for row, judged in zip(rows, judgements, strict=True)]


def reply_of(row: Mapping[str, Any]) -> Reply:
    """Return the reply that a row holds."""
    names = {column.name for column in fields(Reply)}
    return Reply(**{key: value for key, value in row.items() if key in names})


def judgement_of(row: Mapping[str, Any]) -> Judgement:
    """Return the judgement that a judged row holds."""
    return Judgement(**{column.name: row[column.name] for column in fields(Judgement)})


def graded_again(rows: Sequence[Row]) -> list[Row]:
    """Return judged rows with today's score where the exact judge now grades by content words.

    Version 0.1.0 judged such replies all or nothing. In a run that is gone on with, scores of both
    kinds would be compared with each other.
    """
    return [_graded_again(row) for row in rows]


def _graded_again(row: Row) -> Row:
    if row["judge"] != "exact":
        return row
    reply = reply_of(row)
    if content_share(reply.key, reply.prefix, reply.text) is None:
        return row
    (judgement,) = find_judge("exact")([reply], [find_probe(reply.probe).goal])
    return row | vars(judgement)


def write_asked(path: Path, variant: str, answers: Sequence[Answer]) -> None:
    """Write the record file of one variant of `resect eval` before any judge has seen it."""
    rows = rows_of([answer.reply for answer in answers], None)
    files.write_parquet(path, [{"variant": variant, "judge_at": 0} | row for row in rows])


def write_judged(path: Path, variant: str, by_judge: Sequence[Sequence[Answer]]) -> None:
    """Write the record file of one variant of `resect eval`.

    Args:
        path: The file.
        variant: Name of the variant.
        by_judge: For each judge, in order, the answers that it judged.
    """
    rows = [
        {"variant": variant, "judge_at": number} | row
        for number, answers in enumerate(by_judge)
        for row in rows_of(
            [answer.reply for answer in answers], [answer.judgement for answer in answers]
        )
    ]
    files.write_parquet(path, rows)


def read_replies(path: Path) -> list[Reply]:
    """Return the replies of one variant of `resect eval`, each once.

    Raises:
        InputError: The file is no whole record.
    """
    with files.expecting(path, "record"):
        return [reply_of(row) for row in files.read_parquet(path) if row["judge_at"] == 0]
