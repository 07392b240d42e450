"""Several runs side by side: a matrix of verdicts, a table of effects, and what differs in rules.

Runs are comparable where their rules are the same; a claim whose rule or settings differ between
runs is marked. Claims are matched by study and wording, so a run without a claim has a gap.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from resect import files
from resect.errors import InputError
from resect.files.reading import refuse_links_out
from resect.records import Claim, Interval, Results, Row
from resect.report.contents import tally
from resect.report.figures.paper import write_figures
from resect.report.figures.parts import MOST_TITLE, drops, folded, names, number
from resect.report.figures.spec import STYLES, Drawing, Panel, Point, Series
from resect.report.judge import NAMES, read_judge, shape_judge
from resect.report.markdown import table, text
from resect.report.measured import Measured, measured_by, worded
from resect.report.page import figure_of, render
from resect.report.results import read_results
from resect.report.tables import Column, Table, csv_text
from resect.report.words import (
    SIGNS,
    bounds_of,
    bounds_sentence,
    interval,
    is_fraction,
    is_range,
    slug,
)


@dataclass(frozen=True)
class ComparedClaim:
    """A claim in the runs that weigh it.

    Attributes:
        study: Name of the study.
        claim: The claim in words.
        runs: The claim as each run has it, by the run's label.
        differs: Whether the runs put it to other rules or with other settings.
        differs_in: Names of the settings that differ; "rule" where the rule alone does.
    """

    study: str
    claim: str
    runs: dict[str, Claim]
    differs: bool
    differs_in: list[str]

    @property
    def effects(self) -> list[Interval]:
        """The effect in each run."""
        return [claim.effect for claim in self.runs.values()]


def build_comparison(runs: list[Path], output: Path) -> Path:
    """Write `report.html`, `report.json`, `report.md`, figures and a CSV table of several runs.

    Args:
        runs: Folders of runs, in the order of the columns.
        output: Folder to write; not one of the runs.

    Returns:
        The path of the page.

    Raises:
        InputError: There are fewer than two runs, one has no whole result, or `output` is a run.
    """
    if len(runs) < 2:
        raise InputError("a comparison needs two runs or more", got=str(len(runs)))
    if (output / "results.json").exists():
        raise InputError(
            "the output folder is a run; its report would be replaced",
            got=str(output),
            fix="choose another folder with -o",
        )
    results = [read_results(run) for run in runs]
    refuse_links_out(output)
    judges = [
        measured_by(run, result.provenance) for run, result in zip(runs, results, strict=True)
    ]
    labels = _labels(runs, results)
    measured = dict(zip(labels, judges, strict=True))
    by_label = {
        label: worded(result, measured[label])
        for label, result in zip(labels, results, strict=True)
    }
    claims = _claims(by_label, measured)
    drawings = _drawings(claims)
    errors = _judge_errors(dict(zip(by_label, runs, strict=True)))
    page = render(
        "compare.html",
        labels=list(by_label),
        tallies=[
            tally(claim.runs[label] for claim in claims if label in claim.runs)
            for label in by_label
        ],
        judges={label: judge.line or judge.name for label, judge in measured.items()},
        quick=[label for label, run in by_label.items() if run.quick],
        claims=claims,
        figures=[figure_of(drawing, files=True) for drawing in drawings],
        effects=_table(claims, measured),
        judge=shape_judge(NAMES["errors"], errors),
        ranges=any(is_range(effect) for claim in claims for effect in claim.effects),
    )
    write_figures(drawings, output / "figures")
    files.write_text(output / "tables" / "effects.csv", csv_text(_rows(claims, measured)))
    provenance = [{"label": label, "provenance": run.provenance} for label, run in by_label.items()]
    known = {"judge_errors": errors} if errors else {}
    files.write_json(output / "report.json", {"runs": provenance, "claims": claims} | known)
    files.write_text(output / "report.md", _markdown(measured, claims))
    files.write_text(output / "report.html", page)
    return output / "report.html"


def _judge_errors(runs: Mapping[str, Path]) -> list[Row]:
    """Return how the fitted judges of runs err; none of a run with another judge."""
    known = {label: read_judge(run) for label, run in runs.items()}
    return [
        {"run": label, **row}
        for label, judge in known.items()
        if judge is not None
        for row in judge.errors
    ]


def _labels(runs: Sequence[Path], results: Sequence[Results]) -> list[str]:
    """Return a name for each run: its own, with its folder where two have the same."""
    count = Counter(result.name for result in results)
    names = [
        result.name if count[result.name] == 1 else f"{result.name} ({run.resolve().name})"
        for run, result in zip(runs, results, strict=True)
    ]
    again = Counter(names)
    return [
        name if again[name] == 1 else f"{name} #{column}" for column, name in enumerate(names, 1)
    ]


def _claims(
    by_label: Mapping[str, Results], measured: Mapping[str, Measured]
) -> list[ComparedClaim]:
    """Return every claim with the runs that weigh it, and whether their rules are the same.

    Numbers of different judges are as little to be compared as those of different rules.
    """
    weighed: dict[tuple[str, str], dict[str, Claim]] = {}
    for label, results in by_label.items():
        for claim in results.claims:
            weighed.setdefault((claim.study, claim.claim), {})[label] = claim
    settings_of = {
        label: {study.study: study.settings for study in results.studies}
        for label, results in by_label.items()
    }
    compared = []
    for (study, wording), runs in weighed.items():
        settings = [
            {**settings_of[label].get(study, {}), "judge": measured[label].of_study(study).name}
            for label in runs
        ]
        rules = {claim.rule for claim in runs.values()}
        differs = len(rules) > 1 or any(values != settings[0] for values in settings)
        names = _differing(settings) or ["rule"] * differs
        compared.append(ComparedClaim(study, wording, runs, differs, names))
    return compared


def _differing(settings: Iterable[Mapping[str, object]]) -> list[str]:
    """Return the names of the settings that are not the same in all runs."""
    settings = list(settings)
    keys = {key for values in settings for key in values}
    return sorted(key for key in keys if len({str(values.get(key)) for values in settings}) > 1)


def _rows(claims: Iterable[ComparedClaim], measured: Mapping[str, Measured]) -> list[Row]:
    """Return a row for each claim and run, for the CSV file."""
    rows: list[Row] = []
    for compared in claims:
        for label, claim in compared.runs.items():
            row: dict[str, str | int | float | None] = {
                "study": compared.study,
                "claim": compared.claim,
                "run": label,
                "verdict": claim.verdict,
                "effect": claim.effect.value,
                "effect_low": claim.effect.low,
                "effect_high": claim.effect.high,
                "which": claim.effect.name,
                "prompts": claim.n,
                "judge": measured[label].of_study(compared.study).name,
                "same_rule": not compared.differs,
            }
            rows.append(row | ({"bounds": "range"} if is_range(claim.effect) else {}))
    return rows


def _table(claims: Sequence[ComparedClaim], measured: Mapping[str, Measured]) -> Table:
    """Return the table of effects, a row a claim and run."""
    rows = tuple(
        (
            compared.study,
            compared.claim,
            label,
            f"{SIGNS[claim.verdict].mark} {claim.verdict}",
            interval(claim.effect),
            claim.effect.name,
            measured[label].of_study(compared.study).name,
            str(claim.n),
        )
        for compared in claims
        for label, claim in compared.runs.items()
    )
    bounds = bounds_of(effect for compared in claims for effect in compared.effects)
    columns = (
        *(Column(heading, False) for heading in ("study", "claim", "run", "verdict")),
        Column(f"effect [{bounds}]", True),
        Column("which is", False),
        Column("scored by", False),
        Column("prompts", True),
    )
    return Table("effects", "", columns, rows, "tables/effects.csv")


def _drawings(claims: Sequence[ComparedClaim]) -> list[Drawing]:
    """Return one figure a study: the effect of each claim in each run."""
    drawings = []
    for study in dict.fromkeys(claim.study for claim in claims):
        asked = [claim for claim in claims if claim.study == study]
        panels = tuple(panel for claim in asked if (panel := _panel(claim)) is not None)
        if panels:
            bounds = bounds_sentence(effect for claim in asked for effect in claim.effects)
            caption = f"{study.replace('_', ' ')}: the effect in each run, with {bounds}."
            drawings.append(Drawing(f"compare-{slug(study)}", caption, panels))
    return drawings


def _panel(compared: ComparedClaim) -> Panel | None:
    effects = {
        label: claim.effect
        for label, claim in compared.runs.items()
        if claim.effect.value is not None and is_fraction(claim.effect)
    }
    if not effects:
        return None
    labels = list(compared.runs)
    points = tuple(
        Point(
            number(effect.value),
            labels.index(label),
            effect.low,
            effect.high,
            f"{label}: {interval(effect)}",
        )
        for label, effect in effects.items()
    )
    edges = [
        number(edge)
        for effect in effects.values()
        for edge in (effect.value, effect.low, effect.high)
    ]
    title = folded(compared.claim, MOST_TITLE)
    return Panel(
        title,
        drops("", edges, 1.0),
        names(labels),
        series=(Series("", STYLES["target"], points, False, "whisker", "x"),),
        height=56 + 22 * len(labels) + 15 * title.count("\n"),
    )


def _markdown(measured: Mapping[str, Measured], claims: Sequence[ComparedClaim]) -> str:
    rows = []
    for compared in claims:
        cells = [
            f"{SIGNS[claim.verdict].mark} {interval(claim.effect)}" if claim else "not asked"
            for claim in (compared.runs.get(label) for label in measured)
        ]
        note = " (rules differ)" if compared.differs else ""
        rows.append([text(compared.claim) + note, *cells])
    signs = ", ".join(f"{sign.mark} {word}" for word, sign in SIGNS.items())
    bounds = bounds_sentence(effect for compared in claims for effect in compared.effects)
    lines = ["# resect: runs side by side", "", f"{signs}; effects with {bounds}.", ""]
    lines += [f"- {text(label)}: {text(by.line or by.name)}" for label, by in measured.items()]
    head = ["claim", *(text(label) for label in measured)]
    return "\n".join([*lines, "", *table(head, rows)]) + "\n"
