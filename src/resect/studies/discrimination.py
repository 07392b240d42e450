"""How well a variant tells two kinds of prompts apart, by no threshold: AUROC.

The probe `recognition` measures for each prompt the margin between two answers. With m the margin
of the first answer over the second, the same direction for every prompt,

    AUROC = P(m of a prompt whose answer is the first > m of one whose answer is the second)

ties counting half. A model that has come to prefer one answer everywhere keeps it, where the share
of right replies falls. Within each seed all categories are ranked together; seeds are averaged.
What is compared with chance is Somers' D = 2 AUROC - 1, from 0 (chance, or worse) to 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from resect.stats import Sample, area, average
from resect.studies.cells import Cell
from resect.studies.design import Design
from resect.studies.measurements import Measurements
from resect.studies.weighing import percent

PROBE = "recognition"


def is_ranked(design: Design, probe: str) -> bool:
    """Return whether a probe is measured by ranks: where both answers' probabilities are known."""
    return probe == PROBE and design.evaluation.measure == "replies"


def auroc(measured: Measurements, cells: Sequence[Cell]) -> Sample:
    """Return the AUROC of one arm, one cell a seed, with paired bootstrap draws over prompts.

    NaN where one kind of prompts is missing, or a margin.
    """
    together = measured.resampler(PROBE).together
    areas = [_area(measured, cell, PROBE if together else f"{PROBE}/{cell.seed}") for cell in cells]
    return average(areas, together=together)


def discrimination(measured: Measurements, cells: Sequence[Cell]) -> Sample:
    """Return Somers' D of one arm; what is below chance counts as chance."""
    import numpy as np

    above_chance = 1 - (1 - auroc(measured, cells)) * 2
    ends = (above_chance.draws, above_chance.below, above_chance.above)
    draws, below, above = (np.maximum(end, 0) for end in ends)
    return Sample(max(above_chance.value, 0.0), draws, below=below, above=above)


def undiscerning(measured: Measurements, cells: Sequence[Cell]) -> str:
    """Return why it cannot be measured what a cut does to the discrimination, "" if it can."""
    value = discrimination(measured, cells).value
    if math.isnan(value):
        return f"The rows of {PROBE} have no margins of both kinds."
    if value < measured.config.least_rate:
        chance = (1 + value) / 2
        return (
            f"The intact model hardly tells the prompts of {PROBE} apart: AUROC {percent(chance)}."
        )
    return ""


def _area(measured: Measurements, cell: Cell, label: str) -> Sample:
    rows = [row for row in measured.rows(cell) if row["probe"] == PROBE]
    asked = measured.asked(cell, PROBE)
    answer = min((row["reference"] for row in rows), default="")
    hits = [row["reference"] == answer for row in rows]
    margins = [_margin(row.nll) for row in asked]
    return area(
        label,
        hits,
        [margin if hit else -margin for hit, margin in zip(hits, margins, strict=True)],
        [row.group for row in asked],
    )


def _margin(nll: float | None) -> float:
    """Return log P(right) - log P(wrong) from -log of the share of the right one; NaN without."""
    if nll is None:
        return math.nan
    if nll <= 0:
        return math.inf
    # log(e^nll - 1), without overflow and for values next to 0.
    return -(nll + math.log(-math.expm1(-nll)))
