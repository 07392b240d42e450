"""Results in; out come one offline HTML file, the same as JSON and Markdown, figures and tables.

Everything that comes from data is escaped by Jinja; control and direction-changing characters are
made visible first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from resect import files
from resect.errors import InputError
from resect.records import Results, StudyResult
from resect.report.contents import Contents, Section, contents_of
from resect.report.figures import drawings
from resect.report.figures.paper import write_figures
from resect.report.figures.parts import TableError
from resect.report.figures.spec import Drawing
from resect.report.markdown import markdown
from resect.report.measured import OF_WEIGHTS, Measured, measured_by, worded, worded_drawing
from resect.report.page import render
from resect.report.results import not_whole, read_results
from resect.report.tables import csv_text, file_of

REPLIES_EACH = 3
# What a reply is shown with, and by what it is grouped.
REPLY_COLUMNS = (
    *("role", "seed", "cut_kind", "cut_target", "cut_category", "q"),
    *("probe", "prompt", "prefix", "text", "outcome", "rule"),
)


def build_report(run: str | Path, *, show_replies: bool = False) -> Path:
    """Write `report.html`, `report.json`, `report.md`, `figures/` and `tables/` of a run.

    Args:
        run: Folder of a run.
        show_replies: Show some replies of the models; they may be harmful text.

    Returns:
        The path of the report.

    Raises:
        InputError: The folder has no results, or they are broken.
    """
    run = Path(run)
    written = read_results(run)
    measured = measured_by(run, written.provenance)
    results = worded(written, measured)
    drawn = _drawn(run, results, measured)
    contents = contents_of(run, results, drawn, measured)
    replies = _replies(run) if show_replies else None
    text = render("template.html", report=contents, results=results, replies=replies)
    for study, drawings_of_study in zip(results.studies, drawn, strict=True):
        write_figures(drawings_of_study, run / "figures")
        for name, rows in study.tables.items():
            if rows:
                files.write_text(run / file_of(study.study, name), _csv(study, name, measured))
    if contents.judge is not None:
        contents.judge.write_tables(run)
    files.write_json(run / "report.json", _summary(contents))
    files.write_text(run / "report.md", markdown(contents))
    files.write_text(run / "report.html", text)
    return run / "report.html"


def _csv(study: StudyResult, name: str, measured: Measured) -> str:
    """Return a table with a column that names who scored it, where something was scored."""
    rows = study.tables[name]
    by = measured.of_study(study.study)
    if not by.kind or name in OF_WEIGHTS:
        return csv_text(rows)
    return csv_text([{**row, "judge": by.judge or by.kind} for row in rows])


def _drawn(run: Path, results: Results, measured: Measured) -> list[list[Drawing]]:
    """Return the drawings of each study."""
    drawn = []
    for index, study in enumerate(results.studies):
        try:
            by = measured.of_study(study.study)
            drawn.append([worded_drawing(drawing, by) for drawing in drawings(study)])
        except TableError as error:
            raise not_whole(run, f"studies[{index}].{error}") from error
    return drawn


def _summary(contents: Contents) -> dict[str, object]:
    """Return `report.json`: what the page says, without its pictures."""
    return {
        "name": contents.results.name,
        "quick": contents.results.quick,
        "tally": contents.tally,
        "measured": {
            "judge": contents.measured.judge,
            "kind": contents.measured.kind,
            "behaviour": contents.measured.behaviour,
            "line": contents.measured.line,
        },
        "studies": [_section(section) for section in contents.sections],
        "citation": contents.citation,
        "rebuild": contents.rebuild.splitlines(),
        "provenance": contents.facts,
        **({} if contents.judge is None else {"judge": files.plain(contents.judge)}),
    }


def _section(section: Section) -> dict[str, object]:
    study = section.study
    claims = [
        {**files.plain(shown.claim), "quote": shown.quote, "id": shown.id}
        for shown in section.claims
    ]
    for claim in claims:
        del claim["study"]
    return {
        "study": study.study,
        "title": study.title,
        "claims": claims,
        "shows": study.shows,
        "does_not_show": study.does_not_show,
        "settings": study.settings,
        "figures": [
            {"caption": figure.caption, "files": figure.files} for figure in section.figures
        ],
        "tables": {
            name: {"rows": len(rows), "file": file_of(study.study, name)}
            for name, rows in study.tables.items()
            if rows
        },
    }


@dataclass(frozen=True)
class ReplyGroup:
    """A few replies of one variant of the model, as rows of its record."""

    label: str
    rows: list[Mapping[str, object]]


def _replies(run: Path) -> list[ReplyGroup]:
    """Return a few replies of every variant to the attacked probe.

    Raises:
        InputError: A record lacks a column.
    """
    groups: dict[str, ReplyGroup] = {}
    for path in sorted((run / "records").glob("*.parquet")):
        if path.stem.endswith(".asked"):  # not judged yet
            continue
        for row in files.read_parquet(path):
            lacking = [column for column in REPLY_COLUMNS if column not in row]
            if lacking:
                raise InputError(f"{path} is not a whole record", got=f"no column {lacking[0]}")
            if not isinstance(row["q"], int | float):
                raise InputError(f"{path} is not a whole record", got="no number in column q")
            # Where a likelihood was measured there is no reply to show.
            if row["probe"] == "generation" and row.get("judge") != "likelihood":
                label = (
                    f"{row['role']}, seed {row['seed']}, {row['cut_kind']} "
                    f"{row['cut_target']} {row['cut_category']} q = {row['q']:g}"
                )
                group = groups.setdefault(label, ReplyGroup(label, []))
                if len(group.rows) < REPLIES_EACH:
                    group.rows.append(row)
    return [group for _, group in sorted(groups.items())]
