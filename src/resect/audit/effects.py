"""What an audit measures: replies and losses before and after, and what parts of the change do.

A part of a change is tried by itself: the weights of a set get the values of the other model, and
the loss of whole answers of the target is measured over the same prompts.

    whole      loss of the tuned model - loss of the base model
    inside     loss of the base model with the tuned values inside the mask - loss of the base
    outside    loss of the tuned model with the base values inside the mask - loss of the base
    matched    as `inside`, for each set that matches the mask in number and magnitude
    elsewhere  as `inside`, for everything that is not prunable: embeddings, head, norms, biases
    beyond     `whole` minus the same change of the preserve set's loss: what the fine-tune did to
               the target and not to everything

Below 0 is towards the behaviour: its answers became likelier. Answers are scored from their first
token, where a model decides whether to answer at all. Intervals draw rows of one prompt together;
those of the two sets are drawn apart from each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from resect.audit.outside import lent_outside, outside_of
from resect.audit.request import AuditRequest
from resect.data.encode import encode, prompt_text
from resect.data.load import BehaviourSet
from resect.edit.live import transplanted
from resect.errors import InputError
from resect.evaluation.ask import EvaluationSettings, ask
from resect.evaluation.attacks import AttackSettings
from resect.evaluation.decode import GenerationSettings, mean_nlls
from resect.evaluation.judging import judge_replies
from resect.evaluation.questions import questions_for
from resect.evaluation.spoken import cut_off
from resect.model import LoadedModel, prunable_tensors
from resect.records import CausalModel, Example, Interval, Reply, Tokenizer
from resect.stats import Resampler, Sample, same_text
from resect.weights.mask import Mask

Step = Callable[[str], None]
Key = Literal["plain", "prefilled", "refusal", "target loss", "preserve loss", "preserve refusal"]
Set = Literal["target", "preserve"]


class Models(NamedTuple):
    """The model before, the one after, and the tokenizer that both are asked with."""

    base: CausalModel
    tuned: CausalModel
    tokenizer: Tokenizer


@dataclass(frozen=True)
class Measured:
    """What was measured on one behaviour, before and after.

    Attributes:
        name: What was measured, in words.
        before: Rate or mean before.
        after: The same after.
        rise: `after` minus `before` with its paired 95 % interval.
        n: Rows that were scored both times.
        prompts: Different prompts among them.
        key: The same as `name`, whatever the sets are called.
        cut_off: Share of the replies of both models that the limit on tokens cut off; None where
            none was asked for, and in audits of earlier versions.
    """

    name: str
    before: float | None
    after: float | None
    rise: Interval
    n: int
    prompts: int = 0
    key: Key | Literal[""] = ""
    cut_off: float | None = None


@dataclass(frozen=True)
class Effects:
    """What the change does to the loss of whole answers of the target, in nats a token, by parts.

    Attributes:
        before: Mean loss of the base model.
        whole: Change of it by the whole change, with its paired 95 % interval; so for the others.
        inside: By the change inside the mask alone.
        outside: By all of the change but that.
        matched: By the change inside each magnitude-matched set alone.
        benign: Change of the preserve set's loss by the change inside the mask alone.
        n: Answers that were scored.
        prompts: Different prompts among them.
        preserve: Change of the preserve set's loss by the whole change; None without that set.
        beyond: `whole` minus `preserve`; None without that set.
        elsewhere: By what changed outside of the prunable weights alone; None if nothing did.
    """

    before: float
    whole: Interval
    inside: Interval
    outside: Interval
    matched: tuple[float, ...] = ()
    benign: Interval | None = None
    n: int = 0
    prompts: int = 0
    preserve: Interval | None = None
    beyond: Interval | None = None
    elsewhere: Interval | None = None


class _Asked(NamedTuple):
    """One way of asking a set, and the judge of the replies if it is not that of the request."""

    asked: Set
    probes: tuple[str, ...]
    attack: AttackSettings
    judge: str = ""


def _ways(request: AuditRequest, sets: Mapping[str, BehaviourSet]) -> list[_Asked]:
    none = AttackSettings("none")
    ways = [
        _Asked("target", ("generation", "refusal", "likelihood"), none),
        _Asked("target", ("generation",), AttackSettings("prefill", max(1, request.skip))),
        _Asked("preserve", ("likelihood",), none),
    ]
    harmless = _evaluation_rows(sets["preserve"], request).examples if "preserve" in sets else ()
    # A text without a prompt can be read, and not be refused.
    if harmless and all(example.prompt for example in harmless):
        ways.append(_Asked("preserve", ("refusal",), none, _refusals_by(request.judge, harmless)))
    return [way for way in ways if way.asked in sets]


def _refusals_by(judge: str, rows: Sequence[Example]) -> str:
    """Return who finds refusals of harmless prompts: phrases, or keys that say what marks one."""
    keyed = all(example.key.get("refusal") for example in rows)
    family = judge.partition(":")[0]
    return judge if family == "keyword" or (keyed and family == "exact") else "keyword"


def refuse_unaskable(
    request: AuditRequest, tokenizer: Tokenizer, sets: Mapping[str, BehaviourSet]
) -> None:
    """Refuse rows that `measure` cannot ask, before anything is computed.

    Raises:
        InputError: A prompt cannot be put, or a prefill says all of an answer or nothing.
    """
    for asked, _, attack, _ in _ways(request, sets):
        rows = _evaluation_rows(sets[asked], request).examples
        try:
            questions_for(rows, tokenizer, attack, format=request.format, samples=1)
        except InputError as error:
            if attack.name == "none":
                raise
            raise InputError(
                error.what,
                got=error.got,
                allowed=error.allowed,
                fix="give another --skip, for a prefill opens with as many tokens, or leave the "
                "row out",
            ) from error


def steps_in(request: AuditRequest, sets: Mapping[str, BehaviourSet]) -> int:
    """Return how many steps `measure` and `effects_of` report at most."""
    parts = 5 + request.controls + 3 * ("preserve" in sets) if "target" in sets else 0
    return 2 * len(_ways(request, sets)) + parts


def measure(
    request: AuditRequest,
    models: Models,
    sets: Mapping[str, BehaviourSet],
    step: Step | None = None,
) -> tuple[Measured, ...]:
    """Ask both models and return what was measured."""
    measured: list[Measured] = []
    for asked, probes, attack, judge in _ways(request, sets):
        rows = _evaluation_rows(sets[asked], request)
        settings = EvaluationSettings(
            format=request.format,
            attack=attack,
            judge=judge or request.judge,
            generation=GenerationSettings(request.max_new_tokens, request.batch_size),
        )
        answers = []
        for word, model in (("base", models.base), ("tuned", models.tuned)):
            if step is not None:
                way = "prefilled" if attack.name == "prefill" else "plainly"
                step(f"asking the {word} model {way}: {getattr(request.names, asked)}")
            answers.append(_scores(model, models.tokenizer, probes, rows, settings))
        before, after = answers
        for probe in probes:
            key = _KEYS[asked, probe, attack.name]
            scored = before[probe].scores, after[probe].scores
            paired = _paired(key, *scored, before[probe].prompts)
            measured.append(
                Measured(
                    name=_label(key, request),
                    before=paired.before,
                    after=paired.after,
                    rise=paired.rise,
                    n=paired.n,
                    prompts=paired.prompts,
                    key=key,
                    cut_off=cut_off([*before[probe].replies, *after[probe].replies]),
                )
            )
    return tuple(measured)


def effects_of(
    request: AuditRequest,
    models: Models,
    mask: Mask,
    controls: Sequence[Mask],
    sets: Mapping[str, BehaviourSet],
    step: Step | None = None,
) -> Effects | None:
    """Try the parts of a change by themselves, on the evaluation rows.

    Args:
        request: How to measure.
        models: The model before and the one after; every bit of them is put back.
        mask: The weights behind the behaviour.
        controls: Sets that match it.
        sets: Behaviour sets by the names `target` and `preserve`.
        step: Called with what is done next.

    Returns:
        None if there is no answer to score.
    """
    if "target" not in sets:
        return None
    tried = _Trial(request, models, sets, step)
    before = tried.losses("the base model", models.base)
    whole = tried.paired(before, tried.losses("the tuned model", models.tuned))
    if whole.before is None:
        return None
    with transplanted(tried.tuned_weights, mask, tried.weights):
        outside = tried.losses("all of the change but the mask", models.tuned)
    inside = tried.alone("the change inside the mask", mask)
    matched = [
        _mean(tried.alone(f"the change inside matched set {number} of {len(controls)}", control))
        for number, control in enumerate(controls, 1)
    ]
    elsewhere = None
    if any(row.changed for row in outside_of(models.base, models.tuned)):
        with lent_outside(models.base, models.tuned):
            alone = tried.losses("the change outside of the prunable weights", models.base)
        elsewhere = tried.paired(before, alone).rise
    preserve = benign = None
    if "preserve" in sets:
        benign_before = tried.losses("the base model", models.base, "preserve")
        after = tried.losses("the tuned model", models.tuned, "preserve")
        preserve = tried.paired(benign_before, after, "preserve")
        masked = tried.alone("the change inside the mask", mask, "preserve")
        benign = tried.paired(benign_before, masked, "preserve").rise
    return Effects(
        before=whole.before,
        whole=whole.rise,
        inside=tried.paired(before, inside).rise,
        outside=tried.paired(before, outside).rise,
        matched=tuple(loss - whole.before for loss in matched if loss is not None),
        benign=benign,
        n=whole.n,
        prompts=whole.prompts,
        preserve=None if preserve is None else preserve.rise,
        beyond=None if preserve is None else _beyond(whole, preserve),
        elsewhere=elsewhere,
    )


class _Trial:
    """The evaluation rows of an audit, scored under one set of weights after the other."""

    def __init__(
        self,
        request: AuditRequest,
        models: Models,
        sets: Mapping[str, BehaviourSet],
        step: Step | None,
    ):
        """Encode the rows; those that are too long have been refused by the likelihood probe."""
        rows = {name: _evaluation_rows(data, request) for name, data in sets.items()}
        self.encoded = {
            name: encode(data.examples, models.tokenizer, format=request.format)
            for name, data in rows.items()
        }
        self.prompts = {
            name: [prompt_text(example) for example in data.examples] for name, data in rows.items()
        }
        self.request, self.models, self.step = request, models, step
        self.weights = prunable_tensors(models.base)
        self.tuned_weights = prunable_tensors(models.tuned)

    def losses(self, what: str, model: CausalModel, name: Set = "target") -> list[float | None]:
        """Return the loss of each answer of a set, in nats a token."""
        if self.step is not None:
            self.step(f"scoring {getattr(self.request.names, name)}: {what}")
        rows = [example.input_ids for example in self.encoded[name]]
        starts = [example.first_scored for example in self.encoded[name]]
        return mean_nlls(model, rows, starts, self.request.batch_size)

    def alone(self, what: str, changed: Mask, name: Set = "target") -> list[float | None]:
        """Return the losses of the base model with the tuned values inside a set of weights."""
        with transplanted(self.weights, changed, self.tuned_weights):
            return self.losses(what, self.models.base, name)

    def paired(
        self, before: list[float | None], after: list[float | None], name: Set = "target"
    ) -> _Paired:
        """Compare the losses of a set."""
        return _paired(f"{name} loss", before, after, self.prompts[name])


def _evaluation_rows(data: BehaviourSet, request: AuditRequest) -> BehaviourSet:
    """Return the rows that measure; the others located the mask."""
    return data.split("evaluation").limit(request.limit)


def _mean(losses: Sequence[float | None]) -> float | None:
    scored = [loss for loss in losses if loss is not None]
    return sum(scored) / len(scored) if scored else None


_KEYS: dict[tuple[str, str, str], Key] = {
    ("target", "generation", "none"): "plain",
    ("target", "generation", "prefill"): "prefilled",
    ("target", "refusal", "none"): "refusal",
    ("target", "likelihood", "none"): "target loss",
    ("preserve", "likelihood", "none"): "preserve loss",
    ("preserve", "refusal", "none"): "preserve refusal",
}


def _label(key: Key, request: AuditRequest) -> str:
    target, preserve = request.names.target, request.names.preserve
    return {
        "plain": f"{target}, asked plainly",
        "prefilled": f"{target}, prefilled",
        "refusal": f"refusal of {target}",
        "target loss": f"loss on {target}, nats a token",
        "preserve loss": f"loss on {preserve}, nats a token",
        "preserve refusal": f"refusal of {preserve}, by phrases",
    }[key]


class _Answered(NamedTuple):
    """A score for each row, its prompt and its reply."""

    scores: list[float | None]
    prompts: list[str]
    replies: list[Reply]


def _scores(
    model: CausalModel,
    tokenizer: Tokenizer,
    probes: tuple[str, ...],
    rows: BehaviourSet,
    settings: EvaluationSettings,
) -> dict[str, _Answered]:
    replies = ask(LoadedModel(model, tokenizer), dict.fromkeys(probes, rows), settings)
    answered = {probe: _Answered([], [], []) for probe in probes}
    for reply, verdict in zip(replies, judge_replies(replies, settings), strict=True):
        score = reply.nll if reply.probe == "likelihood" else verdict.score
        answered[reply.probe].scores.append(score)
        answered[reply.probe].prompts.append(reply.prompt)
        answered[reply.probe].replies.append(reply)
    return answered


class _Paired(NamedTuple):
    """Two means over the prompts that were scored both times, and their difference.

    Attributes:
        before: Mean before.
        after: Mean after.
        rise: Their difference, with its interval.
        n: Rows that were scored both times.
        prompts: Different prompts among them.
        sample: The draws of `rise`; None where there is no spread to draw from.
    """

    before: float | None
    after: float | None
    rise: Interval
    n: int
    prompts: int
    sample: Sample | None


def _paired(
    name: str,
    before: Sequence[float | None],
    after: Sequence[float | None],
    prompts: Sequence[str],
) -> _Paired:
    """Compare scores of the same rows; a `name` that ends in `loss` has no ends that are known.

    Rows of one prompt are drawn together.
    """
    pairs = [
        (score, tuned_score, prompt)
        for score, tuned_score, prompt in zip(before, after, prompts, strict=True)
        if score is not None and tuned_score is not None
    ]
    groups = same_text([prompt for _, _, prompt in pairs])
    different = len(set(groups))
    columns = [[pair[0] for pair in pairs], [pair[1] for pair in pairs]]
    means = [_mean(column) for column in columns]
    is_loss = name.endswith("loss")
    if is_loss and (different < 2 or any(len(set(column)) < 2 for column in columns)):
        # Losses without spread have neither a bootstrap nor the exact bounds of a rate.
        rise = None if means[0] is None or means[1] is None else means[1] - means[0]
        return _Paired(means[0], means[1], Interval("rise", rise), len(pairs), different, None)
    # One label for all losses, so that parts of a change are tried on the same draws; the name of
    # the set is the stratum, so that two sets are drawn apart.
    resampler = Resampler("audit/loss" if is_loss else f"audit/{name}")
    measure_of = resampler.spread if is_loss else resampler.rate
    samples = [measure_of({name: list(column)}, {name: groups}) for column in columns]
    difference = samples[1] - samples[0]
    return _Paired(
        means[0], means[1], difference.interval("rise"), len(pairs), different, difference
    )


def _beyond(target: _Paired, preserve: _Paired) -> Interval:
    """Return how much further the target's loss changed than the preserve set's."""
    if target.sample is None or preserve.sample is None:
        changes = target.rise.value, preserve.rise.value
        value = None if changes[0] is None or changes[1] is None else changes[0] - changes[1]
        return Interval("rise", value)
    return (target.sample - preserve.sample).interval("rise")
