"""From a model and a data SPEC to scores: what `resect score` and the Python API call."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from resect.attribution.choices import reading
from resect.attribution.engine import attribute_many
from resect.attribution.methods import rule_of
from resect.attribution.offloaded import attribute_streamed
from resect.attribution.passes import Progress
from resect.attribution.rounds import contrasted, refuse_unsigned
from resect.attribution.settings import AttributeSettings, Origin, Pass
from resect.data.encode import encode
from resect.data.load import BehaviourSet, load_data
from resect.edit.checkpoint import forced_of
from resect.errors import InputError
from resect.files.origin import hash_value
from resect.machine.memory import sparing
from resect.machine.processes import ALONE, Processes
from resect.model import context_of, load_model
from resect.model.files import has_weights
from resect.model.imported import checkpoint_of
from resect.model.load import LoadedModel, load_tokenizer
from resect.model.on_disk import Shelf, open_shelf
from resect.records import CausalModel, Encoded, Tokenizer
from resect.weights.scores import Scores

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoreRequest:
    """What `resect score` is asked for; see its help.

    Attributes:
        model: Checkpoint folder or Hub id.
        data: SPEC of the behaviour.
        settings: How the pass is made.
        origin: Which of the data are scored and how prompts are put; its hash is found out.
        contrast: SPEC whose score is subtracted.
        limit: Most examples to score, drawn with the seed of `origin`.
        dtype: Dtype of the weights in memory; None for the one on disk.
        device: Where the model runs; None for a GPU if there is one.
        stream: Read the model block by block; None if it does not fit into memory.
    """

    model: str
    data: str
    settings: Pass = field(default_factory=Pass)
    origin: Origin = field(default_factory=Origin)
    contrast: str | None = None
    limit: int | None = None
    dtype: str | None = None
    device: str | None = None
    stream: bool | None = None


class _Behaviour(NamedTuple):
    """The data of a request.

    Attributes:
        target: What is scored.
        contrast: What is subtracted.
    """

    target: BehaviourSet
    contrast: BehaviourSet | None


def score_model(
    request: ScoreRequest,
    on_progress: Progress | None = None,
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
    keep = request.settings.keep
    if keep is not None and not 0 < keep <= 1:
        raise InputError("keep is out of range", got=f"{keep:g}", allowed="(0, 1]")
    rule_of(request.settings.method, request.settings.reduction)
    behaviour = _behaviour(request)
    source: LoadedModel | Shelf
    if _reads_blocks(request, behaviour, processes, on_note=on_note):
        source = open_shelf(request.model, dtype=request.dtype, device=request.device)
    else:
        source = load_model(request.model, dtype=request.dtype, device=request.device)
    fix = "use --stream, a smaller --batch-size or --dtype bfloat16"
    with sparing(f"scoring {request.model} does not fit into memory", fix):
        scores = _scores_of(
            source, behaviour, request.settings, request.origin, on_progress, processes
        )
    forced = forced_of(request.model)
    return replace(scores, meta=replace(scores.meta, forced=forced)) if forced else scores


def _behaviour(request: ScoreRequest) -> _Behaviour:
    contrast = None if request.contrast is None else _chosen(request.contrast, request)
    return _Behaviour(_chosen(request.data, request), contrast)


def _chosen(spec: str, request: ScoreRequest) -> BehaviourSet:
    """Return the rows of a set that are scored: of the category, as many as the limit."""
    data = load_data(spec).split("calibration")
    if request.origin.category:
        data = data.category(request.origin.category)
    return data.limit(request.limit, request.origin.seed)


def _reads_blocks(
    request: ScoreRequest,
    behaviour: _Behaviour,
    processes: Processes,
    *,
    on_note: Callable[[str], None],
) -> bool:
    """Tell whether the model is read block by block: as asked for, or else as planned."""
    if request.stream is not None:
        return request.stream
    folder, settings = Path(checkpoint_of(request.model)), request.settings
    # A request that says how the model is to be held in memory wants it there.
    in_memory = settings.layers_per_pass or settings.checkpoint or settings.accumulator != "auto"
    if in_memory or request.device == "auto" or settings.factors != [1.0]:
        return False
    if not (folder / "config.json").is_file() or not has_weights(folder):
        return False  # loading says what is wrong, and only folders can be read by blocks

    def encoded() -> list[Encoded]:
        tokenizer = load_tokenizer(folder)
        sets = [behaviour.target]
        if behaviour.contrast is not None:
            sets.append(behaviour.contrast.split("calibration"))
        return [
            example
            for data in sets
            for example in encode(
                data.examples, tokenizer, format=request.origin.format, skip=request.origin.skip
            )
        ]

    choice = reading(
        folder,
        encoded,
        settings,
        sums=len(rule_of(settings.method, settings.reduction).needs),
        dtype=request.dtype,
        device=request.device,
        processes=processes,
    )
    if choice.line and processes.rank == 0:
        on_note(choice.line)
    return choice.stream


def attribute(
    model: CausalModel,
    tokenizer: Tokenizer,
    data: BehaviourSet,
    *,
    contrast: BehaviourSet | None = None,
    on_progress: Progress | None = None,
    processes: Processes = ALONE,
    shelf: Shelf | None = None,
    **settings: Any,
) -> Scores:
    """Score every prunable weight of a model for a behaviour.

    Args:
        model: A Hugging Face causal LM.
        tokenizer: Its tokenizer.
        data: The behaviour set; a set with splits gives its calibration split.
        contrast: A set whose score is subtracted in the same pass, for instance harmless answers in
            the same style; signed scores of linear methods only.
        on_progress: Called with examples done and examples in all.
        processes: The processes that share the examples, from
            `resect.machine.processes.process_group`.
        shelf: Where the weights of `model` are read from, block by block (`open_shelf`); None if
            they are in memory.
        **settings: Fields of `AttributeSettings`, first of all `reduction`: `signed` for a target,
            `mean_of_abs` or `abs_of_mean` for a preserve set; `format`: `raw` or `chat`; and
            `skip`: response tokens that are not scored, from the first.

    Returns:
        Scores by checkpoint tensor, fp32; higher means more responsible.

    Raises:
        InputError: An example cannot be scored, or a setting is out of range.
    """
    both = AttributeSettings(**settings)
    source = LoadedModel(model, tokenizer) if shelf is None else shelf
    return _scores_of(source, _Behaviour(data, contrast), both, both, on_progress, processes)


def _scores_of(
    source: LoadedModel | Shelf,
    behaviour: _Behaviour,
    settings: Pass,
    origin: Origin,
    on_progress: Progress | None,
    processes: Processes,
) -> Scores:
    model, tokenizer, reduction = source.model, source.tokenizer, settings.reduction
    room = context_of(model)

    def encoded(data: BehaviourSet) -> list[Encoded]:
        return encode(
            data.examples, tokenizer, format=origin.format, skip=origin.skip, max_length=room
        )

    data = behaviour.target.split("calibration")
    examples, data_hash = encoded(data), data.hash
    if behaviour.contrast is not None:
        refuse_unsigned(settings)
        contrast = behaviour.contrast.split("calibration")
        examples = contrasted(examples, encoded(contrast))
        data_hash = hash_value([data.hash, contrast.hash])
    origin = replace(origin, data_hash=data_hash)
    if isinstance(source, Shelf):
        scores = attribute_streamed(
            source,
            examples,
            reductions=(reduction,),
            settings=settings,
            origin=origin,
            on_progress=on_progress,
            processes=processes,
        )
    else:
        scores = attribute_many(
            model,
            tokenizer,
            examples,
            reductions=(reduction,),
            settings=settings,
            origin=origin,
            on_progress=on_progress,
            processes=processes,
        )
    return scores[reduction]
