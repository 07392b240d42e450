"""Where the weights of a model changed, and what the change predicts for a behaviour.

    Δ_w   value after minus value before
    E_S   Σ_{w in S} Δ_w², the energy of the change in a set S of weights
    G_S   Σ_{w in S} g_w·Δ_w, its first-order effect on a loss in nats, g the loss's gradient before

A harm set M of k of the n weights of a tensor holds by chance k/n of that tensor's energy: Σ_t
E_t·k_t/n_t over all tensors, given how much each tensor changed. Since M's weights are larger than
most, and what a trainer does may depend on the size of a weight, E_M is also compared with sets
that match M in number and magnitude, tensor by tensor. Enrichment is E_M over either.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from resect.attribution.head import Head
from resect.attribution.loss import batch_loss, batches, check_examples
from resect.errors import MismatchError
from resect.model import find_prunable
from resect.model.prunable import PrunableWeight
from resect.records import CausalModel, Encoded
from resect.weights.change import change, sum_over
from resect.weights.mask import Mask

# As attribution: batches of similar length, small enough for two CPU cores.
BATCH_TOKENS = 1024


@dataclass(frozen=True)
class TensorChange:
    """What changed in one checkpoint tensor.

    Attributes:
        name: Checkpoint name.
        layer: Position of its block.
        kind: Part of the block, for tables.
        size: Number of weights, n.
        masked: Weights of the harm set in it, k.
        changed: Weights whose value differs.
        changed_masked: Those of them in the harm set.
        energy: Σ Δ².
        energy_masked: Σ Δ² in the harm set.
        energy_controls: Σ Δ² in each matched set.
        predicted: Σ g·Δ in nats; 0 where no gradient was taken.
        predicted_masked: Σ g·Δ in the harm set.
        predicted_controls: Σ g·Δ in each matched set.
        rank_one: Share of the first singular direction in Σ Δ² (`resect.audit.rank_one`); None of
            what is not looked at so, or did not change.
    """

    name: str
    layer: int
    kind: str
    size: int
    masked: int
    changed: int
    changed_masked: int
    energy: float
    energy_masked: float
    energy_controls: tuple[float, ...]
    predicted: float = 0.0
    predicted_masked: float = 0.0
    predicted_controls: tuple[float, ...] = ()
    rank_one: float | None = None

    @property
    def chance(self) -> float:
        """Energy that the harm set holds by chance, given the tensor's."""
        return self.energy * self.masked / self.size if self.size else 0.0


@dataclass(frozen=True)
class Share:
    """How much of the change falls in the harm set, in a part of the model.

    Attributes:
        part: Name of the part.
        weights: Weights in it.
        masked: Those in the harm set.
        changed: Fraction of its weights that changed.
        energy: Σ Δ² of the part as a fraction of the model's.
        share: Fraction of the part's energy in the harm set; None if nothing changed.
        chance: The same for a random set, given the energy of every tensor.
        matched: The same for magnitude-matched sets, their mean.
        enrichment: `share` over `chance`; None where that is 0.
        matched_enrichment: `share` over `matched`.
        p_value: (1 + matched sets with at least this share) / (1 + their number).
        predicted: First-order change of the loss in nats, all weights of the part.
        predicted_masked: The part of it in the harm set.
        rank_one: Mean of the same over the matrices of the part that have it: of the model the
            weight-recovery energy E_1; None if none has.
    """

    part: str
    weights: int
    masked: int
    changed: float
    energy: float
    share: float | None
    chance: float | None
    matched: float | None
    enrichment: float | None
    matched_enrichment: float | None
    p_value: float | None
    predicted: float
    predicted_masked: float
    rank_one: float | None = None


@dataclass
class _Sets:
    """Flat indices of the harm set and of its controls, in one tensor."""

    masked: Tensor
    controls: list[Tensor] = field(default_factory=list)


class _Sums(NamedTuple):
    """A sum over all weights of a tensor, over its harm set and over each control."""

    total: float
    masked: float
    controls: tuple[float, ...]

    def plus(self, more: _Sums) -> _Sums:
        """Return the sums over both."""
        controls = (a + b for a, b in zip(self.controls, more.controls, strict=True))
        return _Sums(self.total + more.total, self.masked + more.masked, tuple(controls))


_NO_SLOPE = _Sums(0.0, 0.0, ())


def change_of(
    model: CausalModel,
    tuned: Mapping[str, Tensor],
    mask: Mask,
    controls: Sequence[Mask],
    encoded: Sequence[Encoded] = (),
) -> list[TensorChange]:
    """Compare a model with its tuned weights, tensor by tensor.

    Args:
        model: The model before; its gradients are left empty.
        tuned: Checkpoint tensor name to the weights after, of the same shapes.
        mask: The harm set.
        controls: Magnitude-matched sets.
        encoded: Examples whose mean loss the change is projected on; none skips that.

    Raises:
        MismatchError: The two models differ in more than values.
    """
    parameters = dict(model.named_parameters())
    coverage = find_prunable(model)
    sets = {
        name: _Sets(entry.index, [control.tensors[name].index for control in controls])
        for name, entry in mask.tensors.items()
    }
    slopes = _slopes(model, tuned, sets, encoded)
    rows = []
    for weight in coverage.weights:
        for tensor in weight.places:
            before = tensor.view(parameters[weight.name].detach())
            delta = _delta(tensor.name, before, tuned)
            indices = sets.get(tensor.name) or _Sets(torch.empty(0, dtype=torch.int64))
            energy = _sums(delta.square(), indices)
            slope = slopes.get(tensor.name, _NO_SLOPE)
            moved = delta != 0
            rows.append(
                TensorChange(
                    name=tensor.name,
                    layer=weight.layer,
                    kind=weight.kind,
                    size=tensor.size,
                    masked=indices.masked.numel(),
                    changed=int(moved.sum()),
                    changed_masked=int(moved[indices.masked.to(moved.device)].sum()),
                    energy=energy.total,
                    energy_masked=energy.masked,
                    energy_controls=energy.controls,
                    predicted=slope.total,
                    predicted_masked=slope.masked,
                    predicted_controls=slope.controls,
                )
            )
    return rows


