"""Which harm types fall when one is cut, and how far the cut sets overlap."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from resect.report.figures._style import (
    INK,
    Drawing,
    Row,
    heatmap,
    matrix,
    new_figure,
    number,
    pooled,
)


def draw(tables: dict[str, list[Row]], _settings: dict[str, Any]) -> list[Drawing]:
    """Return both heatmaps in one figure."""
    figure, axes = new_figure(9.2, 3.7, columns=2)
    if tables["matrix"]:
        values, rows, columns = matrix(tables["matrix"], ("source", "measured", "harm_drop"))
        heatmap(axes[0], values, (rows, columns), 1.0)
    axes[0].set_title("relative drop of harm", loc="left", fontsize=11, color=INK)
    axes[0].set_ylabel("located with")
    axes[0].set_xlabel("measured on")
    pairs = list(pooled(tables["overlap"]))
    if pairs:
        names = list(dict.fromkeys(str(row[key]) for row in pairs for key in ("first", "second")))
        overlap = np.full((len(names), len(names)), math.nan)
        for row in pairs:
            a, b = names.index(str(row["first"])), names.index(str(row["second"]))
            overlap[a, b] = overlap[b, a] = number(row["jaccard"])
        heatmap(axes[1], overlap, (names, names), 1.0)
    axes[1].set_title("overlap of the cut sets (Jaccard)", loc="left", fontsize=11, color=INK)
    caption = (
        "Left: drop of harm of each type (columns) after a cut that was located with one type "
        "(rows). Right: overlap of the cut sets, with a benign behaviour's set for comparison."
    )
    return [Drawing("transfer-matrix", caption, figure)]
