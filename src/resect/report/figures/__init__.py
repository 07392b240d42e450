"""Figures: for each study the drawings that were made for its claim.

A figure function takes a study's tables and its settings and returns drawings; see `spec.py`.
Tables and columns of numbers that are missing leave their panel out, and a drawing without panels
is dropped.
"""

from __future__ import annotations

from collections.abc import Callable

from resect.records import StudyResult
from resect.report.figures import (
    claims,
    compactness,
    compression,
    dissociation,
    emergent,
    frontier,
    jailbreak,
    relearning,
    selectivity,
    specificity,
    stability,
    transfer,
    where,
)
from resect.report.figures.spec import Drawing, Settings, Tables

FIGURES: dict[str, Callable[[Tables, Settings], list[Drawing]]] = {
    "compactness": compactness.draw,
    "transfer": transfer.draw,
    "specificity": specificity.draw,
    "compression": compression.draw,
    "dissociation": dissociation.draw,
    "emergent": emergent.draw,
    "jailbreak": jailbreak.draw,
    "relearning": relearning.draw,
    "stability": stability.draw,
    "frontier": frontier.draw,
    "selectivity": selectivity.draw,
}


def drawings(study: StudyResult) -> list[Drawing]:
    """Return a study's drawings that have something to show.

    A study without a figure function, or whose tables give nothing to draw, shows its claims
    against their controls. A table `where` adds the map of layers and modules.

    Raises:
        TableError: A table of the study lacks a column, or has something else in it.
    """
    draw = FIGURES.get(study.study)
    drawn = draw(study.tables, study.settings) if draw else []
    drawn = [drawing for drawing in drawn if drawing.panels]
    if not drawn:
        drawn = claims.draw(study.study, study.claims)
    return drawn + where.draw(study.study, study.tables)
