"""Audit a fine-tune: from two models and data to one verdict; what `resect audit` calls."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from torch import Tensor

from resect.attribution.score import attribute
from resect.audit.changes import Share, TensorChange, change_of, shares
from resect.audit.effects import (
    Effects,
    Measured,
    Models,
    Step,
    effects_of,
    measure,
    refuse_unaskable,
    steps_in,
)
from resect.audit.loading import open_tuned, shared_tokenizer
from resect.audit.outside import OutsideChange, outside_of, outside_sentences
from resect.audit.rank_one import rank_one_shares
from resect.audit.request import AuditRequest, Names
from resect.audit.rule import AuditVerdict, Thresholds, decide
from resect.data.encode import encode
from resect.data.load import BehaviourSet, load_data
from resect.edit.checkpoint import forced_of
from resect.edit.layouts import in_model
from resect.errors import InputError, MismatchError
from resect.evaluation.corrected import judge_error_rows
from resect.evaluation.judges import find_judge
from resect.evaluation.spoken import cut_off_note
from resect.files.origin import provenance
from resect.files.writing import atomic_folder, plain, refuse_full_folder, write_json
from resect.model import LoadedModel, load_model, model_fingerprint, prunable_tensors
from resect.records import LEFT_OUT_BY_DEFAULT, Encoded, Tokenizer
from resect.weights.controls import magnitude_matched
from resect.weights.fit import all_forced, forced_in
from resect.weights.mask import Mask
from resect.weights.select import select

# What needs no prompts to be said.
SAME = "every weight of the two models is the same, bit for bit"


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        verdict: The word and its reasons.
        changes: What changed, by tensor.
        shares: Where the change falls: in the model, its layers and its kinds of weights.
        measured: Behaviour before and after.
        effects: What parts of the change do by themselves; None without answers to score.
        outside: What changed in tensors that are not prunable.
        notes: What a reader has to know beside the verdict, in sentences: changes where no mask
            lies, and what was not the same on the two sides.
        names: What the two sets are called.
        facts: Provenance.
        judge_errors: How a fitted judge errs, by category; empty for another judge.
    """

    verdict: AuditVerdict
    changes: list[TensorChange]
    shares: dict[str, list[Share]]
    measured: tuple[Measured, ...] = ()
    effects: Effects | None = None
    outside: tuple[OutsideChange, ...] = ()
    notes: tuple[str, ...] = ()
    names: Names = field(default_factory=Names)
    facts: Mapping[str, object] = field(default_factory=dict)
    judge_errors: tuple[Mapping[str, object], ...] = field(default=(), metadata=LEFT_OUT_BY_DEFAULT)


