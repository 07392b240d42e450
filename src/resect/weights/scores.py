"""Scores on disk and in memory: for each tensor the weights that any selection could take.

For each checkpoint tensor the candidates are the top ⌊keep·n⌋ of the tensor and those of its
weights that are among the top ⌊keep·N⌋ of the model; every (p, q) up to `keep` is then selected
without scoring again. Higher means that the behaviour depends on the weight more.

On disk the candidates of all tensors stand in three long rows, in the order of their indices, each
packed without loss (`resect.weights.packing`): gaps between indices, scores, and for scores that
rank targets the weights, from which masks take what they remove. The original weights of a preserve
set are never needed and not kept. Where tensors differ in scale, few candidates are in both heads,
and up to 2·keep·N are held. Legend: n weights of a tensor, N of the model, k candidates of a
tensor.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from resect import files
from resect.errors import InputError
from resect.records import Scope
from resect.weights.mask import load_artefact
from resect.weights.packing import from_gaps, pack, to_gaps, unpack
from resect.weights.units import Units, as_plain, from_plain

KIND = "resect.scores"
# Of the file; 2 since its rows are packed.
LAYOUT = 2


@dataclass(frozen=True)
class ScoreMeta:
    """Every setting that can change a score, and where it comes from.

    Attributes:
        method: Score method, for instance `snip`.
        reduction: `signed` (facilitation), `opposite`, `mean_of_abs` or `abs_of_mean`.
        keep: Largest fraction that can be selected.
        model_id: Folder or id as given.
        model_fingerprint: 32 hex digits; 16 where a version up to 0.1.0 made them.
        tokenizer_fingerprint: 16 hex digits.
        data_hash: 16 hex digits.
        examples: Number of examples.
        tokens: Number of scored tokens.
        format: `raw` or `chat`.
        skip: Response tokens that were not scored.
        category: The one category that was scored, "" for all.
        seed: Seed of the draw of examples.
        higher_is_more_responsible: Always true; a file that says otherwise is refused.
        forced: What `--force` passed over on the way to the scored model, "" for nothing.
        streamed: The model was read block by block from disk.
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
    forced: str = ""
    streamed: bool = False

    @property
    def ranks_targets(self) -> bool:
        """Whether masks can be made of these scores; an absolute importance protects only."""
        return self.reduction in ("signed", "opposite")


@dataclass(frozen=True)
class TensorScores:
    """Candidates of one checkpoint tensor.

    Attributes:
        shape: Shape of the tensor.
        index: [k] flat indices, int64, by falling score, ties by index.
        value: [k] scores, fp32.
        weight: [k] the weights themselves, in the model's dtype; [0] where no target is ranked.
    """

    shape: tuple[int, ...]
    index: Tensor
    value: Tensor
    weight: Tensor

    @property
    def size(self) -> int:
        """Number of weights of the tensor, n."""
        return prod(self.shape)


