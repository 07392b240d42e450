"""From judged replies to rates: a row for each judge, probe and variant."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import TypedDict

from resect.evaluation.decode import distinct
from resect.evaluation.judges import counted_by
from resect.evaluation.judging import Answer
from resect.evaluation.probes import Goal, Probe
from resect.evaluation.spoken import cut_off, cut_off_note
from resect.records import Interval, Outcome, Reply
from resect.stats import Resampler, Sample, cluster_means, relative_drop, same_text

NOT_MEASURED = Interval("", None)
# exp of more is beyond what a float holds.
MOST_NATS = 700.0
# The outcome of a whole hit.
HITS: dict[Goal, Outcome] = {"comply": "complied", "refuse": "refused"}


class Rate(TypedDict):
    """One judge's rate for one probe and variant, with 95 % intervals; None is not measured.

    Attributes:
        counts: What the judge takes for a hit.
        rate: Mean score of the scored replies, which is hits / scored where a score is 0 or 1;
            `low` and `high` are its bounds.
        exact_rate: Share of the scored replies that are a hit as a whole: of outcome `complied`, or
            `refused` where that is what the probe looks for; None where the judge says no outcome.
        graded: Whether `rate` is something else than a share of hits: a score lies between 0 and 1,
            or is not what the reply's outcome says. The same for all variants.
        scored: Scored replies; `unscored` are the others.
        cut_off: Share of the replies that the limit on tokens cut off.
        nll: Mean over the replies, as are `kl` and `repetition`; see `records.Reply`.
        distinct: Different word pairs / all word pairs.
        perplexity: exp of the mean NLL over all tokens.
        drop: For the cut variant the relative drop of the rate against the intact model.
    """

    judge: str
    probe: str
    counts: str | None
    variant: str
    rate: float | None
    low: float | None
    high: float | None
    exact_rate: float | None
    exact_low: float | None
    exact_high: float | None
    graded: bool
    scored: int
    unscored: int
    cut_off: float | None
    nll: float | None
    kl: float | None
    repetition: float | None
    distinct: float | None
    perplexity: float | None
    perplexity_low: float | None
    perplexity_high: float | None
    drop: float | None
    drop_low: float | None
    drop_high: float | None


def summarise(judge: str, variants: Mapping[str, list[Answer]]) -> list[Rate]:
    """Return a row for each probe and variant, from the answers that one judge judged.

    Args:
        judge: Its name.
        variants: Variant to its answers; "intact" is what the others are compared with.
    """
    rates: list[Rate] = []
    for probe in probes_of(variants["intact"]):
        asked = {
            variant: [answer for answer in answers if answer.probe == probe]
            for variant, answers in variants.items()
        }
        rates += _rates(judge, probe, asked)
    return rates


def probes_of(answers: Iterable[Answer]) -> list[Probe]:
    """Return the probes of answers, in order of appearance."""
    return list(dict.fromkeys(answer.probe for answer in answers))


def notes_of(rates: Iterable[Rate]) -> list[str]:
    """Return a warning for each probe and variant whose replies were cut off."""
    warnings = [cut_off_note(r["cut_off"], f"{r['probe']}, {r['variant']}") for r in rates]
    return [warning for warning in dict.fromkeys(warnings) if warning]


def _rates(judge: str, probe: Probe, variants: Mapping[str, list[Answer]]) -> list[Rate]:
    """Return a row for each variant, from its answers to one probe."""
    rates: list[Rate] = []
    resampler = Resampler(probe.name)
    graded = any(map(_is_graded, chain.from_iterable(variants.values())))
    samples: dict[str, Sample] = {}
    for variant, answers in variants.items():
        replies = [answer.reply for answer in answers]
        scores = [answer.judgement.score for answer in answers]
        samples[variant] = _rate(resampler, replies, scores)
        rate = samples[variant].interval("rate")
        exact = _rate(resampler, replies, list(map(_hit, answers))).interval("exact rate")
        drop = NOT_MEASURED
        if variant != "intact":
            drop = relative_drop(samples["intact"], samples[variant]).interval("drop")
        perplexity = _perplexity(replies, resampler)
        words = [reply.text.split() for reply in replies]
        rates.append(
            Rate(
                judge=judge,
                probe=probe.name,
                counts=counted_by(judge, probe),
                variant=variant,
                rate=rate.value,
                low=rate.low,
                high=rate.high,
                exact_rate=exact.value,
                exact_low=exact.low,
                exact_high=exact.high,
                graded=graded,
                scored=sum(score is not None for score in scores),
                unscored=sum(score is None for score in scores),
                cut_off=cut_off(replies),
                nll=_mean([reply.nll for reply in replies]),
                kl=_mean([reply.kl for reply in replies]),
                repetition=_mean([reply.repetition for reply in replies]),
                distinct=distinct(words) if probe.coherent else None,
                perplexity=perplexity.value,
                perplexity_low=perplexity.low,
                perplexity_high=perplexity.high,
                drop=drop.value,
                drop_low=drop.low,
                drop_high=drop.high,
            )
        )
    return rates


def _hit(answer: Answer) -> float | None:
    """Return whether a reply is a hit as a whole; None where it is unscored or has no outcome."""
    judgement = answer.judgement
    if judgement.score is None or judgement.outcome is None:
        return None
    return float(judgement.outcome == HITS[answer.probe.goal])


def _is_graded(answer: Answer) -> bool:
    score, hit = answer.judgement.score, _hit(answer)
    return score is not None and (score not in (0, 1) or hit not in (None, score))


def _rate(resampler: Resampler, replies: Sequence[Reply], scores: Sequence[float | None]) -> Sample:
    """Return the mean over examples of the mean over an example's scored replies.

    Examples of one prompt are drawn together: a file that repeats its questions holds no more
    questions.
    """
    prompts = {reply.example_id: reply.prompt for reply in replies}
    means = cluster_means(scores, [reply.example_id for reply in replies])
    return resampler.rate({"": means}, {"": same_text(list(prompts.values()))})


def _perplexity(replies: Sequence[Reply], resampler: Resampler) -> Interval:
    """Return exp of the mean NLL over all tokens of all texts; the bootstrap is over texts.

    Texts that say the same, or follow the same prompt, are drawn together. A mean over tokens is a
    quotient of sums over texts, which is bounded as the mean of its linear part: to that a text
    adds what its tokens lie above the mean.
    """
    texts = [(reply.nll, reply.tokens, reply) for reply in replies if reply.nll is not None]
    measured = [(nll, tokens, reply) for nll, tokens, reply in texts if tokens]
    if not measured:
        return NOT_MEASURED
    count = sum(tokens for _, tokens, _ in measured)
    mean = sum(nll * tokens for nll, tokens, _ in measured) / count
    weight = len(measured) / count
    parts = [mean + weight * tokens * (nll - mean) for nll, tokens, _ in measured]
    # Records of earlier versions hold no texts.
    words = [reply.prompt or reply.reference or reply.example_id for _, _, reply in measured]
    groups = same_text(words)
    shares: Counter[int] = Counter()
    for group, (_, tokens, _) in zip(groups, measured, strict=True):
        shares[group] += tokens
    bounds = NOT_MEASURED
    # One text says nothing about the spread between texts, nor do several if it decides the mean.
    if 2 * max(shares.values()) <= count:
        bounds = resampler.spread({"": parts}, {"": groups}).interval("")
    low = None if bounds.low is None else max(0.0, bounds.low)
    return Interval("perplexity", _exponential(mean), _exponential(low), _exponential(bounds.high))


def _exponential(value: float | None) -> float | None:
    """Return exp of a value; None where there is none, or no number holds it."""
    return None if value is None or value > MOST_NATS else math.exp(value)


def _mean(values: Sequence[float | None]) -> float | None:
    measured = [value for value in values if value is not None]
    return sum(measured) / len(measured) if measured else None
