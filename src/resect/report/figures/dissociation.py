"""Each capability cut, every capability measured."""

from __future__ import annotations

from typing import Any

from resect.report.figures._style import INK, Drawing, Row, heatmap, matrix, new_figure


def draw(tables: dict[str, list[Row]], _settings: dict[str, Any]) -> list[Drawing]:
    """Return the matrix of retained capability."""
    figure, axes = new_figure(7.4, 3.7)
    values, rows, columns = matrix(tables["matrix"], ("cut", "measured", "retained"))
    heatmap(axes[0], values, (rows, columns), 1.0)
    axes[0].set_ylabel("what was cut")
    axes[0].set_xlabel("what was measured")
    title = "retained, as a share of the intact model"
    axes[0].set_title(title, loc="left", fontsize=11, color=INK)
    caption = "Share of each capability (columns) that is left after each cut (rows)."
    return [Drawing("dissociation-matrix", caption, figure)]