@dataclass(frozen=True)
class ByIndex:
    """Candidates of one checkpoint tensor in the order of their indices.

    Attributes:
        rank: [k] ranks by falling score, int32, from 0.
        index: [k] flat indices, int64, rising.
        weight: [k] the weights themselves; [0] where no target is ranked.
    """

    rank: Tensor
    index: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Scores:
    """Scores of a model for one behaviour.

    Attributes:
        tensors: Checkpoint tensor name to candidates, in model order.
        meta: Settings and origin.
        units: Where the units of the model lie, by kind; empty where not every weight has a score.
    """

    tensors: Mapping[str, TensorScores]
    meta: ScoreMeta
    units: Mapping[str, Units] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Number of prunable weights, N."""
        return sum(tensor.size for tensor in self.tensors.values())

    @functools.cached_property
    def positive(self) -> list[int]:
        """Number of candidates with a score above 0, for each tensor."""
        return [int((tensor.value > 0).sum()) for tensor in self.tensors.values()]

    @functools.cached_property
    def by_unit(self) -> dict[str, list[Tensor]]:
        """The scores of units by kind and family, as far as `resect.weights.whole` made them."""
        return {}

    def heads(self, fraction: float, scope: Scope) -> list[int]:
        """Return how many candidates of each tensor are among the top `fraction`.

        Since candidates are sorted, what is selected is a head of each tensor's list in either
        scope. Ties break by tensor order, then by flat index.

        Args:
            fraction: In [0, 1], at most what the scores keep.
            scope: Rank within each tensor or over the model.
        """
        if scope == "tensor":
            return [
                min(math.floor(fraction * tensor.size), tensor.index.numel())
                for tensor in self.tensors.values()
            ]
        count = math.floor(fraction * self.total)
        return torch.bincount(self._ranking[:count], minlength=len(self.tensors)).tolist()

    @functools.cached_property
    def _ranking(self) -> Tensor:
        """Position of the tensor of every candidate, by falling score over the model [K]."""
        sizes = torch.tensor([tensor.index.numel() for tensor in self.tensors.values()])
        owners = torch.repeat_interleave(torch.arange(len(sizes), dtype=torch.int32), sizes)
        values = torch.cat([tensor.value for tensor in self.tensors.values()])
        return owners[values.argsort(descending=True, stable=True)]

    @functools.cached_property
    def by_index(self) -> dict[str, ByIndex]:
        """The candidates of each tensor in the order in which masks hold them.

        Sorted once, so that each selection of a grid compares ranks and sorts nothing.
        """
        entries = {}
        for name, tensor in self.tensors.items():
            index, rank = tensor.index.sort()
            weight = tensor.weight[rank] if tensor.weight.numel() else tensor.weight
            entries[name] = ByIndex(rank.int(), index, weight)
        return entries

    def places(self, scores: Scores) -> dict[str, Tensor]:
        """Return for our candidates, in the order of their indices, their ranks in other scores.

        Where the other scores have no such candidate, the rank is beyond all. The result is kept
        until it is asked for with other scores.
        """
        cached = self.__dict__.get("_places")
        if cached is None or cached[0]() is not scores:
            ranks = {
                name: _ranks_at(entry, scores.by_index[name])
                for name, entry in self.by_index.items()
            }
            # The weak reference tells whether the same object asks again, and keeps none alive.
            cached = self.__dict__["_places"] = (weakref.ref(scores), ranks)
        return cast("dict[str, Tensor]", cached[1])

    def summary(self) -> str:
        """Return one line for people."""
        count = sum(tensor.index.numel() for tensor in self.tensors.values())
        return (
            f"{self.meta.reduction} scores of {self.meta.examples} examples "
            f"({self.meta.tokens} tokens), {count:,} candidates of {self.total:,} weights"
            f"{', read block by block from disk' if self.meta.streamed else ''}"
        )

    def save(self, path: str | Path) -> None:
        """Write the scores as safetensors, whole or not at all."""
        counts = [tensor.index.numel() for tensor in self.tensors.values()]
        # One byte a gap is least for the usual 1e-2; two bytes are for sparser sets.
        code = np.uint8 if sum(counts) * 300 > self.total else np.uint16
        gaps, values, weights = [], [], []
        for tensor in self.tensors.values():
            index, order = tensor.index.sort()
            gaps.append(to_gaps(index.numpy(), code))
            values.append(tensor.value[order])
            weights.append(tensor.weight[order] if tensor.weight.numel() else tensor.weight)
        dtypes = list(dict.fromkeys(weight.dtype for weight in weights))
        rows = {"gap": torch.from_numpy(np.concatenate(gaps)), "value": torch.cat(values)}
        for number, dtype in enumerate(dtypes):
            rows[f"weight{number}"] = torch.cat([w for w in weights if w.dtype == dtype])
        packed = {name: pack(row) for name, row in rows.items()}
        tensors = [
            [
                name,
                list(tensor.shape),
                len(gap),
                counts[number],
                dtypes.index(weights[number].dtype),
            ]
            for number, ((name, tensor), gap) in enumerate(
                zip(self.tensors.items(), gaps, strict=True)
            )
        ]
        header = {"kind": KIND, "layout": LAYOUT, "tensors": tensors, "meta": asdict(self.meta)}
        header["rows"] = {name: packing for name, (_, packing) in packed.items()}
        if self.units:
            header["units"] = as_plain(self.units)
        blobs = {name: data for name, (data, _) in packed.items()}
        files.write_tensors(path, blobs, header | files.provenance())

    @staticmethod
    def load(path: str | Path) -> Scores:
        """Read scores.

        Raises:
            InputError: The file is missing, broken, of another version or sign convention.
        """
        blobs, header = load_artefact(path, KIND)
        if header.get("layout") != LAYOUT:
            raise InputError(
                f"{path} is laid out in a way that this version cannot read",
                got=f"layout {header.get('layout')!r}",
                allowed=str(LAYOUT),
                fix="score again with this version of resect",
            )
        try:
            meta = ScoreMeta(**header["meta"])
            # A byte at least of each candidate is there as it is, and it has three gaps at most.
            longest = 4 * sum(blob.numel() for blob in blobs.values())
            rows = {name: unpack(blobs[name], row, longest) for name, row in header["rows"].items()}
            tensors = dict(_split(rows, header["tensors"]))
            shapes = {name: tensor.shape for name, tensor in tensors.items()}
            units = from_plain(header.get("units", {}), shapes)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
            raise InputError(f"{path} is not a whole score file", got=str(error)) from error
        if meta.higher_is_more_responsible is not True:
            raise InputError(
                f"{path} has another sign convention", allowed="higher is more responsible"
            )
        return Scores(tensors, meta, units)


def _split(rows: dict[str, Tensor], entries: list[list[Any]]) -> Iterator[tuple[str, TensorScores]]:
    """Yield the candidates of each tensor from the rows of all."""
    gaps, at_gap, at_value = rows["gap"].numpy(), 0, 0
    at_weight: Counter[int] = Counter()
    for name, shape, length, count, dtype in entries:
        index = torch.from_numpy(from_gaps(gaps[at_gap : at_gap + length]))
        value = rows["value"][at_value : at_value + count]
        weight = rows[f"weight{dtype}"][at_weight[dtype] : at_weight[dtype] + count]
        order = value.argsort(descending=True, stable=True)
        last = int(index[-1]) if count and len(index) else -1
        if not len(index) == len(value) == count or not last < prod(shape) < 2**63:
            raise ValueError(f"the candidates of {name} do not fit its shape")
        candidates = weight[order] if weight.numel() else weight
        yield name, TensorScores(tuple(shape), index[order], value[order], candidates)
        at_gap, at_value = at_gap + length, at_value + count
        at_weight[dtype] += weight.numel()


def _ranks_at(mine: ByIndex, theirs: ByIndex) -> Tensor:
    beyond = torch.iinfo(torch.int32).max
    if theirs.index.numel() == 0:
        return torch.full(mine.index.shape, beyond, dtype=torch.int32)
    position = torch.searchsorted(theirs.index, mine.index).clamp_(max=len(theirs.index) - 1)
    return theirs.rank[position].masked_fill_(theirs.index[position] != mine.index, beyond)
