r"""Which weights are cut: needed by the target and not needed by the preserve set.

    T_q = the top ⌊q·n⌋ weights by the target's score, only those with a score above 0
    U_p = the top ⌊p·n⌋ weights by the preserve set's score
    M   = T_q \ U_p

n counts the weights of a tensor (`scope="tensor"`, the released code of arXiv 2604.09544) or of the
model (`scope="model"`). Ties break by tensor order, then by flat index. Whole neurons, heads or
experts are chosen likewise by their own scores (`resect.weights.whole`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from resect.errors import InputError, MismatchError
from resect.files.origin import same_print
from resect.records import Scope, Unit
from resect.weights.mask import Mask, MaskTensor
from resect.weights.scores import Scores
from resect.weights.units import families_of
from resect.weights.whole import whole_units


def select(
    target: Scores,
    preserve: Scores | None,
    *,
    q: float,
    p: float,
    scope: Scope = "tensor",
    unit: Unit = "weight",
    force: bool = False,
) -> Mask:
    """Return the set difference of the module's header.

    Args:
        target: Signed scores of the behaviour.
        preserve: Scores of what is protected; None protects nothing.
        q: Fraction of the target's ranking, in (0, 1].
        p: Fraction that is protected, in [0, 1].
        scope: Rank within each tensor or over the model.
        unit: What is cut as a whole: single weights, or `neuron`, `head` or `expert`, which need
            dense scores; `meta["unit"]` and `meta["units"]` then say so and how many.
        force: Take scores of different models or tokenizers; `meta["forced"]` then says so.

    Raises:
        InputError: q or p is out of range or above what the scores keep, or the model has no such
            unit.
        MismatchError: The scores belong to different models or tokenizers.
    """
    if unit != "weight":
        families_of(target.units, unit)  # or a sparse file would be asked for a larger --keep first
    _check(target, preserve, q, p)
    forced = _differences(target, preserve, force=force)
    origin = _origin(target, preserve) | {"q": q, "p": p, "scope": scope}
    if forced:
        origin["forced"] = forced
    if unit != "weight":
        chosen = whole_units(target, preserve, q=q, p=p, scope=scope, unit=unit)
        return Mask(chosen.tensors, origin | {"unit": unit, "units": chosen.number})
    return Mask(_single_weights(target, preserve, q, p, scope), origin)


def _single_weights(
    target: Scores, preserve: Scores | None, q: float, p: float, scope: Scope
) -> dict[str, MaskTensor]:
    """Return the weights of M by tensor."""
    heads = map(min, target.heads(q, scope), target.positive)
    safe = None if preserve is None or p == 0 else preserve.heads(p, scope)
    # Where each candidate of the target stands in the preserve set's list of that tensor.
    their_rank = None if preserve is None or safe is None else target.places(preserve)
    tensors = {}
    for number, ((name, by_index), head) in enumerate(
        zip(target.by_index.items(), heads, strict=True)
    ):
        # Measured: numpy compares and finds several times as quickly as torch at these sizes.
        chosen = by_index.rank.numpy() < head
        if their_rank is not None and safe is not None:
            chosen &= their_rank[name].numpy() >= safe[number]
        places = torch.from_numpy(np.flatnonzero(chosen))
        tensors[name] = MaskTensor(
            target.tensors[name].shape,
            by_index.index.index_select(0, places),
            by_index.weight.index_select(0, places),
            torch.zeros(len(places), dtype=torch.uint8),
        )
    return tensors


def next_slice(
    target: Scores,
    preserve: Scores | None,
    *,
    q: float,
    p: float,
    scope: Scope = "tensor",
    unit: Unit = "weight",
) -> Mask:
    """Return ranks q to 2q of the target minus the protected set: the next weights in line.

    Raises:
        InputError: 2q is above what the scores keep, or an argument is out of range.
        MismatchError: The scores belong to different models or tokenizers.
    """
    if not 0 < q <= 0.5:
        raise InputError("q is out of range for the next slice", got=f"{q:g}", allowed="(0, 0.5]")
    wide = select(target, preserve, q=2 * q, p=p, scope=scope, unit=unit)
    mask = wide.subtract(select(target, None, q=q, p=0, scope=scope, unit=unit))
    meta = {name: value for name, value in mask.meta.items() if name != "units"}
    return Mask(mask.tensors, {**meta, "q": q, "control": "next_slice"})


def check_fractions(q: float, p: float) -> None:
    """Refuse fractions that select nothing or more than there is.

    Raises:
        InputError: q or p is out of range.
    """
    if not 0 < q <= 1:
        raise InputError("q is out of range", got=f"{q:g}", allowed="(0, 1]")
    if not 0 <= p <= 1:
        raise InputError("p is out of range", got=f"{p:g}", allowed="[0, 1]")


def _check(target: Scores, preserve: Scores | None, q: float, p: float) -> None:
    check_fractions(q, p)
    if not target.meta.ranks_targets:
        raise InputError(
            "the target's scores have no sign",
            got=target.meta.reduction,
            allowed="signed",
            fix="score the target again with --reduction signed",
        )
    for name, scores, reach in (("q", target, q), ("p", preserve, p)):
        if scores is not None and reach > scores.meta.keep:
            raise InputError(
                f"{name} reaches beyond what the scores keep",
                got=f"{reach:g}",
                allowed=f"≤ {scores.meta.keep:g}",
                fix=f"score again with --keep {reach:g}",
            )


def _differences(target: Scores, preserve: Scores | None, *, force: bool) -> str:
    """Return what is forced: in what the scores differ, and what was forced in their making."""
    forced = [target.meta.forced]
    if preserve is None:
        return target.meta.forced
    forced.append(preserve.meta.forced)
    for subject, expected, actual in (
        ("models", target.meta.model_fingerprint, preserve.meta.model_fingerprint),
        ("tokenizers", target.meta.tokenizer_fingerprint, preserve.meta.tokenizer_fingerprint),
    ):
        if same_print(expected, actual):
            continue
        got = f"{expected} ({target.meta.model_id}) and {actual} ({preserve.meta.model_id})"
        if not force:
            raise MismatchError(
                f"the scores belong to different {subject}",
                got=got,
                fix="score both behaviours on the same model; or add --force, and everything made "
                "from it will say so",
            )
        forced.append(f"scores of different {subject}, {got}")
    shapes = [
        {name: tensor.shape for name, tensor in scores.tensors.items()}
        for scores in (target, preserve)
    ]
    if shapes[0] != shapes[1]:
        raise MismatchError("the scores cover different tensors", fix="score both the same way")
    return "; ".join(dict.fromkeys(filter(None, forced)))


def _origin(target: Scores, preserve: Scores | None) -> dict[str, object]:
    return {
        "model_id": target.meta.model_id,
        "model_fingerprint": target.meta.model_fingerprint,
        "tokenizer_fingerprint": target.meta.tokenizer_fingerprint,
        "target": _described(target),
        "preserve": None if preserve is None else _described(preserve),
    }


def _described(scores: Scores) -> dict[str, object]:
    """Return what a mask says of the scores that it was made from."""
    meta = scores.meta
    return {
        "method": meta.method,
        "reduction": meta.reduction,
        "data_hash": meta.data_hash,
        "examples": meta.examples,
        "tokens": meta.tokens,
        "format": meta.format,
        "skip": meta.skip,
        "category": meta.category,
        "seed": meta.seed,
    }


Draw = Callable[[MaskTensor, Tensor, np.random.Generator], Tensor]
