"""Scores on disk and in memory: for each tensor the weights that any selection could take.

For each checkpoint tensor the candidates are the top ⌊keep·n⌋ of the tensor and those of its
weights that are among the top ⌊keep·N⌋ of the model; every (p, q) up to `keep` is then selected
without scoring again. Higher means that the behaviour depends on the weight more.

Legend: n weights of a tensor, N of the model, k candidates of a tensor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from resect import store
from resect.errors import InputError
from resect.mask import load_artefact

KIND = "resect.scores"


@dataclass(frozen=True)
class ScoreMeta:
    """Every setting that can change a score, and where it comes from.

    Attributes:
        method: Score method, for instance `snip`.
        reduction: `signed` (facilitation), `opposite`, `mean_of_abs` or `abs_of_mean`.
        keep: Largest fraction that can be selected.
        model_id: Folder or id as given.
        model_fingerprint: 16 hex digits.
        tokenizer_fingerprint: 16 hex digits.
        data_hash: 16 hex digits.
        examples: Number of examples.
        tokens: Number of scored tokens.
        format: `raw` or `chat`.
        skip: Response tokens that were not scored.
        category: The one category that was scored, "" for all.
        seed: Seed of the draw of examples.
        higher_is_more_responsible: Always true; a file that says otherwise is refused.
    """

    method: str
    reduction: str
    keep: float
    model_id: str
    model_fingerprint: str
    tokenizer_fingerprint: str
    data_hash: str
    examples: int
    tokens: int
    format: str
    skip: int
    category: str
    seed: int
    higher_is_more_responsible: bool = True


@dataclass(frozen=True)
class TensorScores:
    """Candidates of one checkpoint tensor.

    Attributes:
        shape: Shape of the tensor.
        index: [k] flat indices, int64, by falling score, ties by index.
        value: [k] scores, fp32.
        weight: [k] the weights themselves, in the model's dtype; a mask stores them.
    """

    shape: tuple[int, ...]
    index: Tensor
    value: Tensor
    weight: Tensor

    @property
    def size(self) -> int:
        """Number of weights of the tensor, n."""
        size = 1
        for side in self.shape:
            size *= side
        return size


@dataclass(frozen=True)
class Scores:
    """Scores of a model for one behaviour.

    Attributes:
        tensors: Checkpoint tensor name to candidates, in model order.
        meta: Settings and origin.
    """

    tensors: Mapping[str, TensorScores]
    meta: ScoreMeta

    @property
    def total(self) -> int:
        """Number of prunable weights, N."""
        return sum(tensor.size for tensor in self.tensors.values())

    def summary(self) -> str:
        """Return one line for people."""
        kept = sum(tensor.index.numel() for tensor in self.tensors.values())
        return (
            f"{self.meta.reduction} scores of {self.meta.examples} examples "
            f"({self.meta.tokens} tokens), {kept:,} candidates of {self.total:,} weights"
        )

    def save(self, path: str | Path) -> None:
        """Write the scores as safetensors, whole or not at all."""
        blobs: dict[str, Tensor] = {}
        for name, tensor in self.tensors.items():
            narrow = torch.int32 if tensor.size < 2**31 else torch.int64
            blobs[f"{name}|index"] = tensor.index.to(narrow).contiguous()
            blobs[f"{name}|value"] = tensor.value.contiguous()
            blobs[f"{name}|weight"] = tensor.weight.contiguous()
        facts = {
            "kind": KIND,
            "shapes": {name: list(tensor.shape) for name, tensor in self.tensors.items()},
            "meta": asdict(self.meta),
        }
        with store.atomic(path) as part:
            save_file(blobs, part, {"resect": json.dumps(facts | store.provenance())})

    @staticmethod
    def load(path: str | Path) -> Scores:
        """Read scores.

        Raises:
            InputError: The file is missing, broken, not scores of this version, or of another sign
                convention.
        """
        blobs, facts = load_artefact(path, KIND)
        try:
            meta = ScoreMeta(**facts["meta"])
            tensors = {
                name: TensorScores(
                    tuple(shape),
                    blobs[f"{name}|index"].to(torch.int64),
                    blobs[f"{name}|value"],
                    blobs[f"{name}|weight"],
                )
                for name, shape in facts["shapes"].items()
            }
        except (KeyError, TypeError) as error:
            raise InputError(f"{path} is not a whole score file", got=str(error)) from error
        if meta.higher_is_more_responsible is not True:
            raise InputError(
                f"{path} has another sign convention", allowed="higher is more responsible"
            )
        return Scores(tensors, meta)


def candidates(dense: Mapping[str, Tensor], keep: float) -> dict[str, Tensor]:
    """Return the flat indices of each tensor that some selection up to `keep` could take.

    These are its own top ⌊keep·n⌋ and all of its weights at or above the ⌊keep·N⌋-th score of the
    model. Ties at an edge go to the lower flat index, exactly.

    Args:
        dense: Tensor name to scores [n], fp32.
        keep: Fraction in (0, 1].

    Returns:
        For each tensor flat indices [k], int64, by falling score, ties by index.
    """
    whole = int(keep * sum(scores.numel() for scores in dense.values()))
    edge = _kth_of_model(list(dense.values()), whole)
    found = {}
    for name, scores in dense.items():
        chosen = scores >= edge
        chosen[_top(scores, int(keep * scores.numel()))] = True
        index = chosen.nonzero().squeeze(1)
        order = scores[index].argsort(descending=True, stable=True)
        found[name] = index[order].cpu()
    return found


def _top(scores: Tensor, count: int) -> Tensor:
    """Return indices [count] of the highest scores; ties go to the lower index."""
    if count == 0:
        return torch.empty(0, dtype=torch.int64, device=scores.device)
    edge = scores.topk(count).values[-1]
    above = (scores > edge).nonzero().squeeze(1)
    # topk breaks ties as it likes, which would make masks depend on the device.
    level = (scores == edge).nonzero().squeeze(1)[: count - above.numel()]
    return torch.cat([above, level])


def _kth_of_model(parts: list[Tensor], count: int) -> Tensor:
    """Return the count-th highest score over all parts, without a copy of them all."""
    if count == 0:
        return torch.tensor(float("inf"))
    best = torch.empty(0)
    for part in parts:
        # Only what can be among the highest `count` so far is kept.
        best = torch.cat([best, part.topk(min(count, part.numel())).values.cpu()])
        if best.numel() > count:
            best = best.topk(count).values
    return best.min()
