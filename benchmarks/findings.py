"""The table of a page of findings from a run, and what the table was made from.

    python benchmarks/findings.py RUN
    python benchmarks/findings.py RUN --page findings-real

It writes docs/findings.json and the marked place in docs/findings.md, or those of another page. The
JSON file holds the claims of the run and where they come from, so that a test can hold the page to
it without the run.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resect.files.reading import read_json
from resect.files.writing import write_json, write_text
from resect.planted.verdicts.text import filled
from resect.records import Interval
from resect.report.words import SIGNS, interval

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- findings: begin -->", "<!-- findings: end -->"
PROVENANCE = ("command", "git_commit", "portable", "python", "resect_version", "seeds", "versions")
Values = Mapping[str, Any]


def kept(results: Values) -> dict[str, Any]:
    """Return what the page needs of a run's results."""
    claims = [
        {
            "study": claim["study"],
            "claim": claim["claim"],
            "verdict": claim["verdict"],
            "by_seed": claim["by_seed"],
            "recipe": claim["recipe"]["verdict"] if claim.get("recipe") else None,
            "effect": claim["effect"],
            "reason": claim["reason"],
        }
        for claim in results["claims"]
    ]
    tables = {
        name: [row for row in study["tables"][name] if row.get("seed") is None]
        for study in results["studies"]
        if study["study"] == "selectivity"
        for name in ("rises", "shares")
        if name in study["tables"]
    }
    origin = {name: results["provenance"][name] for name in PROVENANCE}
    # Where the run lay and how many processes it had changes no number.
    origin["command"] = re.sub(r" (-o|--output|--jobs) \S+", "", origin["command"])
    return {"claims": claims, "provenance": origin} | ({"tables": tables} if tables else {})


def tables(values: Values) -> str:
    """Return what stands in the marked place: the claims, then what cuts did to each set."""
    beside = values.get("tables", {})
    parts = [table(values)]
    if beside.get("rises"):
        parts += [
            "\n### Rise of the mean NLL of each set, nats a token\n\n",
            _rises(beside["rises"]),
        ]
    if beside.get("shares"):
        parts += [
            "\n### What the side set that loses most has of the rise of harmful answers\n\n",
            _shares(beside["shares"]),
        ]
    return "".join(parts)


def _rises(rows: Sequence[Values]) -> str:
    """Return a row for each cut and a column for each set, all seeds and prompts together."""
    sets = list(dict.fromkeys(row["set"] for row in rows))
    lines = [f"| cut | of all weights | {' | '.join(sets)} |", "|---|--:|" + "--:|" * len(sets)]
    cells = {(row["arm"], row["q"], row["set"]): row for row in rows}
    for arm, q in dict.fromkeys((row["arm"], row["q"]) for row in rows):
        numbers = [_bounded(cells[arm, q, name], "rise") for name in sets]
        removed = cells[arm, q, sets[0]]["removed_fraction"]
        lines.append(f"| {arm} | {removed:.2g} | {' | '.join(numbers)} |")
    return "\n".join(lines) + "\n"


def _shares(rows: Sequence[Values]) -> str:
    lines = [
        "| ranking | of all weights | side set | its share | above the target's at the same q |",
        "|---|--:|---|--:|--:|",
    ]
    lines += [
        f"| {row['arm']} | {row['removed_fraction']:.2g} | {row['side']} | "
        f"{_bounded(row, 'share')} | "
        f"{'' if row['arm'] == 'target' else _bounded(row, 'above_target')} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def _bounded(row: Values, name: str) -> str:
    value, low, high = (row[name + end] for end in ("", "_low", "_high"))
    if value is None:
        return "–"
    bounds = ["–" if bound is None else f"{bound:.2f}" for bound in (low, high)]
    return f"{value:.2f} [{', '.join(bounds)}]"


def table(values: Values) -> str:
    """Return the table as Markdown: a row a claim, with the words and marks of a report."""
    lines = [
        "| study | claim | of these models | each alone | of the recipe | effect | why |",
        "|---|---|---|---|---|---|---|",
    ]
    for claim in values["claims"]:
        marks = " ".join(SIGNS[word].mark for word in claim["by_seed"].values())
        lines.append(
            f"| {claim['study']} | {claim['claim']} | {claim['verdict']} | {marks} | "
            f"{claim['recipe'] or ''} | {_number(claim['effect'])} | {claim['reason']} |"
        )
    return "\n".join(lines) + "\n"


def _number(effect: Values) -> str:
    return f"{effect['name']}: {interval(Interval(**effect))}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write both files from a run folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--page", default="findings", help="its name in docs/, without .md")
    options = parser.parse_args(arguments)
    values = kept(read_json(options.run / "results.json"))
    page = DOCS / f"{options.page}.md"
    text = filled(page.read_text(encoding="utf-8"), tables(values), page.name, BEGIN, END)
    write_json(DOCS / f"{options.page}.json", values)
    write_text(page, text)


if __name__ == "__main__":
    main()
