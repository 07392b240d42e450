"""Audit a fine-tune: from two models and data to one verdict; what `resect audit` calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from resect.attacks import AttackSettings
from resect.audit.changes import TensorChange, change_of, mean_loss, shares
from resect.audit.rule import AuditVerdict, Thresholds, decide
from resect.binding import forced_in, joined
from resect.data.encode import encode
from resect.data.load import BehaviourSet, load_data
from resect.errors import InputError, MismatchError
from resect.evaluate import EvaluationSettings, ask, judge_replies
from resect.generate import GenerationSettings
from resect.judges import find_judge
from resect.locate import attribute
from resect.mask import Mask
from resect.model import forced_of, load_model, model_fingerprint, prunable_tensors
from resect.records import Encoded, Format, Interval
from resect.selection import magnitude_matched, select
from resect.stats import Resampler
from resect.store import atomic_folder, plain, provenance, refuse_full_folder, write_json

Row = dict[str, Any]


@dataclass(frozen=True)
class AuditRequest:
    """The options of `resect audit`; see its help.

    Attributes:
        base: The model before, a folder or Hub id.
        tuned: The model after, or a folder with a LoRA adapter for `base`.
        mask: The harm set on `base`; without it, it is located with `target` and `preserve`.
        target: SPEC of harmful prompts and answers; calibration rows locate and predict,
            evaluation rows measure.
        preserve: SPEC of benign text: protected when locating, and the measure of utility.
        q: Fraction of the target's ranking where the harm set is located.
        p: Fraction of the preserve set's ranking that is protected.
        skip: Tokens of a harmful answer that are not scored, as many as a prefill opens with.
        format: `raw` or `chat`.
        judge: Who decides whether a reply is harmful.
        limit: Most examples a set.
        controls: Number of magnitude-matched sets.
        max_new_tokens: Longest reply.
        batch_size: Prompts a batch.
    """

    base: str
    tuned: str
    mask: Path | None = None
    target: str | None = None
    preserve: str | None = None
    q: float = 2e-3
    p: float = 2e-3
    skip: int = 3
    format: Format = "chat"
    judge: str = "exact"
    limit: int | None = 128
    controls: int = 19
    max_new_tokens: int = 128
    batch_size: int = 16


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
class Audit:
    """What an audit found."""

    verdict: AuditVerdict
    changes: list[TensorChange]
    shares: dict[str, Any]
    measured: tuple[Measured, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


def audit_models(
    request: AuditRequest, output: Path, on_progress: Callable[[int, int], None] | None = None
) -> Audit:
    """Audit and write `audit.json`.

    Args:
        request: What to compare, with which data.
        output: New folder.
        on_progress: Called with steps done and steps in all.

    Raises:
        InputError: Neither a mask nor data to locate one are given, or something cannot be loaded.
        MismatchError: The mask or the tuned model does not belong to the base model.
    """
    refuse_full_folder(output)
    find_judge(request.judge)
    if request.mask is None and (request.target is None or request.preserve is None):
        raise InputError(
            "there is no harm set to look at",
            allowed="--mask MASK, or --target SPEC with --preserve SPEC to locate one",
        )
    step = _steps(on_progress)
    base, tokenizer = load_model(request.base)
    step()
    tuned = load_tuned(request.base, request.tuned)
    sets = {
        name: load_data(place)
        for name, place in (("target", request.target), ("preserve", request.preserve))
        if place is not None
    }
    step()
    mask = harm_set(request, base, tokenizer, sets)
    step()
    found = compare(request, (base, tuned, tokenizer), mask, sets)
    step()
    facts = provenance() | {
        "base": request.base,
        "base_fingerprint": model_fingerprint(base),
        "tuned": request.tuned,
        "tuned_fingerprint": model_fingerprint(tuned),
        "mask_hash": mask.hash,
        "mask_weights": mask.count,
        "mask_fraction": mask.fraction,
        "forced": joined(forced_in(mask.meta), forced_of(request.base), forced_of(request.tuned)),
        "data": {name: data.hash for name, data in sets.items()},
        "request": asdict(request),
    }
    result = Audit(found.verdict, found.changes, found.shares, found.measured, facts)
    with atomic_folder(output) as folder:
        write_json(folder / "audit.json", plain(result))
    return result


def _steps(on_progress: Callable[[int, int], None] | None) -> Callable[[], None]:
    done = iter(range(1, 5))

    def step() -> None:
        if on_progress is not None:
            on_progress(next(done), 4)

    return step


def load_tuned(base: str, tuned: str) -> Any:
    """Load a tuned model, or a base model with an adapter merged into it in memory.

    Raises:
        InputError: The place is neither a checkpoint nor an adapter of `base`.
    """
    if not (Path(tuned) / "adapter_config.json").is_file():
        return load_model(tuned).model
    if not (Path(tuned) / "adapter_model.safetensors").is_file():
        raise InputError(
            f"the adapter {tuned} has no safetensors weights",
            allowed="adapter_model.safetensors",
            fix="save it again with save_pretrained of peft",
        )
    from peft import PeftModel

    try:
        adapted = PeftModel.from_pretrained(load_model(base).model, tuned)
        return adapted.merge_and_unload().eval()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(
            f"cannot put the adapter {tuned} on {base}",
            got=str(error).strip().splitlines()[0],
            fix="give the base model that the adapter was trained on",
        ) from error


def harm_set(
    request: AuditRequest, base: Any, tokenizer: Any, sets: Mapping[str, BehaviourSet]
) -> Mask:
    """Return the given mask, checked against the base model, or locate one."""
    if request.mask is None:
        settings: dict[str, Any] = {"format": request.format, "keep": max(request.q, request.p)}
        target = sets["target"].split("calibration").limit(request.limit)
        preserve = sets["preserve"].split("calibration").limit(request.limit)
        return select(
            attribute(base, tokenizer, target, skip=request.skip, **settings),
            attribute(base, tokenizer, preserve, reduction="mean_of_abs", **settings),
            q=request.q,
            p=request.p,
        )
    mask = Mask.load(request.mask)
    weights_for_controls(mask, prunable_tensors(base))
    return mask


def weights_for_controls(mask: Mask, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights as they were scored: those of a cut model with the cut values put back.

    Raises:
        MismatchError: A masked weight has neither its value nor 0.
    """
    found = dict(weights)
    for name, entry in mask.tensors.items():
        weight = weights.get(name)
        cut = (
            weight is not None
            and tuple(weight.shape) == entry.shape
            and weight.dtype == entry.value.dtype
            and entry.index.numel() > 0
            and not weight.reshape(-1)[entry.index.to(weight.device)].any()
        )
        if cut and weight is not None:
            mended = weight.clone()
            mended.view(-1)[entry.index.to(weight.device)] = entry.value.to(weight.device)
            found[name] = mended
        mask.check(name, found.get(name))
    return found


