"""The report as Markdown: for a terminal, a pull request or a model card."""

from __future__ import annotations

import re
from collections.abc import Mapping

from resect.errors import visible
from resect.records import Claim, VerdictWord
from resect.report.contents import Contents, Section
from resect.report.judge import JudgeFile
from resect.report.tables import file_of
from resect.report.words import (
    SIGNS,
    STATE_WORDS,
    STATES,
    bounds_of,
    cell,
    effects_of,
    interval,
    models_of,
    threshold,
    weighed,
)

SPECIAL = re.compile(r"([\\`*_\[\]<>|#])")


def text(value: object) -> str:
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


def _verdict(word: VerdictWord) -> str:
    return f"{SIGNS[word].mark} {text(word)}"


def markdown(contents: Contents) -> str:
    """Return `report.md`."""
    claims = [shown.claim for shown in contents.claims]
    lines = [f"# resect: {text(contents.results.name)}", ""]
    if contents.results.quick:
        lines += ["**A quick run with a single seed: do not quote its numbers.**", ""]
    lines += [text(contents.scored), ""]
    if contents.notice:
        lines += [contents.notice, ""]
    rows = [
        [
            text(claim.claim),
            _verdict(claim.verdict),
            interval(claim.effect),
            text(claim.effect.name),
        ]
        for claim in claims
    ]
    bounds = bounds_of(claim.effect for claim in claims)
    lines += [*table(["claim", "verdict", f"effect [{bounds}]", "which is"], rows), ""]
    for section in contents.sections:
        lines += _section(section)
    if contents.judge is not None:
        lines += _judge(contents.judge)
    lines += ["## Cite and rebuild", "", *fenced(contents.citation, "bibtex"), ""]
    lines += [*fenced(contents.rebuild, "sh"), "", "## Provenance", ""]
    for key, value in contents.facts.items():
        words = (
            ", ".join(f"{name} {cell(part)}" for name, part in value.items())
            if isinstance(value, Mapping)
            else cell(value)
        )
        lines.append(f"- {text(key)}: {text(words)}")
    return "\n".join(lines) + "\n"


def _section(section: Section) -> list[str]:
    study = section.study
    lines = [f"## {text(study.title)}", ""]
    for figure in section.figures:
        if figure.files:
            lines += [f"![{text(figure.caption)}]({figure.files[0]})", ""]
    for shown in section.claims:
        claim, effects = shown.claim, effects_of(shown.claim)
        lines += [
            f"### {text(claim.claim)}",
            "",
            f"**{_verdict(claim.verdict)}.** {text(claim.reason)}",
        ]
        lines += ["", text(shown.measured)] if shown.measured else []
        lines += [*_of_recipe(claim), "", f"Rule: {text(claim.rule)}", ""]
        rows = [[text(effect.name), interval(effect)] for effect in effects]
        lines += [*table(["quantity", f"value [{bounds_of(effects)}]"], rows), ""]
        lines += [*_conditions(claim), f"> {text(shown.quote)}", ""]
    lines += [f"**Shows.** {text(study.shows)}", ""]
    lines += [f"**Does not show.** {text(study.does_not_show)}", ""]
    files = [
        f"[{text(name)}]({file_of(study.study, name)})"
        for name, rows in study.tables.items()
        if rows
    ]
    captions = [
        f"- {text(table.name)}: {text(table.caption)}" for table in section.tables if table.caption
    ]
    return [*lines, f"Tables: {', '.join(files)}", "", *captions, ""] if files else lines


def _judge(judge: JudgeFile) -> list[str]:
    """Return how the judge errs, and the rates corrected for it."""
    lines = ["## How the judge errs", ""]
    for shown in judge.tables():
        headings = [column.heading for column in shown.columns]
        rows = [[text(value) for value in row] for row in shown.rows]
        lines += [f"### {text(shown.name)}", "", *table(headings, rows), ""]
    return [*lines, *(f"{text(note)}.\n" for note in judge.notes)]


def _of_recipe(claim: Claim) -> list[str]:
    """Return what is said of these models and of their recipe, in one line; none if nothing is."""
    if claim.recipe is None:
        return []
    recipe = claim.recipe
    return [
        "",
        f"Of these models: {_verdict(claim.verdict)}. Of their recipe: {_verdict(recipe.verdict)} "
        f"({text(models_of(recipe))}). {text(recipe.reason)}",
    ]


def _conditions(claim: Claim) -> list[str]:
    """Return the conditions of a claim's rule as a table; none in results without them."""
    if not claim.requirements:
        return []
    rows = [
        [
            text(requirement.interval.name),
            weighed(requirement),
            threshold(requirement),
            f"{STATES[requirement.state].mark} {STATE_WORDS[requirement.state]}",
        ]
        for requirement in claim.requirements
    ]
    return [
        *table(["condition of the rule", "measured", "must be", "result"], rows),
        "",
    ]
