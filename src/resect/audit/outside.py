"""What changed outside of the prunable weights: embeddings, output head, norms, biases, routers.

A mask lies in prunable weights, so a change anywhere else is in no set of an audit, and is compared
and named by itself. Compared are all parameters and stored buffers that are not prunable. Where one
model has more rows (new tokens), the rows that both have are compared, and the others counted.

    Δ          values after minus values before, on what both models have
    energy     Σ Δ²
    relative   sqrt(Σ Δ²) / sqrt(Σ before²)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from resect.edit.live import lent
from resect.model import find_prunable
from resect.records import CausalModel
from resect.weights.change import change, where_exact

# Values that are compared at once: tables of embeddings are the largest tensors of a model.
PIECE = 2**24
MOST_NAMED = 5

Only = Literal["", "before", "after", "other shape"]


@dataclass(frozen=True)
class OutsideChange:
    """What changed in one tensor that is not prunable.

    Attributes:
        name: Its name in memory.
        kind: `embeddings`, `output head`, `norm`, `bias` or `other`.
        size: Values that both models have.
        changed: Those of them that differ.
        energy: Σ Δ² of them.
        relative: Size of the change as a fraction of the size before; None where that is 0.
        rows: Rows (tokens) that the second model has more; below 0 fewer.
        only: Which model alone has it, or that the shapes cannot be compared; else "".
    """

    name: str
    kind: str
    size: int
    changed: int
    energy: float
    relative: float | None
    rows: int = 0
    only: Only = ""

    @property
    def differs(self) -> bool:
        """Whether anything of it differs."""
        return bool(self.changed or self.rows or self.only)


class _Twin(NamedTuple):
    """A tensor of the first model beside the same of the second; None where one lacks it."""

    name: str
    before: Tensor | None
    after: Tensor | None


def outside_of(base: CausalModel, tuned: CausalModel) -> list[OutsideChange]:
    """Compare everything that `change_of` does not.

    Args:
        base: The model before.
        tuned: The model after.

    Returns:
        A row for each tensor, in the order of the first model.
    """
    kinds = _kinds(tuned) | _kinds(base)
    return [_compared(twin, kinds.get(twin.name, "other")) for twin in _twins(base, tuned)]


def lent_outside(base: CausalModel, tuned: CausalModel) -> AbstractContextManager[None]:
    """Give a model what another one has outside of the prunable weights, while a block runs.

    Rows that it has no place for are left out.
    """
    shared = {
        twin.name: pair
        for twin in _twins(base, tuned)
        if (pair := _common(twin)) is not None and pair.before.numel()
    }
    return lent(
        {name: pair.before for name, pair in shared.items()},
        {name: pair.after for name, pair in shared.items()},
    )


class _Pair(NamedTuple):
    """What two models both have of a tensor, as views [*] of one shape."""

    before: Tensor
    after: Tensor


def _common(twin: _Twin) -> _Pair | None:
    before, after = twin.before, twin.after
    if before is None or after is None or before.shape[1:] != after.shape[1:]:
        return None
    if before.dim() == 0 or after.dim() == 0:
        return _Pair(before, after) if before.shape == after.shape else None
    rows = min(before.shape[0], after.shape[0])
    return _Pair(before[:rows], after[:rows])


def _compared(twin: _Twin, kind: str) -> OutsideChange:
    pair = _common(twin)
    if pair is None:
        only: Only = "other shape"
        if twin.before is None or twin.after is None:
            only = "after" if twin.before is None else "before"
        return OutsideChange(twin.name, kind, 0, 0, 0.0, None, only=only)
    changed, energy, before = 0, 0.0, 0.0
    for part_before, part_after in zip(_pieces(pair.before), _pieces(pair.after), strict=True):
        delta = change(part_before, part_after)
        # What is no number on both sides is no change.
        moved = (delta != 0) & ~(part_before.isnan() & part_after.to(delta.device).isnan())
        changed += int(moved.sum())
        energy += float(where_exact(delta[moved]).double().square().sum())
        before += float(where_exact(part_before).double().square().sum())
    rows = 0
    if twin.before is not None and twin.after is not None and twin.before.dim():
        rows = twin.after.shape[0] - twin.before.shape[0]
    relative = math.sqrt(energy / before) if before else None
    return OutsideChange(twin.name, kind, pair.before.numel(), changed, energy, relative, rows)


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    flat = tensor.reshape(-1)
    for start in range(0, flat.numel(), PIECE):
        yield flat[start : start + PIECE]


def _twins(base: CausalModel, tuned: CausalModel) -> list[_Twin]:
    """Return all tensors outside of the prunable weights, tied ones once."""
    before, after = _stored(base), _stored(tuned)
    twins, seen = [], set()
    for name in dict.fromkeys([*before, *after]):
        twin = _Twin(name, before.get(name), after.get(name))
        if twin.before is not None and twin.after is not None:
            memory = (twin.before.data_ptr(), twin.after.data_ptr())
            if all(memory) and memory in seen:
                continue
            seen.add(memory)
        elif _is_tied(twin, before, after):
            continue
        twins.append(twin)
    return twins


def _is_tied(twin: _Twin, before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    """Return whether what one model alone names is the memory of a tensor under another name."""
    tensors = before if twin.after is None else after
    tensor = tensors[twin.name]
    return any(
        name != twin.name and like.data_ptr() == tensor.data_ptr() and tensor.data_ptr()
        for name, like in tensors.items()
    )


def _stored(model: CausalModel) -> dict[str, Tensor]:
    """Return what a checkpoint of a model would hold, without the prunable weights."""
    prunable = {weight.name for weight in find_prunable(model).weights}
    modules = dict(model.named_modules())
    stored = modules[""].state_dict()
    return {
        name: tensor
        for name, tensor in stored.items()
        if name not in prunable and isinstance(tensor, Tensor) and tensor.is_floating_point()
    }


def _kinds(model: CausalModel) -> dict[str, str]:
    """Return for each tensor outside of the prunable weights what it is."""
    modules = dict(model.named_modules())
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    kinds = {}
    for name in _stored(model):
        parent, _, last = name.rpartition(".")
        owner = modules[parent]
        if owner is embeddings:
            kinds[name] = "embeddings"
        elif owner is head:
            kinds[name] = "output head"
        elif "Norm" in type(owner).__name__:
            kinds[name] = "norm"
        else:
            kinds[name] = "bias" if "bias" in last else "other"
    return kinds


def outside_sentences(rows: Sequence[OutsideChange]) -> list[str]:
    """Return what changed outside of the prunable weights, in sentences for a reader."""
    sentences = []
    moved = [row for row in rows if row.changed]
    if moved:
        shown = [
            f"{row.name} ({row.kind}, {row.changed:,} of {row.size:,} values{_size(row)})"
            for row in sorted(moved, key=lambda row: -row.energy)[:MOST_NAMED]
        ]
        rest = len(moved) - len(shown)
        sentences.append(
            f"changed outside of the prunable weights, where no mask lies: {', '.join(shown)}"
            + (f" and {rest} more" if rest else "")
        )
    for row in rows:
        if row.rows:
            more = f"{abs(row.rows):,} rows {'more' if row.rows > 0 else 'fewer'}"
            sentences.append(
                f"{row.name} has {more} after tuning; the rows that both have are compared"
            )
        if row.only == "other shape":
            sentences.append(f"{row.name} is of another shape after tuning")
        elif row.only:
            sentences.append(f"{row.name} is there {row.only} tuning alone")
    return sentences


def _size(row: OutsideChange) -> str:
    return "" if row.relative is None else f", by {100 * row.relative:.2g} % of their size"