def compare(
    request: AuditRequest,
    models: tuple[Any, Any, Any],
    mask: Mask,
    sets: Mapping[str, BehaviourSet],
    thresholds: Thresholds | None = None,
) -> Audit:
    """Compare two loaded models.

    Args:
        request: How to measure.
        models: The model before, the one after and the tokenizer of the first.
        mask: The harm set.
        sets: Behaviour sets by the names `target` and `preserve`; both may be absent.
        thresholds: Other numbers for the rule than the documented ones.

    Raises:
        MismatchError: The mask or the tuned model does not belong to the base model.
    """
    base, tuned, tokenizer = models
    weights = weights_for_controls(mask, prunable_tensors(base))
    controls = [
        magnitude_matched(mask, weights, label=f"audit/{at}") for at in range(request.controls)
    ]
    after = prunable_tensors(tuned)
    if after.keys() != weights.keys():
        raise MismatchError(
            "the two models do not have the same architecture",
            got=f"{len(weights)} prunable tensors before, {len(after)} after",
            fix="give the model that was tuned and what became of it",
        )
    encoded = _calibration(request, tokenizer, sets.get("target"))
    rows = change_of(base, after, mask, controls, encoded)
    grouped = shares(rows)
    measured = measure(request, models, sets)
    loss = mean_loss(base, encoded) if encoded else None
    rises = {one.name.partition(", ")[2]: one.rise for one in measured if one.name[:5] == "harm,"}
    return Audit(
        decide(rows, grouped["model"][0], rises, loss, thresholds), rows, grouped, measured
    )


def _calibration(
    request: AuditRequest, tokenizer: Any, target: BehaviourSet | None
) -> list[Encoded]:
    if target is None:
        return []
    rows = target.split("calibration").limit(request.limit)
    return encode(rows.examples, tokenizer, format=request.format, skip=request.skip)


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
        asked = sets[name].split("evaluation").limit(request.limit)
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
    samples = [resampler.rate({"": list[float | None](column)}) for column in columns]
    return Measured(
        name,
        samples[0].interval(name).value,
        samples[1].interval(name).value,
        (samples[1] - samples[0]).interval("rise"),
        len(both),
    )
