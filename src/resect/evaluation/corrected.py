"""Rates corrected for how the judge errs: a row for each judge, probe, variant and category.

A fitted judge knows its sensitivity and specificity from labelled replies that it had not seen
(`judges/error.py`), so what it calls a hit is corrected for them (`stats/correct.py`). Over all
replies the error over all labelled replies counts, in a category that of the category, if enough
was labelled there. That asks that the judge errs on these replies as it did on the labelled ones.
Where some of these very replies are labelled nothing of the kind is asked, and any judge can be
corrected.

A rate that cannot be corrected is None, and the row says why. Incoherent replies are no hits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypedDict

from resect.evaluation.judges import counted_by
from resect.evaluation.judges.error import LEAST, HeldOut, calls_hit, error_rates, sizes
from resect.evaluation.judges.fitted import Fitted, fitted_of
from resect.evaluation.judging import Answer, Row
from resect.evaluation.labels import Labels, key_of
from resect.evaluation.probes import Goal, Probe
from resect.records import Interval
from resect.stats import (
    ErrorRates,
    Resampler,
    Sample,
    cluster_means,
    prediction_powered,
    rogan_gladen,
    same_text,
)

BY_ERROR = "judge's error"
BY_LABELS = "labels of these replies"
ALL = "all"
ASSUMED = (
    "corrected rates take it that the judge errs on these replies as it did on the labelled ones; "
    "label some of these and give --labels to do without that"
)


class Corrected(TypedDict):
    """A corrected rate with its 95 % interval; None is not measured.

    Attributes:
        counts: What the judge takes for a hit.
        category: The category; "all" for all replies together.
        method: What it is corrected by.
        called: Share of the replies that the judge calls hits.
        rate: Share of true hits; `low` and `high` are its bounds, the judge's own doubt included.
        incoherent: Share of the replies that are incoherent, which are no hits.
        replies: Scored replies.
        labelled: Those of them with a label.
        reason: Why there is no rate; empty if there is one.
    """

    judge: str
    probe: str
    counts: str | None
    variant: str
    category: str
    method: str
    called: float | None
    called_low: float | None
    called_high: float | None
    rate: float | None
    low: float | None
    high: float | None
    incoherent: float | None
    replies: int
    labelled: int
    reason: str


class _Asked(NamedTuple):
    """What is corrected: the answers of a judge to a probe, and how it was measured."""

    judge: str
    probe: Probe
    fitted: Fitted | None
    labels: Mapping[tuple[str, ...], bool]
    resampler: Resampler

    @property
    def opposite(self) -> bool:
        """Whether the probe looks for what a label calls a miss."""
        means: Goal = "comply" if self.fitted is None else self.fitted.means
        return means != self.probe.goal


def judge_error_rows(judges: Sequence[str]) -> list[Row]:
    """Return how the fitted ones of some judges err, by category; none of the others is known."""
    rows: list[Row] = []
    for judge in judges:
        if (fitted := fitted_of(judge)) is not None:
            rows += [{"judge": judge} | dict(row) for row in fitted.errors]
    return rows


def corrected_rows(
    judge: str,
    variants: Mapping[str, Sequence[Answer]],
    labels: Labels | None = None,
    *,
    by_category: bool = True,
) -> list[Corrected]:
    """Return the corrected rates of a judge; none for one of which nothing is known.

    Args:
        judge: Its name.
        variants: Variant to the answers that it judged.
        labels: Labels of some of these replies.
        by_category: Whether categories stand apart, too.

    Raises:
        InputError: The file of a fitted judge cannot be read.
    """
    fitted = fitted_of(judge)
    if fitted is None and labels is None:
        return []
    hits = {} if labels is None else {row.key: row.hit for row in labels.rows}
    probes = dict.fromkeys(answer.probe for answers in variants.values() for answer in answers)
    errors: dict[str, ErrorRates | str] = {}
    rows: list[Corrected] = []
    for probe in probes:
        if probe.judged != "configured":
            continue
        asked = _Asked(judge, probe, fitted, hits, Resampler(probe.name))
        for variant, answers in variants.items():
            answered = [answer for answer in answers if answer.probe == probe]
            names = sorted({answer.reply.category for answer in answered} - {""})
            for category in (ALL, *(names if by_category and len(names) > 1 else ())):
                if fitted is not None and category not in errors:
                    errors[category] = errors_in(fitted.held_out, category)
                part = [a for a in answered if category in (ALL, a.reply.category)]
                rows += _rows(asked, variant, category, part, errors.get(category))
    return rows


def errors_in(held_out: HeldOut, category: str) -> ErrorRates | str:
    """Return how a judge errs in a category, or why that is not known."""
    part = held_out if category == ALL else held_out.of(category.strip().lower())
    count = sizes(part)
    if min(count.values()) < LEAST:
        return (
            f"the judge was measured on {count[True]} hits and {count[False]} others of this "
            f"category, of at least {LEAST} each"
        )
    rates = error_rates(part)
    if not rates.informed > 0:
        return (
            f"sensitivity {rates.sensitivity.value:.3g} and specificity "
            f"{rates.specificity.value:.3g} are no better than chance: a rate of this judge says "
            "nothing"
        )
    return rates


def _rows(
    asked: _Asked,
    variant: str,
    category: str,
    answers: Sequence[Answer],
    errors: ErrorRates | str | None,
) -> list[Corrected]:
    """Return the rows of one part of a variant's answers: one for each method that there is."""
    scored = [answer for answer in answers if answer.judgement.score is not None]
    goal = asked.probe.goal
    labels = [_label(answer, asked) for answer in scored]
    hits = _rate(asked, scored, [float(calls_hit(answer.judgement, goal)) for answer in scored])
    judged = _rate(
        asked, scored, [float(answer.judgement.outcome != "incoherent") for answer in scored]
    )
    called = hits.interval("called")
    blank = Corrected(
        judge=asked.judge,
        probe=asked.probe.name,
        counts=counted_by(asked.judge, asked.probe),
        variant=variant,
        category=category,
        method=BY_ERROR,
        called=called.value,
        called_low=called.low,
        called_high=called.high,
        rate=None,
        low=None,
        high=None,
        incoherent=None if math.isnan(judged.value) else 1 - judged.value,
        replies=len(scored),
        labelled=sum(label is not None for label in labels),
        reason="" if scored else "no reply has a score",
    )
    rows: list[Corrected] = []
    if isinstance(errors, str):
        rows.append({**blank, "reason": errors})
    elif errors is not None:
        matched = errors.of_the_opposite() if asked.opposite else errors
        rows.append(_with(blank, rogan_gladen(hits, judged, matched).interval("rate")))
    if asked.labels:
        rows.append(_with_labels({**blank, "method": BY_LABELS}, asked, scored, labels))
    return rows


