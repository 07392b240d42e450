r"""Score and select in one, in rounds: what has been cut changes what the rest is needed for.

The target set T of ⌊q·n⌋ weights is built in r equal parts. Round k (from 0) scores the model from
which the earlier parts have been cut and adds the highest ranking weights that are not in T yet,
until T has ⌊q·n⌋·(k+1) // r weights; only scores above 0 count. What the preserve set protects,
scored once on the intact model, is never cut: the mask is M = T \ U_p, as in
`resect.weights.select`, and with one round it is the same mask.

With a contrast the ranking is the facilitation of the target minus that of the contrast, from one
pass in which examples weigh +N/|D| and -N/|D'|, N = |D| + |D'|.

Legend: n weights of a tensor (`scope="tensor"`) or of the model (`scope="model"`).
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from resect.attribution.engine import attribute
from resect.attribution.settings import AttributeSettings
from resect.data.encode import encode
from resect.data.load import BehaviourSet, load_data
from resect.edit.checkpoint import forced_of
from resect.edit.live import removed
from resect.errors import InputError
from resect.files.origin import hash_value
from resect.model import context_of, load_model, model_fingerprint
from resect.records import Encoded, Format, Reduction, Scope
from resect.weights.fit import marked
from resect.weights.mask import Mask, MaskTensor
from resect.weights.scores import Scores
from resect.weights.select import check_fractions, select

# Methods whose score is linear in the weights of the examples, so that one pass makes a contrast.
LINEAR = ("snip", "integrated")
MOST_ROUNDS = 255  # a mask holds the round of a weight in one byte

Progress = Callable[[int, int], None]


def locate(
    model: Any,
    tokenizer: Any,
    target: Sequence[Encoded],
    preserve_scores: Scores | None,
    *,
    contrast: Sequence[Encoded] = (),
    q: float,
    p: float,
    scope: Scope = "tensor",
    rounds: int = 1,
    settings: AttributeSettings | None = None,
    on_progress: Progress | None = None,
    work: Path | None = None,
) -> Mask:
    """Return the mask of the module's header; the model is left as it was, bit for bit.

    Args:
        model: A Hugging Face causal LM.
        tokenizer: Its tokenizer.
        target: Examples of the behaviour.
        preserve_scores: Importance of what is protected, of the intact model; None for nothing.
        contrast: Examples of what is subtracted, for instance harmless answers in the same style.
        q: Fraction of the target's ranking, in (0, 1].
        p: Fraction that is protected, in [0, 1].
        scope: Rank within each tensor or over the model.
        rounds: Number of parts, r.
        settings: How the passes are made; `keep` is set to what q needs.
        on_progress: Called with examples done and examples in all, over all rounds.
        work: Folder in which finished rounds are kept; what is there already is not done again.

    Raises:
        InputError: A number is out of range, an example cannot be scored, or the settings name a
            method that cannot contrast.
        MismatchError: The preserve scores belong to another model or tokenizer.
    """
    check_fractions(q, p)
    settings = replace(settings or AttributeSettings(), keep=q)
    _check(rounds, settings, contrast)
    encoded = contrasted(target, contrast)
    protected = _protected(preserve_scores, p, scope)
    request = [q, p, scope, rounds, settings, len(contrast), encoded, _digest(protected)]
    folder = None if work is None else work / hash_value([*request, model_fingerprint(model)])
    aimed: Mask | None = None
    for at in range(rounds):
        kept = None if folder is None else folder / f"round-{at}.mask.safetensors"
        if kept is not None and kept.is_file():
            part = Mask.load(kept)
        else:
            cut = None if aimed is None else _without(aimed, protected)
            report = _shifted(on_progress, at, rounds)
            scores = _scores_of((model, tokenizer), encoded, settings, cut, report)
            part = _part(scores, aimed, (q, scope), (at, rounds))
            if at == 0:
                origin = select(scores, preserve_scores, q=q, p=p, scope=scope).meta
                part = Mask(part.tensors, {**origin, **_origin(rounds, contrast)})
            if kept is not None:
                part.save(kept)
        aimed = part if aimed is None else aimed.union(part)
    return _without(cast("Mask", aimed), protected)


def contrasted(target: Sequence[Encoded], contrast: Sequence[Encoded]) -> list[Encoded]:
    """Return examples whose mean loss is that of the target minus that of the contrast."""
    if not contrast:
        return list(target)
    count = len(target) + len(contrast)
    sides = ((target, 1.0), (contrast, -1.0))
    return [
        replace(example, weight=example.weight * sign * count / len(side))
        for side, sign in sides
        for example in side
    ]


def _check(rounds: int, settings: AttributeSettings, contrast: Sequence[Encoded]) -> None:
    if not 1 <= rounds <= MOST_ROUNDS:
        raise InputError(
            "the number of rounds is out of range", got=str(rounds), allowed=f"1 to {MOST_ROUNDS}"
        )
    if contrast and (settings.method not in LINEAR or settings.reduction != "signed"):
        raise InputError(
            "a contrast needs signed scores",
            got=f"{settings.method}, {settings.reduction}",
            allowed=f"{' or '.join(LINEAR)}, signed",
            fix="leave the contrast out or choose another method",
        )


def _origin(rounds: int, contrast: Sequence[Encoded]) -> dict[str, Any]:
    found: dict[str, Any] = {"rounds": rounds}
    if contrast:
        rows = [[example.id, example.input_ids, example.first_scored] for example in contrast]
        found["contrast"] = {"examples": len(contrast), "encoded_hash": hash_value(rows)}
    return found


def _scores_of(
    loaded: tuple[Any, Any],
    encoded: Sequence[Encoded],
    settings: AttributeSettings,
    cut: Mask | None,
    report: Progress | None,
) -> Scores:
    with contextlib.nullcontext() if cut is None else removed(loaded[0], cut):
        return attribute(*loaded, encoded, settings, on_progress=report)


def _shifted(report: Progress | None, at: int, rounds: int) -> Progress | None:
    if report is None:
        return None
    return lambda done, total: report(at * total + done, rounds * total)


def _protected(preserve: Scores | None, p: float, scope: Scope) -> dict[str, Tensor]:
    """Return flat indices by tensor of what the preserve set protects."""
    if preserve is None or p == 0:
        return {}
    if p > preserve.meta.keep:
        raise InputError(
            "p reaches beyond what the scores keep",
            got=f"{p:g}",
            allowed=f"≤ {preserve.meta.keep:g}",
            fix=f"score again with --keep {p:g}",
        )
    heads = preserve.heads(p, scope)
    return {
        name: tensor.index[:head]
        for (name, tensor), head in zip(preserve.tensors.items(), heads, strict=True)
    }


def _digest(protected: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, index in protected.items():
        digest.update(f"{name}/{index.numel()}/".encode())
        digest.update(index.numpy().tobytes())
    return digest.hexdigest()


def _without(aimed: Mask, protected: Mapping[str, Tensor]) -> Mask:
    """Return what is cut of what is aimed at."""
    if not protected:
        return aimed
    tensors = {
        name: tensor.keep(~torch.isin(tensor.index, protected[name]))
        for name, tensor in aimed.tensors.items()
    }
    return Mask(tensors, aimed.meta)


def _part(
    scores: Scores, aimed: Mask | None, reach: tuple[float, Scope], turn: tuple[int, int]
) -> Mask:
    """Return the weights that this round adds to the target set.

    Args:
        scores: Signed scores of the model without the earlier parts.
        aimed: The target set so far.
        reach: q and the scope.
        turn: Number of the round from 0, and of rounds in all.
    """
    (q, scope), (at, rounds) = reach, turn
    free = {}
    for name, tensor in scores.tensors.items():
        place = (tensor.value > 0).nonzero().squeeze(1)
        if aimed is not None:
            place = place[~torch.isin(tensor.index[place], aimed.tensors[name].index)]
        free[name] = place  # by falling score, since candidates are

    def room(size: int, taken: int) -> int:
        return max(0, math.floor(q * size) * (at + 1) // rounds - taken)

    if scope == "tensor":
        taken = {name: 0 if aimed is None else aimed.tensors[name].index.numel() for name in free}
        heads = [room(tensor.size, taken[name]) for name, tensor in scores.tensors.items()]
    else:
        count = room(scores.total, 0 if aimed is None else aimed.count)
        values = torch.cat([scores.tensors[name].value[place] for name, place in free.items()])
        owners = torch.repeat_interleave(torch.tensor([len(place) for place in free.values()]))
        best = owners[values.argsort(descending=True, stable=True)[:count]]
        heads = torch.bincount(best, minlength=len(free)).tolist()
    tensors = {}
    for (name, tensor), head in zip(scores.tensors.items(), heads, strict=True):
        index, order = tensor.index[free[name][:head]].sort()
        value = tensor.weight[free[name][:head]][order]
        number = torch.full((index.numel(),), at, dtype=torch.uint8)
        tensors[name] = MaskTensor(tensor.shape, index, value, number)
    return Mask(tensors, {})


@dataclass(frozen=True)
class LocateRequest:
    """The options of `resect locate`; see its help."""

    model: str
    target: str
    preserve: str
    q: float
    p: float
    contrast: str | None = None
    rounds: int = 1
    scope: Scope = "tensor"
    method: str = "snip"
    importance: Reduction = "mean_of_abs"
    format: Format = "chat"
    skip: int = 0
    category: str | None = None
    limit: int | None = None
    seed: int = 0
    dtype: str | None = None


def locate_model(request: LocateRequest, work: Path, on_progress: Progress | None = None) -> Mask:
    """Load model and data, and locate.

    Args:
        request: What to do. `skip`, `category` and `limit` are for the target and the contrast; the
            preserve set is scored whole.
        work: Folder in which finished passes are kept, so that a second run goes on.
        on_progress: Called with examples done and examples in all of the passes of one kind.

    Raises:
        InputError: Something in the request cannot be used as given.
        MismatchError: What the folder holds belongs to another model.
    """
    check_fractions(request.q, request.p)
    target = _behaviour(request.target, request)
    contrast = None if request.contrast is None else _behaviour(request.contrast, request)
    preserve = load_data(request.preserve).split("calibration")
    model, tokenizer = load_model(request.model, dtype=request.dtype)
    room = context_of(model)

    def encoded(data: BehaviourSet | None, skip: int) -> list[Encoded]:
        rows = () if data is None else data.examples
        return encode(rows, tokenizer, format=request.format, skip=skip, max_length=room)

    facts = AttributeSettings(
        reduction=request.importance,
        keep=request.p,
        data_hash=preserve.hash,
        format=request.format,
        seed=request.seed,
    )
    kept = work / f"{hash_value([facts, model_fingerprint(model)])}.scores.safetensors"
    protect: Scores | None = None
    if request.p > 0 and kept.is_file():
        protect = Scores.load(kept)
    elif request.p > 0:
        protect = attribute(model, tokenizer, encoded(preserve, 0), facts, on_progress)
        protect.save(kept)
    mask = locate(
        model,
        tokenizer,
        encoded(target, request.skip),
        protect,
        contrast=encoded(contrast, request.skip),
        q=request.q,
        p=request.p,
        scope=request.scope,
        rounds=request.rounds,
        settings=replace(
            facts,
            method=request.method,
            reduction="signed",
            data_hash=target.hash,
            skip=request.skip,
            category=request.category or "",
        ),
        on_progress=on_progress,
        work=work,
    )
    return marked(mask, forced_of(request.model))


def _behaviour(spec: str, request: LocateRequest) -> BehaviourSet:
    data = load_data(spec).split("calibration")
    if request.category is not None:
        data = data.category(request.category)
    return data.limit(request.limit, request.seed)
