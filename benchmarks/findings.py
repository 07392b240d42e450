"""The table of a page of findings from a run, and what the table was made from.

    python benchmarks/findings.py RUN
    python benchmarks/findings.py RUN --page findings-real
    python benchmarks/findings.py RUN --page findings-real --section gemma

It writes docs/findings.json and the marked place in docs/findings.md, or those of another page; a
section has a place and a file of its own. The JSON file holds the claims of the run and where they
come from, so that a test can hold the page to it without the run.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from resect.files.reading import read_json
from resect.files.writing import write_json, write_text
from resect.planted.verdicts.text import filled
from resect.records import Interval
from resect.report.words import SIGNS, interval

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- findings: begin -->", "<!-- findings: end -->"
SIZES = "sizes.json"
PROVENANCE = ("command", "git_commit", "portable", "python", "resect_version", "seeds", "versions")
Values = Mapping[str, Any]


class Place(NamedTuple):
    """Where a page of docs/ holds the numbers of a run, and the file beside it that does."""

    page: str
    section: str = ""

    @property
    def numbers(self) -> Path:
        """The file with what the place was written from."""
        return DOCS / f"{'-'.join(filter(None, self))}.json"

    def filled(self, document: str, text: str) -> str:
        """Return the page with another text in this place."""
        begin, end = (
            mark.replace("findings", f"findings {self.section}") if self.section else mark
            for mark in (BEGIN, END)
        )
        return filled(document, text, f"{self.page}.md", begin, end)


def kept(results: Values, sizes: Values | None = None) -> dict[str, Any]:
    """Return what the page needs of a run's results, and of its sizes if it says them."""
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
    origin["command"] = re.sub(r" (-o|--output|-j|--jobs) \S+", "", origin["command"])
    beside = {"tables": tables, "sizes": sizes}
    return {"claims": claims, "provenance": origin} | {k: v for k, v in beside.items() if v}


def tables(values: Values) -> str:
    """Return what stands in the marked place: sizes, claims, then what cuts did to each set."""
    beside = values.get("tables", {})
    parts = [_sizes(values["sizes"], "rises" in beside)] if "sizes" in values else []
    parts.append(table(values))
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


def _sizes(sizes: Values, curves: bool) -> str:
    """Return how much the run measured, which the run after it need not do."""
    cuts = "; sizes of cut: {fractions}" if curves else ""
    return (
        "This run: {asked} prompts asked of each set; draws of the calibration set: {seeds}, of "
        "{scored} out of {pool} other prompts each; answers of up to {tokens} tokens"
        + cuts
        + ".\n\n"
    ).format(**sizes)


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
    parser.add_argument("--section", default="", help="its section, if it has several")
    options = parser.parse_args(arguments)
    place, sizes = Place(options.page, options.section), options.run / SIZES
    values = kept(
        read_json(options.run / "results.json"), read_json(sizes) if sizes.is_file() else None
    )
    page = DOCS / f"{options.page}.md"
    text = place.filled(page.read_text(encoding="utf-8"), tables(values))
    write_json(place.numbers, values)
    write_text(page, text)


if __name__ == "__main__":
    main()
