"""Audit a fine-tune: from two models and data to one verdict; what `resect audit` calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from torch import Tensor

from resect.attribution.score import attribute
from resect.audit.changes import Share, TensorChange, change_of, shares
from resect.audit.effects import Effects, Measured, Models, effects_of, measure
from resect.audit.request import AuditRequest
from resect.audit.rule import AuditVerdict, Thresholds, decide
from resect.data.encode import encode
from resect.data.load import BehaviourSet, load_data
from resect.edit.checkpoint import forced_of
from resect.edit.layouts import in_model
from resect.errors import InputError, MismatchError
from resect.evaluation.judges import find_judge
from resect.files.origin import provenance
from resect.files.writing import atomic_folder, plain, refuse_full_folder, write_json
from resect.model import LoadedModel, load_model, model_fingerprint, prunable_tensors
from resect.records import CausalModel, Encoded, Tokenizer
from resect.weights.controls import magnitude_matched
from resect.weights.fit import all_forced, forced_in
from resect.weights.mask import Mask
from resect.weights.select import select


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        verdict: The word and its reasons.
        changes: What changed, by tensor.
        shares: Where the change falls: in the model, its layers and its kinds of weights.
        measured: Behaviour before and after.
        effects: What parts of the change do by themselves; None without harmful answers.
        facts: Provenance.
    """

    verdict: AuditVerdict
    changes: list[TensorChange]
    shares: dict[str, list[Share]]
    measured: tuple[Measured, ...] = ()
    effects: Effects | None = None
    facts: Mapping[str, object] = field(default_factory=dict)


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
    loaded = load_model(request.base)
    step()
    tuned = load_tuned(request.base, request.tuned)
    sets = {
        name: load_data(spec)
        for name, spec in (("target", request.target), ("preserve", request.preserve))
        if spec is not None
    }
    step()
    mask = harm_set(request, loaded, sets)
    step()
    audit = compare(request, Models(loaded.model, tuned, loaded.tokenizer), mask, sets)
    step()
    facts = provenance() | {
        "base": request.base,
        "base_fingerprint": model_fingerprint(loaded.model),
        "tuned": request.tuned,
        "tuned_fingerprint": model_fingerprint(tuned),
        "mask_hash": mask.hash,
        "mask_weights": mask.count,
        "mask_fraction": mask.fraction,
        "forced": all_forced(
            forced_in(mask.meta), forced_of(request.base), forced_of(request.tuned)
        ),
        "data": {name: data.hash for name, data in sets.items()},
        "request": asdict(request),
    }
    audit = replace(audit, facts=facts)
    with atomic_folder(output) as folder:
        write_json(folder / "audit.json", plain(audit))
    return audit


def _steps(on_progress: Callable[[int, int], None] | None) -> Callable[[], None]:
    done = iter(range(1, 5))

    def step() -> None:
        if on_progress is not None:
            on_progress(next(done), 4)

    return step


def load_tuned(base: str, tuned: str) -> CausalModel:
    """Load a tuned model, or a base model with an adapter merged into it in memory.

    Raises:
        InputError: The place is neither a checkpoint nor an adapter of `base`.
    """
    if not (Path(tuned) / "adapter_config.json").is_file():
        model: CausalModel = load_model(tuned).model
        return model
    if not (Path(tuned) / "adapter_model.safetensors").is_file():
        raise InputError(
            f"the adapter {tuned} has no safetensors weights",
            allowed="adapter_model.safetensors",
            fix="save it again with save_pretrained of peft",
        )
    from peft import PeftModel

    try:
        adapted = PeftModel.from_pretrained(load_model(base).model, tuned)
        merged: CausalModel = adapted.merge_and_unload().eval()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(
            f"cannot put the adapter {tuned} on {base}",
            got=str(error).strip().splitlines()[0],
            fix="give the base model that the adapter was trained on",
        ) from error
    return merged


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
) -> Audit:
    """Compare two loaded models.

    Args:
        request: How to measure.
        models: The model before, the one after, and the tokenizer.
        mask: The harm set.
        sets: Behaviour sets by the names `target` and `preserve`; both may be absent.
        thresholds: Other numbers for the rule than the documented ones.

    Raises:
        MismatchError: The mask or the tuned model does not belong to the base model.
    """
    base, tuned, tokenizer = models
    weights = weights_for_controls(mask, prunable_tensors(base))
    controls = [
        magnitude_matched(mask, weights, label=f"audit/{count}")
        for count in range(request.controls)
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
    effects = effects_of(request, models, mask, controls, sets)
    rises = {
        behaviour.name.partition(", ")[2]: behaviour.rise
        for behaviour in measured
        if behaviour.name.startswith("harm,")
    }
    verdict = decide(rows, grouped["model"][0], rises, effects, thresholds)
    return Audit(verdict, rows, grouped, measured, effects)


def _calibration(
    request: AuditRequest, tokenizer: Tokenizer, target: BehaviourSet | None
) -> list[Encoded]:
    if target is None:
        return []
    rows = target.split("calibration").limit(request.limit)
    return encode(rows.examples, tokenizer, format=request.format, skip=request.skip)
