"""What each attack gets out of the intact model, after the target cut and after a random cut.

Table: `attacks` {seed, attack, arm, harm(+), refused(+)}; (+) stands for `_low` and `_high`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from resect.records import Row
from resect.report.figures.parts import Arm, dots, names, pooled, rates, rows_of, unique
from resect.report.figures.spec import Drawing, Panel, Settings, Tables, looks, name_of
from resect.report.words import readable


def draw(tables: Tables, _settings: Settings) -> list[Drawing]:
    """Return harm and refusals by attack, before and after."""
    rows = pooled(rows_of(tables, "attacks", texts=("attack", "arm")))
    panels = []
    for column, title, unit in (("harm", "harm", ""), ("refused", "refusals", "share of replies")):
        if any(row.get(column) is not None for row in rows):
            panels.append(_panel(rows, column, title, unit))
    caption = (
        "Harm and refusals under each attack, with 95 % intervals: intact, after the target cut, "
        "and after a random cut of the same size."
    )
    return [Drawing("jailbreak-attacks", caption, tuple(panels))]


def _attack(row: Row) -> str:
    """Return an attack in words; the options of its training are left to the table."""
    name = re.sub(r"(finetune):[^+]*", r"\1", str(row["attack"]))
    return readable("no attack" if name == "none" else name)


def _panel(rows: Sequence[Row], column: str, title: str, unit: str) -> Panel:
    attacks = unique(_attack(row) for row in rows)
    styles = looks(str(row["arm"]) for row in rows)
    arms = [
        Arm(name_of(arm), styles[arm], [row for row in rows if str(row["arm"]) == arm])
        for arm in styles
    ]
    return Panel(
        title,
        rates(unit),
        names(attacks),
        series=dots(arms, attacks, _attack, column),
        height=62 + 34 * len(attacks),
    )
