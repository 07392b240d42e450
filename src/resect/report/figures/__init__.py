"""Figures: for each study the drawings that were made for its claim.

A figure function takes a study's tables and returns matplotlib figures by name; each comes with a
sentence for readers who cannot see it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from resect.report.figures import (
    compactness,
    compression,
    dissociation,
    specificity,
    transfer,
)
from resect.report.figures._style import Drawing

Tables = dict[str, list[dict[str, Any]]]

FIGURES: dict[str, Callable[[Tables, dict[str, Any]], list[Drawing]]] = {
    "compactness": compactness.draw,
    "transfer": transfer.draw,
    "specificity": specificity.draw,
    "compression": compression.draw,
    "dissociation": dissociation.draw,
}
