"""From a model and a data SPEC to scores: what `resect score` and the Python API call."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from resect.attribution.choices import reading
from resect.attribution.engine import attribute_many
from resect.attribution.methods import rule_of
from resect.attribution.offloaded import attribute_streamed
from resect.attribution.rounds import LINEAR, contrasted
from resect.attribution.settings import AttributeSettings
from resect.data.encode import encode
from resect.data.load import BehaviourSet, load_data
from resect.edit.checkpoint import forced_of
from resect.errors import InputError
from resect.files.origin import hash_value
from resect.machine.memory import sparing
from resect.machine.processes import ALONE, Processes
from resect.model import context_of, load_model
from resect.model.files import has_weights
from resect.model.load import load_tokenizer
from resect.model.on_disk import Shelf, open_shelf
from resect.records import Encoded, Format, Reduction
from resect.weights.scores import Scores

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoreRequest:
    """The options of `resect score`; see its help."""

    model: str
    data: str
    reduction: Reduction = "signed"
    format: Format = "chat"
    skip: int = 0
    category: str | None = None
    limit: int | None = None
    seed: int = 0
    batch_size: str = "auto"
    dtype: str | None = None
    keep: float | None = None
    dense: bool = False
    method: str = "snip"
    contrast: str | None = None
    allow_partial: bool = False
    accumulator: Literal["auto", "device", "cpu"] = "auto"
    layers_per_pass: int | None = None
    checkpoint: bool = False
    device: str | None = None
    stream: bool | None = None


def score_model(
    request: ScoreRequest,
    on_progress: Callable[[int, int], None] | None = None,
    processes: Processes = ALONE,
    on_note: Callable[[str], None] = _log.warning,
) -> Scores:
    """Load model and data and score them.

    Unless the request says so, a model is read block by block if it does not fit into memory.

    Args:
        request: What to score.
        on_progress: Called with examples done and examples in all.
        processes: The processes that share the examples; each of them calls this.
        on_note: Called with a line if the model is read block by block by the plan's choice.

    Raises:
        InputError: Something in the request cannot be used as given, or memory does not suffice.
    """
    if request.keep is not None and not 0 < request.keep <= 1:
        raise InputError("keep is out of range", got=f"{request.keep:g}", allowed="(0, 1]")
    batch_size = _batch_size(request.batch_size)
    rule_of(request.method, request.reduction)
    data = load_data(request.data).split("calibration")
    contrast = None if request.contrast is None else load_data(request.contrast)
    if request.category is not None:
        data = data.category(request.category)
    data = data.limit(request.limit, request.seed)
    if _reads_blocks(request, data, contrast, processes, on_note=on_note):
        shelf = open_shelf(request.model, dtype=request.dtype, device=request.device)
        model, tokenizer = shelf.model, shelf.tokenizer
    else:
        shelf = None
        model, tokenizer = load_model(request.model, dtype=request.dtype, device=request.device)
    fix = "use --stream, a smaller --batch-size or --dtype bfloat16"
    with sparing(f"scoring {request.model} does not fit into memory", fix):
        scores = attribute(
            model,
            tokenizer,
            data,
            reduction=request.reduction,
            format=request.format,
            skip=request.skip,
            batch_size=batch_size,
            keep=request.keep,
            dense=request.dense,
            method=request.method,
            contrast=contrast,
            allow_partial=request.allow_partial,
            accumulator=request.accumulator,
            layers_per_pass=request.layers_per_pass,
            checkpoint=request.checkpoint,
            category=request.category or "",
            seed=request.seed,
            on_progress=on_progress,
            processes=processes,
            shelf=shelf,
        )
    forced = forced_of(request.model)
    return replace(scores, meta=replace(scores.meta, forced=forced)) if forced else scores


def _reads_blocks(
    request: ScoreRequest,
    data: BehaviourSet,
    contrast: BehaviourSet | None,
    processes: Processes,
    *,
    on_note: Callable[[str], None],
) -> bool:
    """Tell whether the model is read block by block: as asked for, or else as planned."""
    if request.stream is not None:
        return request.stream
    folder = Path(request.model)
    # Who says how it is to be held in memory wants it there.
    in_memory = request.layers_per_pass or request.checkpoint or request.accumulator != "auto"
    if in_memory or request.device == "auto" or request.method == "integrated":
        return False
    if not (folder / "config.json").is_file() or not has_weights(folder):
        return False  # to load it says what is wrong, and only folders can be read by blocks

    def encoded() -> list[Encoded]:
        tokenizer = load_tokenizer(folder)
        sets = [data, *([] if contrast is None else [contrast.split("calibration")])]
        given: Any = {"format": request.format, "skip": request.skip}
        return [one for each in sets for one in encode(each.examples, tokenizer, **given)]

    found = reading(
        folder,
        encoded,
        AttributeSettings(
            batch_size=_batch_size(request.batch_size), keep=request.keep, dense=request.dense
        ),
        sums=len(rule_of(request.method, request.reduction).needs),
        dtype=request.dtype,
        device=request.device,
        processes=processes,
    )
    if found.line and processes.rank == 0:
        on_note(found.line)
    return found.stream


def _batch_size(text: str) -> int | None:
    if text == "auto":
        return None
    if text.isdigit() and int(text) > 0:
        return int(text)
    raise InputError("cannot read the batch size", got=repr(text), allowed="auto, or ≥ 1")


def attribute(
    model: Any,
    tokenizer: Any,
    data: BehaviourSet,
    *,
    reduction: Reduction = "signed",
    format: Format = "chat",
    skip: int = 0,
    contrast: BehaviourSet | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    processes: Processes = ALONE,
    shelf: Shelf | None = None,
    **settings: Any,
) -> Scores:
    """Score every prunable weight of a model for a behaviour.

    Args:
        model: A Hugging Face causal LM.
        tokenizer: Its tokenizer.
        data: The behaviour set; a set with splits gives its calibration split.
        reduction: `signed` for a target, `mean_of_abs` or `abs_of_mean` for a preserve set.
        format: `raw` or `chat`.
        skip: Response tokens that are not scored, from the first.
        contrast: A set whose score is subtracted in the same pass, for instance harmless answers in
            the same style; signed scores of linear methods only.
        on_progress: Called with examples done and examples in all.
        processes: The processes that share the examples, from
            `resect.machine.processes.process_group`.
        shelf: Where the weights of `model` are read from, block by block (`open_shelf`); None if
            they are in memory.
        **settings: Fields of `AttributeSettings`.

    Returns:
        Scores by checkpoint tensor, fp32; higher means more responsible.

    Raises:
        InputError: An example cannot be scored, or a setting is out of range.
    """
    data = data.split("calibration")
    room = context_of(model)
    encoded = encode(data.examples, tokenizer, format=format, skip=skip, max_length=room)
    data_hash = data.hash
    if contrast is not None:
        _refuse_unsigned(settings.get("method", "snip"), reduction)
        other = contrast.split("calibration")
        against = encode(other.examples, tokenizer, format=format, skip=skip, max_length=room)
        encoded = contrasted(encoded, against)
        data_hash = hash_value([data.hash, other.hash])
    chosen = AttributeSettings(data_hash=data_hash, format=format, skip=skip, **settings)
    keywords: Any = {"settings": chosen, "on_progress": on_progress, "reductions": (reduction,)}
    if shelf is not None:
        return attribute_streamed(shelf, encoded, processes=processes, **keywords)[reduction]
    return attribute_many(model, tokenizer, encoded, processes=processes, **keywords)[reduction]


def _refuse_unsigned(method: str, reduction: str) -> None:
    if method not in LINEAR or reduction != "signed":
        raise InputError(
            "a contrast needs signed scores",
            got=f"{method}, {reduction}",
            allowed=f"{' or '.join(LINEAR)}, signed",
            fix="leave the contrast out or choose another method",
        )
