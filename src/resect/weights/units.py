r"""Units beyond the weight: neurons, heads and experts, as places in checkpoint tensors.

A unit is all that belongs to one neuron, head or expert alone, so a mask of whole units is an
ordinary mask. Which weights those are is found in the model (`resect.attribution.units`) and kept
with dense scores; nothing here knows a model.

    score of a unit   s_u = Σ a_w over the weights w by which u leads out of its part

Once what leads out of a unit is zero the unit is gone, whatever leads into it: the removal of a
whole unit and of its ways out change the loss alike. So s_u is, to first order in what the unit
adds to its part, what removing the unit adds to the loss. A sum over all weights of the unit would
count that effect again for each matrix that the signal passes on its way. A mean would give the
same order within a family, whose units have as many ways out each, and would be no effect; a
maximum would be the score of one weight.

Legend: a_w score of a weight; a family is the units that are alike: the neurons of one MLP, the
heads of one attention, the experts of one mixture; n their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from resect.errors import InputError, unknown_name

UNITS = ("neuron", "head", "expert")

Shapes = Mapping[str, tuple[int, ...]]


class Piece(NamedTuple):
    """Where units of a family lie in one tensor: unit `first + i` has `width` slices of an axis.

    Attributes:
        tensor: Name of the checkpoint tensor.
        first: Number of the first unit that lies there.
        number: How many units lie there.
        axis: The axis that is divided among them, of what `expert` leaves of the tensor.
        offset: First slice of the first of them.
        width: Slices of each.
        step: Slices from the start of one to the start of the next.
        leads_out: These weights lead out of the units.
        expert: Place on axis 0 of a tensor of all experts to which the piece is confined; None for
            the whole tensor.
    """

    tensor: str
    first: int
    number: int
    axis: int
    offset: int
    width: int
    step: int
    leads_out: bool
    expert: int | None = None

    def sides(self, shapes: Shapes) -> tuple[int, ...]:
        """Return the shape of what is divided.

        Raises:
            ValueError: The piece does not fit into the tensor.
        """
        sides = tuple(shapes[self.tensor])
        if self.expert is not None:
            if not 0 <= self.expert < sides[0]:
                raise ValueError(f"no expert {self.expert} in {self.tensor}")
            sides = sides[1:]
        last = self.offset + (self.number - 1) * self.step + self.width
        numbers = (self.first, self.axis, self.offset, self.number - 1, self.width - 1, self.step)
        if min(numbers) < 0 or last > sides[self.axis]:
            raise ValueError(f"units reach beyond {self.tensor}")
        return sides

    def size(self, shapes: Shapes) -> int:
        """Return how many weights each unit has here."""
        sides = self.sides(shapes)
        return prod(sides) // sides[self.axis] * self.width

    def slices(self) -> Tensor:
        """Return the slices [number, width] of the axis that each unit has."""
        starts = self.offset + self.step * torch.arange(self.number)
        return starts[:, None] + torch.arange(self.width)

    def sums(self, tensor: Tensor) -> Tensor:
        """Return the sum over each unit's weights [number], fp64.

        Args:
            tensor: A number for each weight of the tensor, in its shape.
        """
        divided = (tensor if self.expert is None else tensor[self.expert]).movedim(self.axis, 0)
        by_slice = divided.reshape(divided.shape[0], -1).sum(1, dtype=torch.float64)
        return by_slice[self.slices()].sum(1)

    def places(self, chosen: Tensor, shapes: Shapes) -> Tensor:
        """Return flat indices [k] of the weights of chosen units.

        Args:
            chosen: Numbers of units, of which those that lie elsewhere are passed over.
            shapes: Shapes of the tensors by name.
        """
        sides = self.sides(shapes)
        inside = chosen[(chosen >= self.first) & (chosen < self.first + self.number)] - self.first
        steps = [torch.arange(side) for side in sides]
        steps[self.axis] = self.slices()[inside].reshape(-1)
        index = torch.tensor([(self.expert or 0) * prod(sides)])
        for axis, along in enumerate(steps):
            index = (index[:, None] + along * prod(sides[axis + 1 :])).reshape(-1)
        return index


@dataclass(frozen=True)
class Family:
    """Units that are alike, and ranked together with `scope="tensor"`.

    Attributes:
        name: Name of the part of the model that they are of.
        pieces: Where they lie; none overlaps another.
    """

    name: str
    pieces: tuple[Piece, ...]

    @property
    def count(self) -> int:
        """Number of units."""
        return max(piece.first + piece.number for piece in self.pieces)

    def sizes(self, shapes: Shapes) -> Tensor:
        """Return the number of weights of each unit [count], int64."""
        sizes = torch.zeros(self.count, dtype=torch.int64)
        for piece in self.pieces:
            sizes[piece.first : piece.first + piece.number] += piece.size(shapes)
        return sizes

    def scores(self, dense: Callable[[str], Tensor]) -> Tensor:
        """Return the score of each unit [count], fp64, as the header of this module defines it.

        Args:
            dense: Gives the scores of a tensor, in its shape.
        """
        scores = torch.zeros(self.count, dtype=torch.float64)
        for piece in self.pieces:
            if piece.leads_out:
                scores[piece.first : piece.first + piece.number] += piece.sums(dense(piece.tensor))
        return scores

    def inside(self, places: Mapping[str, Tensor], shapes: Shapes) -> Tensor:
        """Tell which units [count] have all their weights in a set.

        Args:
            places: Flat indices of the set by tensor.
            shapes: Shapes of the tensors by name.
        """
        whole = torch.ones(self.count, dtype=torch.bool)
        for piece in self.pieces:
            taken = torch.zeros(prod(shapes[piece.tensor]), dtype=torch.bool)
            taken[places[piece.tensor]] = True
            complete = piece.sums(taken.view(shapes[piece.tensor])) == piece.size(shapes)
            whole[piece.first : piece.first + piece.number] &= complete
        return whole


@dataclass(frozen=True)
class Units:
    """All units of one kind in a model.

    Attributes:
        families: Where they are; empty if the model has none.
        refusal: Why there are none, "" if there are some.
    """

    families: tuple[Family, ...] = ()
    refusal: str = ""


def families_of(units: Mapping[str, Units], unit: str) -> tuple[Family, ...]:
    """Return the families of a kind of units.

    Args:
        units: What a model has, by kind; empty where nothing is known.
        unit: Name in `UNITS`.

    Raises:
        InputError: There is no such kind, or the model has none of it.
    """
    if unit not in UNITS:
        raise unknown_name("unit", unit, ["weight", *UNITS])
    if unit not in units:
        raise InputError(
            f"the scores do not say where a {unit} begins and ends",
            got="scores of some weights, or of an older version of resect",
            allowed="dense scores, which hold every weight and all units",
            fix="score again with --dense",
        )
    if not units[unit].families:
        present = [name for name in UNITS if name in units and units[name].families]
        raise InputError(
            f"no {unit} can be told apart in this model",
            got=units[unit].refusal,
            allowed=", ".join(["weight", *present]),
            fix=f"choose --unit {present[0] if present else 'weight'}",
        )
    return units[unit].families


def places_of(
    families: Iterable[Family], chosen: Iterable[Tensor], shapes: Shapes
) -> dict[str, Tensor]:
    """Return the flat indices, sorted, of the weights of whole units by tensor.

    Args:
        families: Families of units.
        chosen: Numbers of the chosen units of each.
        shapes: Shapes of all tensors by name, each of which is in the result.
    """
    places: dict[str, list[Tensor]] = {name: [] for name in shapes}
    for family, numbers in zip(families, chosen, strict=True):
        for piece in family.pieces if len(numbers) else ():
            places[piece.tensor].append(piece.places(numbers, shapes))
    nothing = torch.empty(0, dtype=torch.int64)
    return {name: torch.cat([nothing, *parts]).sort().values for name, parts in places.items()}


def as_plain(units: Mapping[str, Units]) -> dict[str, object]:
    """Return units as plain values, for JSON."""
    return {
        unit: {
            "families": [[family.name, family.pieces] for family in members.families],
            "refusal": members.refusal,
        }
        for unit, members in units.items()
    }


def from_plain(values: Mapping[str, Mapping[str, object]], shapes: Shapes) -> dict[str, Units]:
    """Return the units that plain values describe.

    Args:
        values: What `as_plain` gave, read from JSON.
        shapes: Shapes of the tensors by name.

    Raises:
        ValueError, TypeError, KeyError, IndexError, AttributeError: They describe none.
    """
    units = {}
    for unit, members in values.items():
        rows = members["families"]
        if not isinstance(rows, list):
            raise TypeError(f"families of {unit}s as {rows!r}")
        families = tuple(Family(name, tuple(Piece(*p) for p in pieces)) for name, pieces in rows)
        for family in families:
            family.sizes(shapes)
        units[unit] = Units(families, str(members["refusal"]))
    return units
