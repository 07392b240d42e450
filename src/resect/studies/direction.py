"""The rival that cuts no weight: one direction taken out of what the blocks write.

It is made from the examples that the cut is made from, gets a grid of its own, and is chosen on the
half of the prompts on which the cut is chosen, within the same limits. A study has this arm only
where its section of the configuration says so.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from resect.studies.cells import Cut
from resect.studies.design import Design, Section, Share, TargetName
from resect.studies.weighing import percent

NAME = "direction"
Strength = Annotated[float, Field(gt=0, le=2)]


class Direction(Section):
    """The grid of direction ablation.

    Attributes:
        target: The behaviour whose activations are compared, with those of its contrast, or of the
            preserve set where it has none; None for the target of the configuration.
        strengths: Which share is taken out: 1 leaves nothing along the direction, 2 mirrors it.
        depths: Where a direction is taken from that is taken out of all blocks, from 0, the first,
            to 1, the last; each is tried at every strength, and so is each block's own direction.
    """

    target: TargetName | None = None
    strengths: Annotated[tuple[Strength, ...], Field(min_length=1)] = (0.5, 1.0, 1.5)
    depths: tuple[Share, ...] = (0.6,)

    def cuts(self, design: Design) -> list[Cut]:
        """Return the variants, of each way the weakest first."""
        target = self.target or design.target
        return [
            Cut(target, "direction", strength, depth=depth)
            for depth in (None, *self.depths)
            for strength in self.strengths
        ]


class WithDirection(Section):
    """A section of a study that may have the rival.

    Attributes:
        direction: Its grid; None leaves it out, and the section is then written as it was before
            there was such a rival.
    """

    direction: Direction | None = None

    @model_serializer(mode="wrap")
    def _as_before(self, write: SerializerFunctionWrapHandler) -> dict[str, object]:
        values: dict[str, object] = write(self)
        return {key: value for key, value in values.items() if key != NAME or value is not None}


def words(cut: Cut) -> str:
    """Return a direction in words."""
    where = "each block's own" if cut.depth is None else f"that at depth {cut.depth:g}"
    return f"{percent(cut.q)} of the direction, {where}"