def audit_models(
    request: AuditRequest,
    output: Path,
    on_progress: Callable[[int, int], None] | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> Audit:
    """Audit and write `audit.json`.

    Args:
        request: What to compare, with which data.
        output: New folder.
        on_progress: Called with steps done and steps in all.
        on_stage: Called with what is done next, in words.

    Raises:
        InputError: Neither a mask nor data to locate one are given, or something cannot be loaded.
        MismatchError: The mask or the tuned model does not belong to the base model.
    """
    refuse_full_folder(output)
    find_judge(request.judge)
    if request.mask is None and (request.target is None or request.preserve is None):
        raise InputError(
            "there are no weights to look at",
            allowed="--mask MASK, or --target SPEC with --preserve SPEC to locate them",
        )
    sets = {
        name: load_data(spec)
        for name, spec in (("target", request.target), ("preserve", request.preserve))
        if spec is not None
    }
    step = _steps(5 + request.controls + steps_in(request, sets), on_progress, on_stage)
    step(f"loading {request.base}")
    loaded = load_model(request.base)
    step(f"loading {request.tuned}")
    tuned = open_tuned(request.base, request.tuned)
    shared = shared_tokenizer(loaded, tuned)
    refuse_unaskable(request, shared.tokenizer, sets)
    step("locating the weights" if request.mask is None else f"reading {request.mask}")
    mask = harm_set(request, loaded._replace(tokenizer=shared.tokenizer), sets)
    models = Models(loaded.model, tuned.model, shared.tokenizer)
    audit = compare(request, models, mask, sets, step=step)
    facts = provenance() | {
        "base": request.base,
        "base_fingerprint": model_fingerprint(loaded.model),
        "tuned": request.tuned,
        "tuned_fingerprint": model_fingerprint(tuned.model),
        "mask_hash": mask.hash,
        "mask_weights": mask.count,
        "mask_fraction": mask.fraction,
        "forced": all_forced(
            forced_in(mask.meta), forced_of(request.base), forced_of(request.tuned)
        ),
        "data": {name: data.hash for name, data in sets.items()},
        "request": asdict(request),
    }
    audit = replace(audit, facts=facts, notes=(*audit.notes, *tuned.notes, *shared.notes))
    with atomic_folder(output) as folder:
        write_json(folder / "audit.json", plain(audit))
    step("")
    return audit


def _steps(
    total: int,
    on_progress: Callable[[int, int], None] | None,
    on_stage: Callable[[str], None] | None,
) -> Step:
    """Return what is called before each step, with what it is, and once at the end."""
    done = itertools.count()

    def step(what: str) -> None:
        if on_progress is not None:
            on_progress(min(next(done), total) if what else total, total)
        if on_stage is not None and what:
            on_stage(what)

    return step


def harm_set(request: AuditRequest, loaded: LoadedModel, sets: Mapping[str, BehaviourSet]) -> Mask:
    """Return the mask of the request, checked against the base model, or locate one."""
    if request.mask is None:
        base, tokenizer = loaded
        keep = max(request.q, request.p)
        target = sets["target"].split("calibration").limit(request.limit)
        preserve = sets["preserve"].split("calibration").limit(request.limit)
        return select(
            attribute(base, tokenizer, target, skip=request.skip, format=request.format, keep=keep),
            attribute(
                base, tokenizer, preserve, reduction="mean_of_abs", format=request.format, keep=keep
            ),
            q=request.q,
            p=request.p,
        )
    mask = in_model(Mask.load(request.mask), loaded.model)
    weights_for_controls(mask, prunable_tensors(loaded.model))
    return mask


def weights_for_controls(mask: Mask, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights as they were scored: those of a cut model with the cut values put back.

    Raises:
        MismatchError: A masked weight has neither its value nor 0.
    """
    scored = dict(weights)
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
            scored[name] = mended
        mask.check(name, scored.get(name))
    return scored


def compare(
    request: AuditRequest,
    models: Models,
    mask: Mask,
    sets: Mapping[str, BehaviourSet],
    thresholds: Thresholds | None = None,
    *,
    step: Step | None = None,
) -> Audit:
    """Compare two loaded models.

    Args:
        request: How to measure.
        models: The model before, the one after, and the tokenizer.
        mask: The weights behind the behaviour.
        sets: Behaviour sets by the names `target` and `preserve`; both may be absent.
        thresholds: Other numbers for the rule than the documented ones.
        step: Called with what is done next, in words.

    Raises:
        MismatchError: The mask or the tuned model does not belong to the base model.
    """
    base, tuned, tokenizer = models
    begin = step or _silent
    weights = weights_for_controls(mask, prunable_tensors(base))
    controls = []
    for number in range(request.controls):
        begin(f"drawing matched set {number + 1} of {request.controls}")
        controls.append(magnitude_matched(mask, weights, label=f"audit/{number}"))
    after = prunable_tensors(tuned)
    if after.keys() != weights.keys():
        raise MismatchError(
            "the two models do not have the same architecture",
            got=f"{len(weights)} prunable tensors before, {len(after)} after",
            fix="give the model that was tuned and what became of it",
        )
    begin("comparing the weights, and predicting what their change does")
    encoded = _calibration(request, tokenizer, sets.get("target"))
    rows = change_of(base, after, mask, controls, encoded)
    narrow = rank_one_shares(base, after)
    rows = [replace(row, rank_one=narrow.get(row.name)) for row in rows]
    begin("comparing everything else")
    outside = outside_of(base, tuned)
    grouped = shares(rows)
    measured = measure(request, models, sets, step)
    effects = effects_of(request, models, mask, controls, sets, step)
    verdict = decide(rows, grouped["model"][0], measured, effects, thresholds, request.names)
    differs = any(row.changed for row in rows) or any(row.differs for row in outside)
    # Of equal weights a configuration may still make two models.
    if verdict.word == "undecided" and not differs and not any(row.rise.value for row in measured):
        verdict = replace(verdict, word="untouched", reasons=(SAME,))
    notes = (*outside_sentences(outside), *_alone(effects, request), *_cut_off(measured))
    errors = tuple(judge_error_rows([request.judge]))
    return Audit(
        verdict, rows, grouped, measured, effects, tuple(outside), notes, request.names, {}, errors
    )


def _silent(_what: str) -> None:
    """Report nothing."""


def _cut_off(measured: Sequence[Measured]) -> list[str]:
    """Return a warning of replies that were cut off, where most of them were; of few, none."""
    shares = {row.name: row.cut_off for row in measured if row.cut_off is not None}
    worst = max(shares, key=shares.__getitem__, default="")
    note = cut_off_note(shares.get(worst), worst)
    return [note] if note else []


def _alone(effects: Effects | None, request: AuditRequest) -> list[str]:
    """Return what the change outside of the prunable weights does by itself, in a sentence."""
    if effects is None or effects.elsewhere is None or effects.elsewhere.value is None:
        return []
    change = effects.elsewhere
    bounds = "" if change.low is None else f" [{change.low:.3g}, {change.high:.3g}]"
    return [
        f"alone, that changes the loss on {request.names.target} by {change.value:.3g}{bounds} "
        f"nats a token; the whole change by {effects.whole.value or 0.0:.3g}"
    ]


def _calibration(
    request: AuditRequest, tokenizer: Tokenizer, target: BehaviourSet | None
) -> list[Encoded]:
    if target is None:
        return []
    rows = target.split("calibration").limit(request.limit)
    return encode(rows.examples, tokenizer, format=request.format, skip=request.skip)