def _with(row: Corrected, rate: Interval) -> Corrected:
    return {**row, "rate": rate.value, "low": rate.low, "high": rate.high}


def _with_labels(
    row: Corrected, asked: _Asked, scored: Sequence[Answer], labels: Sequence[float | None]
) -> Corrected:
    if row["labelled"] < LEAST:
        reason = f"{row['labelled']} of these replies have a label, of at least {LEAST}"
        return {**row, "reason": reason}
    scores = [answer.judgement.score for answer in scored]
    replies = [answer.reply for answer in scored]
    examples = [reply.example_id for reply in replies]
    prompts = {reply.example_id: reply.prompt for reply in replies}
    rate = prediction_powered(
        asked.resampler,
        {"": cluster_means(scores, examples)},
        {"": cluster_means(labels, examples)},
        {"": same_text(list(prompts.values()))},
    )
    return _with(row, rate.interval("rate"))


def _rate(asked: _Asked, answers: Sequence[Answer], scores: Sequence[float]) -> Sample:
    """Return the mean over examples of the mean over an example's replies, as `rates.py` does."""
    prompts = {answer.reply.example_id: answer.reply.prompt for answer in answers}
    means = cluster_means(scores, [answer.reply.example_id for answer in answers])
    return asked.resampler.rate({"": means}, {"": same_text(list(prompts.values()))})


def _label(answer: Answer, asked: _Asked) -> float | None:
    """Return whether people call a reply what the probe looks for; None where none did."""
    hit = asked.labels.get(key_of(answer.reply.prompt, answer.reply.text))
    return None if hit is None else float(hit != asked.opposite)
