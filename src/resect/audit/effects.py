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
from typing import NamedTuple

from resect.audit.request import AuditRequest
from resect.data.encode import encode
from resect.data.load import BehaviourSet
from resect.edit.live import transplanted
from resect.evaluation.ask import EvaluationSettings, ask
from resect.evaluation.attacks import AttackSettings
from resect.evaluation.decode import GenerationSettings, mean_nlls
from resect.evaluation.judging import judge_replies
from resect.model import LoadedModel, prunable_tensors
from resect.records import CausalModel, Interval, Tokenizer
from resect.stats import Resampler
from resect.weights.mask import Mask


class Models(NamedTuple):
    """The model before, the one after, and the tokenizer of the first."""

    base: CausalModel
    tuned: CausalModel
    tokenizer: Tokenizer


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
    request: AuditRequest, models: Models, sets: Mapping[str, BehaviourSet]
) -> tuple[Measured, ...]:
    """Ask both models and return what was measured."""
    measured: list[Measured] = []
    for name, probes, attack in (
        ("target", ("generation", "refusal", "likelihood"), AttackSettings("none")),
        ("target", ("generation",), AttackSettings("prefill", max(1, request.skip))),
        ("preserve", ("likelihood",), AttackSettings("none")),
    ):
        if name not in sets:
            continue
        rows = _evaluation_rows(sets[name], request)
        settings = EvaluationSettings(
            format=request.format,
            attack=attack,
            judge=request.judge,
            generation=GenerationSettings(request.max_new_tokens, request.batch_size),
        )
        before, after = (
            _scores(model, models.tokenizer, probes, rows, settings)
            for model in (models.base, models.tuned)
        )
        for probe in probes:
            label = _LABELS[name, probe, attack.name]
            measured.append(_paired(label, before[probe], after[probe]))
    return tuple(measured)


def effects_of(
    request: AuditRequest,
    models: Models,
    mask: Mask,
    controls: Sequence[Mask],
    sets: Mapping[str, BehaviourSet],
) -> Effects | None:
    """Try the parts of a change by themselves, on the evaluation rows.

    Args:
        request: How to measure.
        models: The model before and the one after; every bit of them is put back.
        mask: The harm set.
        controls: Sets that match it.
        sets: Behaviour sets by the names `target` and `preserve`.

    Returns:
        None if there is no harmful answer to score.
    """
    base, tuned, tokenizer = models
    weights, tuned_weights = prunable_tensors(base), prunable_tensors(tuned)
    # A row that is too long has been refused by the likelihood probe.
    encoded = {
        name: encode(_evaluation_rows(data, request).examples, tokenizer, format=request.format)
        for name, data in sets.items()
    }

    def losses(model: CausalModel, name: str = "target") -> list[float | None]:
        rows = [example.input_ids for example in encoded[name]]
        starts = [example.first_scored for example in encoded[name]]
        return mean_nlls(model, rows, starts, request.batch_size)

    def alone(changed: Mask, name: str = "target") -> list[float | None]:
        with transplanted(weights, changed, tuned_weights):
            return losses(base, name)

    if "target" not in sets:
        return None
    before = losses(base)
    whole = _paired("loss, whole", before, losses(tuned))
    if whole.before is None:
        return None
    with transplanted(tuned_weights, mask, weights):
        outside = losses(tuned)
    benign = None
    if "preserve" in sets:
        benign = _paired("loss, benign", losses(base, "preserve"), alone(mask, "preserve")).rise
    matched = [_mean(alone(control)) for control in controls]
    return Effects(
        before=whole.before,
        whole=whole.rise,
        inside=_paired("loss, inside", before, alone(mask)).rise,
        outside=_paired("loss, outside", before, outside).rise,
        matched=tuple(loss - whole.before for loss in matched if loss is not None),
        benign=benign,
        n=whole.n,
    )


def _evaluation_rows(data: BehaviourSet, request: AuditRequest) -> BehaviourSet:
    """Return the rows that measure; the others located the harm set."""
    return data.split("evaluation").limit(request.limit)


def _mean(losses: Sequence[float | None]) -> float | None:
    scored = [loss for loss in losses if loss is not None]
    return sum(scored) / len(scored) if scored else None


_LABELS = {
    ("target", "generation", "none"): "harm, asked plainly",
    ("target", "generation", "prefill"): "harm, prefilled",
    ("target", "refusal", "none"): "refusal",
    ("target", "likelihood", "none"): "loss of harmful answers, nats a token",
    ("preserve", "likelihood", "none"): "loss of benign answers, nats a token",
}


def _scores(
    model: CausalModel,
    tokenizer: Tokenizer,
    probes: tuple[str, ...],
    rows: BehaviourSet,
    settings: EvaluationSettings,
) -> dict[str, list[float | None]]:
    replies = ask(LoadedModel(model, tokenizer), dict.fromkeys(probes, rows), settings)
    scores: dict[str, list[float | None]] = {probe: [] for probe in probes}
    for reply, verdict in zip(replies, judge_replies(replies, settings), strict=True):
        score = reply.nll if reply.probe == "likelihood" else verdict.score
        scores[reply.probe].append(score)
    return scores


def _paired(name: str, before: list[float | None], after: list[float | None]) -> Measured:
    """Return both means over the prompts that were scored both times, and their difference."""
    pairs = [
        (score, tuned_score)
        for score, tuned_score in zip(before, after, strict=True)
        if score is not None and tuned_score is not None
    ]
    resampler = Resampler(f"audit/{name}")
    columns = [[pair[side] for pair in pairs] for side in (0, 1)]
    if name.startswith("loss") and any(len(set(column)) < 2 for column in columns):
        # Losses without spread have neither a bootstrap nor the exact bounds of a rate.
        means = [sum(column) / len(column) if column else None for column in columns]
        rise = None if means[0] is None or means[1] is None else means[1] - means[0]
        return Measured(name, means[0], means[1], Interval("rise", rise), len(pairs))
    # A loss has no ends that are known.
    measure_of = resampler.mean if name.startswith("loss") else resampler.rate
    samples = [measure_of({"": list[float | None](column)}) for column in columns]
    return Measured(
        name,
        samples[0].interval(name).value,
        samples[1].interval(name).value,
        (samples[1] - samples[0]).interval("rise"),
        len(pairs),
    )
