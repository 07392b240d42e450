"""The report as Markdown: for a terminal, a pull request or a model card."""

from __future__ import annotations

import re
from typing import Any

from resect.errors import visible
from resect.report.words import SIGNS, bounds_of, cell, effects_of, interval

SPECIAL = re.compile(r"([\\`*_\[\]<>|#])")


def text(value: Any) -> str:
    """Return one line of text in which nothing is read as Markdown or HTML."""
    return SPECIAL.sub(r"\\\1", " ".join(visible(value).split()))


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Return the lines of a table; the cells are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def fenced(block: str, language: str = "") -> list[str]:
    """Return a block of code in a fence that is longer than any in it."""
    ticks = max((len(run) for run in re.findall(r"`+", block)), default=0)
    fence = "`" * max(3, ticks + 1)
    return [f"{fence}{language}", visible(block), fence]


def _verdict(claim: dict[str, Any]) -> str:
    return f"{SIGNS[claim['verdict']][0]} {text(claim['verdict'])}"


def markdown(summary: dict[str, Any]) -> str:
    """Return `report.md` of what `report.json` holds."""
    claims = [claim for study in summary["studies"] for claim in study["claims"]]
    lines = [f"# resect: {text(summary['name'])}", ""]
    if summary["quick"]:
        lines += ["**A quick run with a single seed: do not quote its numbers.**", ""]
    rows = [
        [
            text(claim["claim"]),
            _verdict(claim),
            interval(claim["effect"]),
            text(claim["effect"]["name"]),
        ]
        for claim in claims
    ]
    bounds = bounds_of(claim["effect"] for claim in claims)
    lines += [*table(["claim", "verdict", f"effect [{bounds}]", "which is"], rows), ""]
    for study in summary["studies"]:
        lines += _study(study)
    lines += ["## Cite and rebuild", "", *fenced(summary["citation"], "bibtex"), ""]
    lines += [*fenced("\n".join(summary["rebuild"]), "sh"), "", "## Provenance", ""]
    for key, value in summary["provenance"].items():
        said = (
            ", ".join(f"{name} {cell(one)}" for name, one in value.items())
            if isinstance(value, dict)
            else cell(value)
        )
        lines.append(f"- {text(key)}: {text(said)}")
    return "\n".join(lines) + "\n"


def _study(study: dict[str, Any]) -> list[str]:
    lines = [f"## {text(study['title'])}", ""]
    for one in study["figures"]:
        if one["files"]:
            lines += [f"![{text(one['caption'])}]({one['files'][0]})", ""]
    for claim in study["claims"]:
        lines += [
            f"### {text(claim['claim'])}",
            "",
            f"**{_verdict(claim)}.** {text(claim['reason'])}",
        ]
        lines += ["", f"Rule: {text(claim['rule'])}", ""]
        effects = effects_of(claim)
        rows = [[text(effect["name"]), interval(effect)] for effect in effects]
        lines += [*table(["quantity", f"value [{bounds_of(effects)}]"], rows), ""]
        lines += [f"> {text(claim['quote'])}", ""]
    lines += [f"**Shows.** {text(study['shows'])}", ""]
    lines += [f"**Does not show.** {text(study['does_not_show'])}", ""]
    files = [f"[{text(name)}]({one['file']})" for name, one in study["tables"].items()]
    return [*lines, f"Tables: {', '.join(files)}", ""] if files else lines
