"""A null for the whole search: the labels of target and contrast are swapped within pairs.

For half of the prompts the answer of the contrast takes the place of the target's, and the other
way round. Then everything is done as before: ranking, set difference, grid, choice on one half of
the prompts and test on the other. If the labels meant nothing, the true ones would be one of k + 1
draws of the same kind, so that

    p = (1 + permutations that lower harm as much) / (1 + permutations)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from resect.studies.cells import Cut
from resect.studies.choice import choose
from resect.studies.design import Design
from resect.studies.measurements import Measurements, Row
from resect.studies.weighing import Condition, estimate, percent


@dataclass(frozen=True)
class Permuted:
    """What the true labels reach, and what swapped ones do.

    Attributes:
        drop: Relative drop of harm of the cuts that were chosen with the true labels.
        drops: The same for each permutation.
    """

    drop: float
    drops: tuple[float, ...]

    @property
    def p(self) -> float:
        """Share of all labellings, the true one among them, that reach as much."""
        return (1 + sum(drop >= self.drop for drop in self.drops)) / (1 + len(self.drops))

    @property
    def rows(self) -> list[Row]:
        """A row for the true labels (permutation None) and one a permutation."""
        return [
            {"permutation": None if place == 0 else place, "harm_drop": _or_none(drop)}
            for place, drop in enumerate((self.drop, *self.drops))
        ]

    def condition(self, largest: float) -> Condition:
        """Return the condition that few permutations reach as much."""
        return Condition(
            estimate("p of swapped labels", self.p),
            at_most=largest,
            misses=f"Rankings of swapped labels do as much (p = {self.p:.2g}).",
            over_models=False,
        )

    def rule(self, largest: float) -> str:
        """Return the condition in words, as the end of a sentence."""
        return (
            f", and of {len(self.drops)} rankings whose labels are swapped within pairs so few do "
            f"as much that p is at most {percent(largest)}"
        )


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def permuted_cuts(design: Design, permutations: int, fractions: Sequence[float]) -> list[Cut]:
    """Return the cuts of a permutation test; none where the target has no contrast.

    Those of the true labels (permutation 0) are the first: they are of the same pairs.
    """
    return [cut for grid in permuted_grids(design, permutations, fractions) for cut in grid]


def permuted_grids(
    design: Design, permutations: int, fractions: Sequence[float]
) -> list[list[Cut]]:
    """Return the same cuts, those of each labelling by themselves."""
    if not permutations or design.targets[design.target].contrast is None:
        return []
    return [_grid(design, fractions, number) for number in range(permutations + 1)]


def _grid(design: Design, fractions: Sequence[float], number: int) -> list[Cut]:
    return [Cut(design.target, "target", q, permutation=number) for q in fractions]


def permuted(
    measured: Measurements, permutations: int, fractions: Sequence[float], budget: float
) -> Permuted | None:
    """Return what swapped labels reach when the cut is chosen, None if none were measured.

    Args:
        measured: The run.
        permutations: How often labels were swapped.
        fractions: The grid, the same for the true labels.
        budget: Largest relative drop of utility.
    """
    design = measured.config
    if not permuted_cuts(design, permutations, fractions):
        return None
    drops = [
        choose(
            measured, design.subject, _grid(design, fractions, number), budget
        ).effect.harm_drop.value
        for number in range(permutations + 1)
    ]
    return Permuted(drops[0], tuple(drops[1:]))
