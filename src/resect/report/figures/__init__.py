"""Figures: for each study the drawings that were made for its claim.

A figure function takes a study's tables and its settings and returns drawings; see `_spec.py`.
Tables and columns that are missing leave their panel out, and a drawing without panels is dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from resect.report.figures import (
    claims,
    compactness,
    compression,
    dissociation,
    emergent,
    frontier,
    jailbreak,
    relearning,
    specificity,
    stability,
    transfer,
    where,
)
from resect.report.figures.spec import Drawing, Tables

FIGURES: dict[str, Callable[[Tables, dict[str, Any]], list[Drawing]]] = {
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
}


def drawings(study: dict[str, Any]) -> list[Drawing]:
    """Return a study's drawings that have something to show.

    A study without a figure function, or whose tables give nothing to draw, shows its claims
    against their controls. A table `where` adds the map of layers and modules.
    """
    draw = FIGURES.get(study["study"])
    found = draw(study["tables"], study["settings"]) if draw else []
    found = [one for one in found if one.panels]
    if not found:
        found = claims.draw(study["study"], study["claims"])
    return found + where.draw(study["study"], study["tables"])
