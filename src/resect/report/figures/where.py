"""Where the cut weights are: layers and kinds of module, against chance.

Table `where`, which any study may give: {layer, kind, removed, size} and, if wanted, `seed`. A row
is one prunable tensor (or all experts of one layer and kind): `layer` its block's number from 0,
`kind` the module's name in its block (`self_attn.q_proj`, `mlp.down_proj`), `removed` how many of
its `size` weights are cut. Rows of the same layer and kind are summed. A cell is

    (removed / removed of all) / (size / size of all)

the share of the cut that lies there over the share that chance would put there.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from resect.records import Row
from resect.report.figures.parts import TableError, matrix_panel, pooled, rows_of, unique
from resect.report.figures.spec import Drawing, Tables, Tile
from resect.report.words import percent

MOST_COLUMNS = 16
# The strongest shade stands for 2**3 times chance and more, or less.
TOP = 3.0


class _Spot(NamedTuple):
    """A cell of the map: a kind of module in a group of layers, by their indices."""

    kind: int
    group: int


def draw(study: str, tables: Tables) -> list[Drawing]:
    """Return the map of layers and kinds; none where the study gives no table `where`.

    Raises:
        TableError: A row lacks one of the four columns, or has no count in it.
    """
    rows = [row for row in pooled(_checked(tables)) if row["size"]]
    total, size = (sum(_count(row, key) for row in rows) for key in ("removed", "size"))
    if not total:
        return []
    layers = sorted({_count(row, "layer") for row in rows})
    kinds = unique(row["kind"] for row in rows)
    width = math.ceil(len(layers) / MOST_COLUMNS)
    groups = [layers[start : start + width] for start in range(0, len(layers), width)]
    group_of = {layer: index for index, group in enumerate(groups) for layer in group}
    labels = [f"{group[0]}" if len(group) == 1 else f"{group[0]}–{group[-1]}" for group in groups]
    removed: Counter[_Spot] = Counter()
    sizes: Counter[_Spot] = Counter()
    for row in rows:
        spot = _Spot(kinds.index(str(row["kind"])), group_of[_count(row, "layer")])
        removed[spot] += _count(row, "removed")
        sizes[spot] += _count(row, "size")
    cells = [
        _cell(spot, removed[spot] / total, sizes[spot] / size, kinds, labels)
        for spot in sorted(sizes)
    ]
    panel = matrix_panel(
        "where the cut weights are, × chance",
        kinds,
        labels,
        cells,
        row_label="module",
        column_label="layers" if width > 1 else "layer",
    )
    caption = (
        f"Where the {total:,} cut weights are, by layer and module: 1 is what chance would give, "
        "more is orange, less is blue. Tooltips have the shares."
    )
    return [Drawing(f"{study}-where", caption, (panel,))]


def _checked(tables: Tables) -> list[Row]:
    rows = rows_of(tables, "where", texts=("kind", "layer", "removed", "size"))
    for index, row in enumerate(rows):
        for column in ("layer", "removed", "size"):
            value = row[column]
            if not isinstance(value, int) or value < 0:
                problem = "Input should be a whole number of 0 or more"
                raise TableError("where", index, column, problem)
    return rows


def _count(row: Row, column: str) -> int:
    value = row[column]
    return value if isinstance(value, int) else 0


def _cell(
    spot: _Spot, share: float, chance: float, kinds: Sequence[str], layers: Sequence[str]
) -> Tile:
    ratio = share / chance
    shade = max(-1.0, min(1.0, math.log2(ratio) / TOP)) if ratio else -1.0
    title = f"{kinds[spot.kind]}, layer {layers[spot.group]}: {percent(share)} of the cut, "
    text = f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}"
    return Tile(spot.group, spot.kind, shade, text, f"{title}{percent(chance)} of the weights")
