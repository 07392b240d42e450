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
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from resect.attribution.engine import attribute
from resect.attribution.methods import contrasting, rule_of
from resect.attribution.passes import Progress
from resect.attribution.settings import AttributeSettings, Origin, Pass, both, origin_of
from resect.data.encode import encode
from resect.data.load import BehaviourSet, load_data
from resect.edit.checkpoint import forced_of
from resect.edit.live import removed
from resect.errors import InputError
from resect.files.origin import hash_value
from resect.model import context_of, load_model, model_fingerprint
from resect.model.load import LoadedModel
from resect.records import CausalModel, Encoded, Reduction, Scope, Tokenizer
from resect.weights.fit import marked
from resect.weights.mask import Mask, MaskTensor
from resect.weights.scores import Scores
from resect.weights.select import check_fractions, select

MOST_ROUNDS = 255  # a mask holds the round of a weight in one byte


class _Turn(NamedTuple):
    """One round of several.

    Attributes:
        number: Its number, from 0.
        rounds: Number of rounds.
    """

    number: int
    rounds: int


def locate(
    model: CausalModel,
    tokenizer: Tokenizer,
    target: Sequence[Encoded],
    preserve_scores: Scores | None,
    *,
    contrast: Sequence[Encoded] = (),
    q: float,
    p: float,
    scope: Scope = "tensor",
    rounds: int = 1,
    settings: Pass | None = None,
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
        settings: How the passes are made (`keep` follows q), and where the data are from.
        on_progress: Called with examples done and examples in all, over all rounds.
        work: Folder in which finished rounds are kept, and from which they are read again.

    Raises:
        InputError: A number is out of range, or an example or a contrast cannot be scored.
        MismatchError: The preserve scores belong to another model or tokenizer.
    """
    check_fractions(q, p)
    chosen = both(replace(settings or Pass(), keep=q), origin_of(settings or Pass()))
    _check(rounds, chosen, contrast)
    encoded = contrasted(target, contrast)
    protected = _protected(preserve_scores, p, scope)
    request = [q, p, scope, rounds, chosen, len(contrast), encoded, _digest(protected)]
    folder = None if work is None else work / hash_value([*request, model_fingerprint(model)])
    search = _Search(LoadedModel(model, tokenizer), encoded, chosen, protected, q, scope)
    aimed = Mask({}, {})
    for number in range(rounds):
        path = None if folder is None else folder / f"round-{number}.mask.safetensors"
        if path is not None and path.is_file():
            addition = Mask.load(path)
        else:
            turn = _Turn(number, rounds)
            scores = search.scores(aimed, turn, on_progress)
            meta: dict[str, object] = {}
            if number == 0:
                meta |= select(scores, preserve_scores, q=q, p=p, scope=scope).meta
                meta |= _origin(rounds, contrast)
            addition = Mask(search.addition(scores, aimed, turn), meta)
            if path is not None:
                addition.save(path)
        aimed = aimed.union(addition) if number else addition
    return _without(aimed, protected)


@dataclass(frozen=True)
class _Search:
    """What all rounds of a call share.

    Attributes:
        loaded: The model and its tokenizer.
        encoded: Examples of the behaviour, and of what is subtracted.
        settings: How the passes are made.
        protected: Flat indices by tensor of what the preserve set protects.
        q: Fraction of the target's ranking.
        scope: Rank within each tensor or over the model.
    """

    loaded: LoadedModel
    encoded: list[Encoded]
    settings: AttributeSettings
    protected: Mapping[str, Tensor]
    q: float
    scope: Scope

    def scores(self, aimed: Mask, turn: _Turn, report: Progress | None) -> Scores:
        """Score the model from which the earlier parts have been cut."""
        cut: AbstractContextManager[object] = contextlib.nullcontext()
        if turn.number:
            cut = removed(self.loaded.model, _without(aimed, self.protected))
        with cut:
            return attribute(
                *self.loaded, self.encoded, self.settings, on_progress=_shifted(report, turn)
            )

    def addition(self, scores: Scores, aimed: Mask, turn: _Turn) -> dict[str, MaskTensor]:
        """Return the weights that a round adds to the target set.

        Args:
            scores: Signed scores of the model without the earlier parts.
            aimed: The target set so far; without any tensor in the first round.
            turn: Which round it is.
        """
        free = {}
        for name, tensor in scores.tensors.items():
            ranks = (tensor.value > 0).nonzero().squeeze(1)
            if name in aimed.tensors:
                ranks = ranks[~torch.isin(tensor.index[ranks], aimed.tensors[name].index)]
            free[name] = ranks  # by falling score, since candidates are

        def room(size: int, taken: int) -> int:
            return max(0, math.floor(self.q * size) * (turn.number + 1) // turn.rounds - taken)

        if self.scope == "tensor":
            taken = {name: tensor.index.numel() for name, tensor in aimed.tensors.items()}
            heads = [
                room(tensor.size, taken.get(name, 0)) for name, tensor in scores.tensors.items()
            ]
        else:
            count = room(scores.total, aimed.count)
            values = torch.cat([scores.tensors[name].value[ranks] for name, ranks in free.items()])
            owners = torch.repeat_interleave(torch.tensor([len(ranks) for ranks in free.values()]))
            best = owners[values.argsort(descending=True, stable=True)[:count]]
            heads = torch.bincount(best, minlength=len(free)).tolist()
        tensors = {}
        for (name, tensor), head in zip(scores.tensors.items(), heads, strict=True):
            index, order = tensor.index[free[name][:head]].sort()
            value = tensor.weight[free[name][:head]][order]
            number = torch.full((index.numel(),), turn.number, dtype=torch.uint8)
            tensors[name] = MaskTensor(tensor.shape, index, value, number)
        return tensors


def contrasted(target: Sequence[Encoded], contrast: Sequence[Encoded]) -> list[Encoded]:
    """Return examples whose mean loss is that of the target minus that of the contrast.

    Raises:
        InputError: Both say the same, so that their difference is rounding.
    """
    if not contrast:
        return list(target)
    if _shares(target) == _shares(contrast):
        raise InputError(
            "the contrast says the same as the target, and their difference is rounding",
            got=f"{len(target)} examples and {len(contrast)}, of the same prompts and answers",
            allowed="answers of another kind, for instance harmless ones in the same style",
            fix="give another contrast, or leave it out",
        )
    count = len(target) + len(contrast)
    sides = ((target, 1.0), (contrast, -1.0))
    return [
        replace(example, weight=example.weight * sign * count / len(side))
        for side, sign in sides
        for example in side
    ]


def _shares(examples: Sequence[Encoded]) -> dict[tuple[object, ...], Fraction]:
    """Return the weight of each tokens and scored part in the mean of all."""
    shares: defaultdict[tuple[object, ...], Fraction] = defaultdict(Fraction)
    for example in examples:
        weight = Fraction(example.weight) / len(examples)
        shares[tuple(example.input_ids), example.first_scored] += weight
    return dict(shares)


def refuse_unsigned(settings: Pass) -> None:
    """Refuse to contrast scores that are not linear in the weights of the examples.

    Raises:
        InputError: The method, or this reduction of it, cannot contrast, or there is none of this
            name.
    """
    if not rule_of(settings.method, settings.reduction).contrasts:
        raise InputError(
            "a contrast needs signed scores",
            got=f"{settings.method}, {settings.reduction}",
            allowed=f"{' or '.join(contrasting())}, signed",
            fix="leave the contrast out or choose another method",
        )


def _check(rounds: int, settings: Pass, contrast: Sequence[Encoded]) -> None:
    if not 1 <= rounds <= MOST_ROUNDS:
        raise InputError(
            "the number of rounds is out of range", got=str(rounds), allowed=f"1 to {MOST_ROUNDS}"
        )
    if contrast:
        refuse_unsigned(settings)


def _origin(rounds: int, contrast: Sequence[Encoded]) -> dict[str, object]:
    origin: dict[str, object] = {"rounds": rounds}
    if contrast:
        rows = [[example.id, example.input_ids, example.first_scored] for example in contrast]
        origin["contrast"] = {"examples": len(contrast), "encoded_hash": hash_value(rows)}
    return origin


def _shifted(report: Progress | None, turn: _Turn) -> Progress | None:
    if report is None:
        return None
    return lambda done, total: report(turn.number * total + done, turn.rounds * total)


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


@dataclass(frozen=True)
class LocateRequest:
    """What `resect locate` is asked for; see its help.

    Attributes:
        model: Checkpoint folder or Hub id.
        target: SPEC of the behaviour to cut.
        preserve: SPEC of what is protected; scored whole, in the first token too.
        q: Fraction of the target's ranking, in (0, 1].
        p: Fraction that is protected, in [0, 1].
        settings: How the target is scored; `reduction` and `keep` are set to what that needs.
        origin: Which of target and contrast are scored and how prompts are put; hashes are found
            out.
        contrast: SPEC that is subtracted from the target.
        rounds: Number of parts.
        scope: Rank within each tensor or over the model.
        importance: Reduction of the preserve set's scores.
        limit: Most examples to score, drawn with the seed of `origin`.
        dtype: Dtype of the weights in memory; None for the one on disk.
    """

    model: str
    target: str
    preserve: str
    q: float
    p: float
    settings: Pass = field(default_factory=Pass)
    origin: Origin = field(default_factory=Origin)
    contrast: str | None = None
    rounds: int = 1
    scope: Scope = "tensor"
    importance: Reduction = "mean_of_abs"
    limit: int | None = None
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
    loaded = load_model(request.model, dtype=request.dtype)

    origin = request.origin
    preserve_scores = None
    if request.p > 0:
        preserve_scores = _preserve_scores(request, loaded, preserve, work, on_progress)
    mask = locate(
        loaded.model,
        loaded.tokenizer,
        _encoded(loaded, target, origin),
        preserve_scores,
        contrast=() if contrast is None else _encoded(loaded, contrast, origin),
        q=request.q,
        p=request.p,
        scope=request.scope,
        rounds=request.rounds,
        settings=both(
            replace(request.settings, reduction="signed"), replace(origin, data_hash=target.hash)
        ),
        on_progress=on_progress,
        work=work,
    )
    return marked(mask, forced_of(request.model))


def _behaviour(spec: str, request: LocateRequest) -> BehaviourSet:
    data = load_data(spec).split("calibration")
    if request.origin.category:
        data = data.category(request.origin.category)
    return data.limit(request.limit, request.origin.seed)


def _encoded(loaded: LoadedModel, data: BehaviourSet, origin: Origin) -> list[Encoded]:
    room = context_of(loaded.model)
    return encode(
        data.examples, loaded.tokenizer, format=origin.format, skip=origin.skip, max_length=room
    )


def _preserve_scores(
    request: LocateRequest,
    loaded: LoadedModel,
    preserve: BehaviourSet,
    work: Path,
    on_progress: Progress | None,
) -> Scores:
    """Return the scores of what is protected, from the work folder if they are there."""
    origin = Origin(preserve.hash, request.origin.format, seed=request.origin.seed)
    settings = both(Pass(reduction=request.importance, keep=request.p), origin)
    name = hash_value([settings, model_fingerprint(loaded.model)])
    path = work / f"{name}.scores.safetensors"
    if path.is_file():
        return Scores.load(path)
    scores = attribute(*loaded, _encoded(loaded, preserve, origin), settings, on_progress)
    scores.save(path)
    return scores
