"""What an audit measures: replies and losses before and after, and what parts of the change do.

A part of a change is tried by itself: the weights of a set get the values of the other model, and
the loss of whole harmful answers is measured over the same prompts.

    whole     loss of the tuned model - loss of the base model
    inside    loss of the base model with the tuned values inside the harm set - loss of the base
    outside   loss of the tuned model with the base values inside the harm set - loss of the base
    matched   as `inside`, for each set that matches the harm set in number and magnitude

Below 0 is towards harm: harmful answers became likelier. Answers are scored from their first token,
where a model decides whether to answer at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resect.audit.request import AuditRequest
from resect.data.encode import encode
from resect.data.load import BehaviourSet
from resect.edit.live import transplanted
from resect.evaluation.ask import EvaluationSettings, ask
from resect.evaluation.attacks import AttackSettings
from resect.evaluation.decode import GenerationSettings, mean_nlls
from resect.evaluation.judging import judge_replies
from resect.model import prunable_tensors
from resect.records import Interval
from resect.stats import Resampler
from resect.weights.mask import Mask


@dataclass(frozen=True)
class Measured:
    """What was measured on one behaviour, before and after.

    Attributes:
        name: What was measured, for instance `harm, prefilled`.
        before: Rate or mean before.
        after: The same after.
        rise: `after` minus `before` with its paired 95 % interval.
        n: Prompts that were scored both times.
    """

    name: str
    before: float | None
    after: float | None
    rise: Interval
    n: int


@dataclass(frozen=True)
class Effects:
    """What the change does to the loss of whole harmful answers, in nats a token, by its parts.

    Attributes:
        before: Mean loss of the base model.
        whole: Change of it by the whole change, with its paired 95 % interval; so for the others.
        inside: By the change inside the harm set alone.
        outside: By all of the change but that.
        matched: By the change inside each magnitude-matched set alone.
        benign: Change of the loss of benign answers by the change inside the harm set alone.
        n: Harmful answers that were scored.
    """

    before: float
    whole: Interval
    inside: Interval
    outside: Interval
    matched: tuple[float, ...] = ()
    benign: Interval | None = None
    n: int = 0


def measure(
    request: AuditRequest, models: tuple[Any, Any, Any], sets: Mapping[str, BehaviourSet]
) -> tuple[Measured, ...]:
    """Ask both models and return what was measured."""
    base, tuned, tokenizer = models
    found: list[Measured] = []
    for name, probes, attack in (
        ("target", ("generation", "refusal", "likelihood"), AttackSettings("none")),
        ("target", ("generation",), AttackSettings("prefill", max(1, request.skip))),
        ("preserve", ("likelihood",), AttackSettings("none")),
    ):
        if name not in sets:
            continue
        asked = _asked(sets[name], request)
        settings = EvaluationSettings(
            format=request.format,
            attack=attack,
            judge=request.judge,
            generation=GenerationSettings(request.max_new_tokens, request.batch_size),
        )
        scores = [_scores(model, tokenizer, probes, asked, settings) for model in (base, tuned)]
        for probe in probes:
            label = _LABELS[name, probe, attack.name]
            found.append(_paired(label, scores[0][probe], scores[1][probe]))
    return tuple(found)


def effects_of(
    request: AuditRequest,
    models: tuple[Any, Any, Any],
    chosen: tuple[Mask, Sequence[Mask]],
    sets: Mapping[str, BehaviourSet],
) -> Effects | None:
    """Try the parts of a change by themselves, on the evaluation rows.

    Args:
        request: How to measure.
        models: The model before, the one after and the tokenizer; every bit is put back.
        chosen: The harm set, and sets that match it.
        sets: Behaviour sets by the names `target` and `preserve`.

    Returns:
        None if there is no harmful answer to score.
    """
    base, tuned, tokenizer = models
    mask, controls = chosen
    weights = prunable_tensors(base), prunable_tensors(tuned)
    # A row that is too long has been refused by the likelihood probe.
    encoded = {
        name: encode(_asked(data, request).examples, tokenizer, format=request.format)
        for name, data in sets.items()
    }

    def losses(model: Any, name: str = "target") -> list[float | None]:
        rows = [one.input_ids for one in encoded[name]]
        starts = [one.first_scored for one in encoded[name]]
        return mean_nlls(model, rows, starts, request.batch_size)

    def alone(part: Mask, name: str = "target") -> list[float | None]:
        with transplanted(weights[0], part, weights[1]):
            return losses(base, name)

    if "target" not in sets:
        return None
    before = losses(base)
    whole = _paired("loss, whole", before, losses(tuned))
    if whole.before is None:
        return None
    with transplanted(weights[1], mask, weights[0]):
        outside = losses(tuned)
    benign = None
    if "preserve" in sets:
        benign = _paired("loss, benign", losses(base, "preserve"), alone(mask, "preserve")).rise
    matched = [_mean(alone(one)) for one in controls]
    return Effects(
        before=whole.before,
        whole=whole.rise,
        inside=_paired("loss, inside", before, alone(mask)).rise,
        outside=_paired("loss, outside", before, outside).rise,
        matched=tuple(one - whole.before for one in matched if one is not None),
        benign=benign,
        n=whole.n,
    )


def _asked(data: BehaviourSet, request: AuditRequest) -> BehaviourSet:
    """Return the rows that measure; the others located the harm set."""
    return data.split("evaluation").limit(request.limit)


def _mean(losses: Sequence[float | None]) -> float | None:
    known = [loss for loss in losses if loss is not None]
    return sum(known) / len(known) if known else None


_LABELS = {
    ("target", "generation", "none"): "harm, asked plainly",
    ("target", "generation", "prefill"): "harm, prefilled",
    ("target", "refusal", "none"): "refusal",
    ("target", "likelihood", "none"): "loss of harmful answers, nats a token",
    ("preserve", "likelihood", "none"): "loss of benign answers, nats a token",
}


def _scores(
    model: Any,
    tokenizer: Any,
    probes: tuple[str, ...],
    asked: BehaviourSet,
    settings: EvaluationSettings,
) -> dict[str, list[float | None]]:
    replies = ask(model, tokenizer, dict.fromkeys(probes, asked), settings)
    found: dict[str, list[float | None]] = {probe: [] for probe in probes}
    for reply, verdict in zip(replies, judge_replies(replies, settings), strict=True):
        score = reply.nll if reply.probe == "likelihood" else verdict.score
        found[reply.probe].append(score)
    return found


def _paired(name: str, before: list[float | None], after: list[float | None]) -> Measured:
    """Return both means over the prompts that were scored both times, and their difference."""
    both = [
        (one, other)
        for one, other in zip(before, after, strict=True)
        if one is not None and other is not None
    ]
    resampler = Resampler(f"audit/{name}")
    columns = [[pair[at] for pair in both] for at in range(2)]
    if name.startswith("loss") and any(len(set(column)) < 2 for column in columns):
        # Losses without spread have neither a bootstrap nor the exact bounds of a rate.
        means = [sum(column) / len(column) if column else None for column in columns]
        rise = None if means[0] is None or means[1] is None else means[1] - means[0]
        return Measured(name, means[0], means[1], Interval("rise", rise), len(both))
    # A loss has no ends that are known.
    measure_of = resampler.mean if name.startswith("loss") else resampler.rate
    samples = [measure_of({"": list[float | None](column)}) for column in columns]
    return Measured(
        name,
        samples[0].interval(name).value,
        samples[1].interval(name).value,
        (samples[1] - samples[0]).interval("rise"),
        len(both),
    )
