"""Evaluations side by side: rates of each arm and differences from others, on one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from resect import files
from resect.errors import InputError
from resect.files.reading import refuse_links_out
from resect.records import Row
from resect.report.judge import NAMES, shape_judge
from resect.report.markdown import table, text
from resect.report.page import render
from resect.report.tables import Column, Table, csv_text
from resect.report.words import cell

HEADINGS = {
    "value": "of the arm",
    "value_against": "of the other",
    "against": "compared with",
    "prompts": "prompts of the arm",
    "prompts_against": "prompts of the other",
    "paired": "the same prompts",
}


def build_evaluations(
    differences: Sequence[Row],
    settings: Mapping[str, Mapping[str, str]],
    output: Path,
    judge_errors: Sequence[Row] = (),
) -> Path:
    """Write `report.html`, `report.json`, `report.md` and a CSV table of evaluations.

    Args:
        differences: A row for each arm and probe, as `resect.evaluation.differences` returns them.
        settings: Options that are not the same for all arms: option to arm to value.
        output: Folder to write; not one of the evaluations.
        judge_errors: How fitted judges err, by category.

    Returns:
        The path of the page.

    Raises:
        InputError: `output` is an evaluation or a run.
    """
    if (output / "results.json").exists():
        raise InputError(
            "the output folder holds results; its report would be replaced",
            got=str(output),
            fix="choose another folder with -o",
        )
    refuse_links_out(output)
    changed: list[Row] = [
        {"option": name, "arm": arm, "value": value}
        for name, values in settings.items()
        for arm, value in values.items()
    ]
    tables = [_table("Differences, with 95 % intervals", differences)]
    if changed:
        tables.append(_table("Options that are not the same in all arms", changed))
    if judge_errors:
        tables.append(shape_judge(NAMES["errors"], judge_errors))
    if not differences:
        raise InputError(
            "the evaluations have no probe, attack and judge in common",
            fix="ask the same probes under the same attack, and judge with the same judge",
        )
    page = render("evaluations.html", tables=tables, first=str(differences[0]["against"]))
    files.write_text(output / "tables" / "differences.csv", csv_text(differences))
    known = {"judge_errors": judge_errors} if judge_errors else {}
    files.write_json(
        output / "report.json", {"differences": differences, "settings": settings} | known
    )
    files.write_text(output / "report.md", _markdown(tables))
    files.write_text(output / "report.html", page)
    return output / "report.html"


def _table(name: str, rows: Sequence[Row]) -> Table:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    columns = tuple(
        Column(
            HEADINGS.get(key, key.replace("_", " ")),
            all(not isinstance(row.get(key), str | bool) for row in rows),
        )
        for key in keys
    )
    texts = tuple(tuple(cell(row.get(key)) for key in keys) for row in rows)
    return Table(name, "", columns, texts)


def _markdown(tables: Sequence[Table]) -> str:
    lines = ["# resect: evaluations side by side", ""]
    for shown in tables:
        headings = [column.heading for column in shown.columns]
        rows = [[text(value) for value in row] for row in shown.rows]
        lines += [f"## {shown.name}", "", *table(headings, rows), ""]
    return "\n".join(lines)
