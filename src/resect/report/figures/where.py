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

from resect.report.figures.parts import matrix_panel, pooled, rows_of, unique
from resect.report.figures.spec import Drawing, Tables, Tile
from resect.report.words import percent

MOST_COLUMNS = 16
# The strongest shade stands for 2**3 times chance and more, or less.
TOP = 3.0


def draw(study: str, tables: Tables) -> list[Drawing]:
    """Return the map of layers and kinds; none where the study gives no table `where`."""
    rows = [row for row in pooled(rows_of(tables, "where")) if row.get("size")]
    total, size = (sum(row[key] for row in rows) for key in ("removed", "size"))
    if not total:
        return []
    layers = sorted({int(row["layer"]) for row in rows})
    kinds = unique(row["kind"] for row in rows)
    width = math.ceil(len(layers) / MOST_COLUMNS)
    groups = [layers[at : at + width] for at in range(0, len(layers), width)]
    column = {layer: at for at, group in enumerate(groups) for layer in group}
    labels = [f"{g[0]}" if len(g) == 1 else f"{g[0]}–{g[-1]}" for g in groups]
    removed: Counter[tuple[int, int]] = Counter()
    sizes: Counter[tuple[int, int]] = Counter()
    for row in rows:
        place = kinds.index(str(row["kind"])), column[int(row["layer"])]
        removed[place] += row["removed"]
        sizes[place] += row["size"]
    cells = [
        _cell(place, (removed[place] / total, sizes[place] / size), (kinds, labels))
        for place in sorted(sizes)
    ]
    panel = matrix_panel(
        "where the cut weights are, × chance",
        (kinds, labels),
        cells,
        labels=("module", "layers" if width > 1 else "layer"),
    )
    caption = (
        f"Where the {total:,} cut weights are, by layer and module: 1 is what chance would give, "
        "more is orange, less is blue. Tooltips have the shares."
    )
    return [Drawing(f"{study}-where", caption, (panel,))]


def _cell(
    place: tuple[int, int], shares: tuple[float, float], names: tuple[list[str], list[str]]
) -> Tile:
    (row, column), (share, chance) = place, shares
    ratio = share / chance
    shade = max(-1.0, min(1.0, math.log2(ratio) / TOP)) if ratio else -1.0
    title = f"{names[0][row]}, layer {names[1][column]}: {percent(share)} of the cut, "
    text = f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}"
    return Tile(column, row, shade, text, f"{title}{percent(chance)} of the weights")
