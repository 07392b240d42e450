"""The table of verdicts: a row for each scenario and claim, and what a verdict is worth in all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from resect.planted.verdicts.count import Count, Statement
from resect.planted.verdicts.scenario import TRUTHS, Scenario, Truth
from resect.records import VerdictWord
from resect.stats import wilson
from resect.studies.weighing import STRENGTH


@dataclass(frozen=True)
class Row:
    """Verdicts on one claim in one scenario.

    Attributes:
        study: Name of the study.
        stated: Position of the claim among the study's stated ones.
        claim: The claim in words.
        scenario: Name of the scenario.
        truth: What is true of the claim there.
        models: Models of a run.
        prompts: Prompts of a probe and model.
        scores: "0/1" or "graded".
        draws: Runs.
        counts: Runs by verdict.
        statement: What the verdicts are on, see `Count`.
    """

    study: str
    stated: int
    claim: str
    scenario: str
    truth: Truth
    models: int
    prompts: int
    scores: str
    draws: int
    counts: dict[VerdictWord, int]
    statement: Statement

    def plain(self) -> dict[str, Any]:
        """Return the row as columns, shares with Wilson intervals."""
        columns: dict[str, Any] = {
            name: getattr(self, name) for name in self.__dataclass_fields__ if name != "counts"
        }
        for word in reversed(STRENGTH):
            bounds = wilson(self.counts[word], self.draws)
            name = word.replace(" ", "_")
            columns |= {
                name: self.counts[word] / self.draws,
                f"{name}_low": bounds.low,
                f"{name}_high": bounds.high,
            }
        return columns


@dataclass(frozen=True)
class Total:
    """What a claim's verdict is worth over all scenarios of one truth.

    Attributes:
        study: Name of the study.
        stated: Position of the claim.
        claim: The claim in words, without what a run adds.
        truth: What is true of it.
        worlds: Scenarios.
        draws: Runs in all.
        supported: Runs in which it was supported.
        worst: The scenario that is furthest from what it should be.
        worst_share: How often it was supported there.
        statement: What the verdict is on, see `Count`.
    """

    study: str
    stated: int
    claim: str
    truth: Truth
    worlds: int
    draws: int
    supported: int
    worst: str
    worst_share: float
    statement: Statement

    def plain(self) -> dict[str, Any]:
        """Return it as columns, with the share and its Wilson interval."""
        bounds = wilson(self.supported, self.draws)
        columns = {name: getattr(self, name) for name in self.__dataclass_fields__}
        share = {"share": self.supported / self.draws, "low": bounds.low, "high": bounds.high}
        return columns | share


def rows_of(scenario: Scenario, counts: Iterable[Count]) -> list[Row]:
    """Return the rows of a scenario from the counts of all its runs."""
    rows: dict[tuple[int, str, str, str], Row] = {}
    size = scenario.size
    for count in counts:
        key = (count.stated, count.claim, count.statement, count.truth)
        if key not in rows:
            rows[key] = Row(
                study=scenario.study,
                stated=count.stated,
                claim=count.claim,
                scenario=scenario.name,
                truth=count.truth,
                models=size.models,
                prompts=size.prompts,
                scores="0/1" if size.words == 1 else "graded",
                draws=0,
                counts=dict.fromkeys(STRENGTH, 0),
                statement=count.statement,
            )
        rows[key].counts[count.verdict] += count.number
    # In the order of claims and not in that of the first verdicts.
    return [
        Row(**{**vars(rows[key]), "draws": sum(rows[key].counts.values())}) for key in sorted(rows)
    ]


def totals_of(rows: Sequence[Row]) -> list[Total]:
    """Return for each claim and truth how often it was supported, in all and at worst."""
    groups: dict[tuple[str, int, Statement, Truth], list[Row]] = {}
    for row in rows:
        key = (row.study, row.stated, row.statement, row.truth)
        groups.setdefault(key, []).append(row)
    claims = dict.fromkeys((row.study, row.stated, row.statement) for row in rows)
    return [
        _total(group)
        for claim in claims
        for truth in TRUTHS
        if (group := groups.get((*claim, truth)))
    ]


def _total(rows: Sequence[Row]) -> Total:
    shares = [row.counts["supported"] / row.draws for row in rows]
    choose = min if rows[0].truth == "true" else max
    index = choose(range(len(rows)), key=lambda number: shares[number])
    worst = rows[index]
    return Total(
        study=worst.study,
        stated=worst.stated,
        claim=worst.claim,
        truth=worst.truth,
        worlds=len({(row.scenario, row.models, row.scores) for row in rows}),
        draws=sum(row.draws for row in rows),
        supported=sum(row.counts["supported"] for row in rows),
        worst=f"{worst.scenario} ({worst.models} × {worst.prompts}, {worst.scores})",
        worst_share=shares[index],
        statement=worst.statement,
    )
