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
    origin = {name: results["provenance"][name] for name in PROVENANCE}
    # Where the run lay and how many processes it had changes no number.
    origin["command"] = re.sub(r" (-o|--output|--jobs) \S+", "", origin["command"])
    return {"claims": claims, "provenance": origin}


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
    text = filled(page.read_text(encoding="utf-8"), table(values), page.name, BEGIN, END)
    write_json(DOCS / f"{options.page}.json", values)
    write_text(page, text)


if __name__ == "__main__":
    main()
