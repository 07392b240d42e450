"""The leaderboard as Markdown, from summary rows alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from resect.planted.trial import Row, number

COLUMNS = {
    "selectivity": "selectivity",
    "gain": "gain over source",
    "hazard_area": "harm left",
    "craft_area": "craft left",
    "utility_area": "utility left",
    "average_precision": "AP",
    "precision": "P@S",
    "precision_tenth": "P@S/10",
    "decoy_share_tenth": "decoy@S/10",
    "auc": "AUC",
}
SPREAD = ("selectivity", "gain", "average_precision")


def page(summary: Sequence[Row], by_plant: Mapping[str, Sequence[Row]]) -> str:
    """Return the page: all plants together, then each plant by its best methods."""
    lines = ["## All plants", "", *_table(summary)]
    for name, rows in by_plant.items():
        lines += ["", f"## Plant: {name}", "", *_table(rows)]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| method | " + " | ".join(COLUMNS.values()) + " |",
        "|---|" + "---:|" * len(COLUMNS),
    ]
    for row in rows:
        cells = [_cell(row, column) for column in COLUMNS]
        lines.append(f"| {row['variant']} | " + " | ".join(cells) + " |")
    return lines


def _cell(row: Row, column: str) -> str:
    bounds = (number(row, f"{column}_{side}") for side in ("low", "high"))
    return decimals(number(row, column), *(bounds if column in SPREAD else ()))


def decimals(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """Return a cell of a column that aligns: three decimals, bounds with two."""
    bounds = "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"
    return "–" if value is None else f"{value:.3f}{bounds}"
