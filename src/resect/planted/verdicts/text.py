"""The table of verdicts as Markdown, from rows alone, and its place in a page of the docs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from resect.errors import InputError

BEGIN, END = "<!-- verdicts: begin -->", "<!-- verdicts: end -->"
WANTED = {
    "true": "sensitivity: supported where it is true",
    "boundary": "supported at its boundary (at most 2.5 % is wanted)",
    "false": "supported where it is false (specificity is what lacks to 100 %)",
}
Columns = Mapping[str, Any]


def markdown(tables: Mapping[str, Sequence[Columns]], made: str) -> str:
    """Return the page: totals by truth, the order, then every scenario by study.

    Args:
        tables: As columns: `rows` and `totals` of the table, and `orders`.
        made: How it was made, a sentence.
    """
    return f"{in_all(tables, made)}\n{by_world(tables['rows'])}"


def in_all(tables: Mapping[str, Sequence[Columns]], made: str) -> str:
    """Return totals by truth and the order; the arguments are those of `markdown`."""
    lines = [made]
    for truth, heading in WANTED.items():
        chosen = [total for total in tables["totals"] if total["truth"] == truth]
        if chosen:
            lines += ["", f"## {heading[:1].upper()}{heading[1:]}", "", *_totals(chosen)]
    if tables["orders"]:
        lines += ["", "## More broken answers that pass more easily (none is wanted)", ""]
        lines += ["| study | runs | reversals |", "|---|--:|--:|"]
        lines += [
            f"| {row['study']} | {row['runs']} | {row['reversals']} |" for row in tables["orders"]
        ]
    return "\n".join(lines) + "\n"


def by_world(rows: Sequence[Columns]) -> str:
    """Return every scenario by study."""
    studies = dict.fromkeys(row["study"] for row in rows)
    sections = [
        [f"## {study}", "", *_scenarios([row for row in rows if row["study"] == study])]
        for study in studies
    ]
    return "\n\n".join("\n".join(lines) for lines in sections) + "\n"


def _totals(totals: Sequence[Columns]) -> list[str]:
    lines = [
        "| study | claim | of | worlds | runs | supported | at worst | where |",
        "|---|---|---|--:|--:|--:|--:|---|",
    ]
    lines += [
        f"| {total['study']} | {total['claim']} | {total['statement']} | {total['worlds']} | "
        f"{total['draws']} | "
        f"{share(total['share'], total['low'], total['high'])} | "
        f"{share(total['worst_share'])} | {total['worst']} |"
        for total in totals
    ]
    return lines


def _scenarios(rows: Sequence[Columns]) -> list[str]:
    claims = list(dict.fromkeys(row["claim"] for row in rows))
    lines = [f"{number}. {claim}" for number, claim in enumerate(claims, 1)]
    lines += [
        "",
        "| world | models × prompts | scores | claim | of | truth | runs | supported | "
        "inconclusive | not supported | not measurable |",
        "|---|---|---|--:|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        words = ("inconclusive", "not_supported", "not_measurable")
        supported = share(row["supported"], row["supported_low"], row["supported_high"])
        lines.append(
            f"| {row['scenario']} | {row['models']} × {row['prompts']} | {row['scores']} | "
            f"{claims.index(row['claim']) + 1} | {row['statement']} | {row['truth']} | "
            f"{row['draws']} | {supported} | "
            + " | ".join(share(row[word]) for word in words)
            + " |"
        )
    return lines


def share(value: float, low: float | None = None, high: float | None = None) -> str:
    """Return a share in percent, with its bounds in brackets where they are given."""
    text = f"{100 * value:.1f} %"
    return text if low is None or high is None else f"{text} [{100 * low:.1f}, {100 * high:.1f}]"


def filled(document: str, table: str, name: str, begin: str = BEGIN, end: str = END) -> str:
    """Return a page of the docs with the table in its marked place, headings one level deeper.

    Args:
        document: The page.
        table: What its place is to hold, ends with a line break.
        name: What a message calls the page.
        begin: The line before the place.
        end: The line behind it.

    Raises:
        InputError: The page has no such place.
    """
    before, opening, rest = document.partition(begin)
    _, closing, after = rest.partition(end)
    if not opening or not closing:
        raise InputError(
            f"{name} has no place for the table", allowed=f"a line {begin} and a line {end}"
        )
    deeper = table.replace("\n## ", "\n### ")
    return f"{before}{begin}\n{deeper}{end}{after}"