def _delta(name: str, before: Tensor, tuned: Mapping[str, Tensor]) -> Tensor:
    """Return the change [n] in fp32."""
    after = tuned.get(name)
    if after is None or after.shape != before.shape:
        raise MismatchError(
            "the two models do not have the same architecture",
            got=f"{name}: {tuple(before.shape)} before, "
            f"{'absent' if after is None else tuple(after.shape)} after",
            fix="give the model that was tuned and what became of it",
        )
    return change(before, after)


def _sums(values: Tensor, sets: _Sets) -> _Sums:
    """Return the sums of values [n]."""
    return _Sums(
        sum_over(values),
        sum_over(values, sets.masked),
        tuple(sum_over(values, control) for control in sets.controls),
    )


def _slopes(
    model: CausalModel,
    tuned: Mapping[str, Tensor],
    sets: Mapping[str, _Sets],
    encoded: Sequence[Encoded],
) -> dict[str, _Sums]:
    """Return Σ g·Δ by checkpoint tensor; a parameter's gradient is used up when it is ready."""
    if not encoded:
        return {}
    check_examples(encoded, model)
    coverage = find_prunable(model)
    slopes: dict[str, _Sums] = {}
    handles = []

    def watch(weight: PrunableWeight, parameter: Tensor) -> None:
        def use(ready: Tensor) -> None:
            gradient = ready.grad
            ready.grad = None
            if gradient is None:
                return
            for tensor in weight.places:
                before = tensor.view(ready.detach())
                slope = tensor.view(gradient.contiguous()).reshape(-1).float()
                delta = _delta(tensor.name, before, tuned)
                indices = sets.get(tensor.name) or _Sets(torch.empty(0, dtype=torch.int64))
                sums = _sums(slope * delta, indices)
                earlier = slopes.get(tensor.name)
                slopes[tensor.name] = sums if earlier is None else earlier.plus(sums)

        handles.append(parameter.register_post_accumulate_grad_hook(use))  # type: ignore[no-untyped-call]

    trainable = {parameter: parameter.requires_grad for parameter in model.parameters()}
    prunable = {weight.name: weight for weight in coverage.weights}
    try:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in prunable)
            if name in prunable:
                watch(prunable[name], parameter)
        head = Head()
        for batch in batches(encoded, size=None, tokens=BATCH_TOKENS):
            with torch.enable_grad():
                (batch_loss(model, batch, head) / len(encoded)).backward()  # type: ignore[no-untyped-call]
    finally:
        for handle in handles:
            handle.remove()
        for parameter, needed in trainable.items():
            parameter.requires_grad_(needed)
    return slopes


def shares(rows: Sequence[TensorChange]) -> dict[str, list[Share]]:
    """Return the shares of the model, of its layers and of its kinds of weights."""
    total = sum(row.energy for row in rows)
    layers: dict[str, list[TensorChange]] = {}
    kinds: dict[str, list[TensorChange]] = {}
    for row in rows:
        layers.setdefault(f"layer {row.layer}", []).append(row)
        kinds.setdefault(row.kind, []).append(row)
    return {
        "model": [_share("all prunable weights", rows, total)],
        "layers": [_share(name, of_layer, total) for name, of_layer in layers.items()],
        "modules": [_share(name, of_kind, total) for name, of_kind in kinds.items()],
    }


def _share(name: str, rows: Sequence[TensorChange], total: float) -> Share:
    energy = sum(row.energy for row in rows)
    masked = sum(row.energy_masked for row in rows)
    controls = _columns(row.energy_controls for row in rows)
    chance = sum(row.chance for row in rows)
    weights = sum(row.size for row in rows)
    matched = sum(controls) / len(controls) if controls else None
    narrow = [row.rank_one for row in rows if row.rank_one is not None]
    return Share(
        part=name,
        weights=weights,
        masked=sum(row.masked for row in rows),
        changed=sum(row.changed for row in rows) / weights,
        energy=energy / total if total else 0.0,
        share=masked / energy if energy else None,
        chance=chance / energy if energy else None,
        matched=matched / energy if energy and matched is not None else None,
        enrichment=masked / chance if chance else None,
        matched_enrichment=masked / matched if matched else None,
        p_value=(1 + sum(control >= masked for control in controls)) / (1 + len(controls))
        if controls and energy
        else None,
        predicted=sum(row.predicted for row in rows),
        predicted_masked=sum(row.predicted_masked for row in rows),
        rank_one=sum(narrow) / len(narrow) if narrow else None,
    )


def _columns(rows: Iterable[tuple[float, ...]]) -> list[float]:
    """Return the sum over tensors of each control's number."""
    return [sum(column) for column in zip(*rows, strict=True)]
