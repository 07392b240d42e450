"""What is lost along doses of training, read where something else has been learned."""

from __future__ import annotations

import math
from dataclasses import dataclass

from resect.stats import Array, Sample


def at_level(level: float, narrow: list[Sample], elsewhere: list[Sample]) -> Sample:
    """Return misalignment elsewhere where the narrow task first reaches `level`.

    Between the last dose below the level and the first one at it the line is followed; draw by
    draw, so that the place of the crossing is as uncertain as the rates are. NaN where no dose
    reaches the level. One more prompt moves the rates elsewhere alone, not the crossing: which way
    a later crossing moves them depends on the doses.

    Args:
        level: Rate of the narrow task.
        narrow: Rates of the narrow task, by rising dose, the untuned model first.
        elsewhere: Rates elsewhere at the same doses.
    """
    import numpy as np

    def cross(near: Array, far: Array) -> Array:
        """Return the rate elsewhere at the crossing [R], from rates by draw and dose [R, doses]."""
        reached = near >= level
        dose = reached.argmax(axis=1)
        before = np.maximum(dose - 1, 0)
        draw = np.arange(len(near))
        rise = near[draw, dose] - near[draw, before]
        # A first dose at the level, and equal rates, have no line to follow.
        share = np.divide(
            level - near[draw, before], rise, out=np.ones_like(rise), where=(dose > 0) & (rise != 0)
        )
        elsewhere_before = far[draw, before]
        crossed: Array = elsewhere_before + share * (far[draw, dose] - elsewhere_before)
        # Not by the line, whose end a rounding would miss.
        crossed = np.where(share == 1, far[draw, dose], crossed)
        return np.where(reached.any(axis=1), crossed, math.nan)

    value = cross(
        np.array([[sample.value for sample in narrow]]),
        np.array([[sample.value for sample in elsewhere]]),
    )
    near = np.stack([sample.draws for sample in narrow], axis=1)
    draws, below, above = (
        cross(near, np.stack(rates, axis=1))
        for rates in (
            [sample.draws for sample in elsewhere],
            [sample.below for sample in elsewhere],
            [sample.above for sample in elsewhere],
        )
    )
    return Sample(float(value[0]), draws, below=below, above=above)


@dataclass(frozen=True)
class Curve:
    """One arm along the doses that are compared, the untuned model first.

    Attributes:
        narrow: Rates of the narrow task.
        elsewhere: Rates of misalignment elsewhere.
        framed: The same in the frame; none where there is no frame.
    """

    narrow: list[Sample]
    elsewhere: list[Sample]
    framed: list[Sample]

    @property
    def best(self) -> float:
        """The highest rate of the narrow task."""
        return max(sample.value for sample in self.narrow)

    def at(self, level: float) -> Sample:
        """Return misalignment elsewhere where the narrow task first reaches a level."""
        return at_level(level, self.narrow, self.elsewhere)

    def framed_at(self, level: float) -> Sample:
        """Return misalignment elsewhere in the frame, at the same point."""
        return at_level(level, self.narrow, self.framed)
