"""Results in; out come one offline HTML file, the same as JSON and Markdown, figures and tables.

Everything that comes from data is escaped by Jinja; control and direction-changing characters are
made visible first.
"""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from resect import files
from resect.errors import InputError
from resect.files.reading import read_text, refuse_links_out
from resect.report.figures import drawings
from resect.report.figures.paper import write_figures
from resect.report.figures.screen import strip
from resect.report.figures.spec import Drawing
from resect.report.markdown import markdown
from resect.report.page import figure_of, render
from resect.report.tables import csv_text, file_of, tables_of
from resect.report.words import SIGNS, effects_of, is_range, quote, slug

REPLIES_EACH = 3
# Panels side by side on a wide page; style.css has the same number.
COLUMNS = 3


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
    results = read_results(run)
    try:
        drawn = {study["study"]: drawings(study) for study in results["studies"]}
        contents = _contents(run, results, drawn)
        contents["replies"] = _replies(run) if show_replies else None
        text = render("template.html", results=results, **contents)
        summary = _summary(results, contents)
    except (AttributeError, LookupError, TypeError, ValueError, TemplateError) as error:
        raise InputError(
            f"{run / 'results.json'} is not a whole result",
            got=f"{type(error).__name__}: {error}",
            fix="write it again with `resect study run ... --resume`",
        ) from error
    for study in results["studies"]:
        write_figures(drawn[study["study"]], run / "figures")
        for name, rows in study["tables"].items():
            if rows:
                files.write_text(run / file_of(study["study"], name), csv_text(rows))
    files.write_json(run / "report.json", summary)
    files.write_text(run / "report.md", markdown(summary))
    files.write_text(run / "report.html", text)
    return run / "report.html"


def read_results(run: Path) -> dict[str, Any]:
    """Read `results.json` of a run.

    Raises:
        InputError: There is none, it holds something else, or the folder has links that lead out.
    """
    refuse_links_out(run)
    if not (run / "results.json").is_file():
        raise InputError(
            f"{run} has no results.json", fix="give the folder of a run, or run the study first"
        )
    results = files.read_json(run / "results.json")
    if not isinstance(results, dict) or not {"claims", "studies", "provenance"} <= set(results):
        raise InputError(
            f"{run / 'results.json'} is not the result of studies",
            fix="give the folder of a run of `resect study run`",
        )
    return results


def _contents(
    run: Path, results: dict[str, Any], drawn: dict[str, list[Drawing]]
) -> dict[str, Any]:
    version = str(results["provenance"].get("resect_version", ""))
    sections = []
    for study in results["studies"]:
        claims = [
            {
                **claim,
                "id": f"{slug(study['study'])}-{at}",
                "quote": quote(claim, results["name"], version),
                "strip": strip(claim),
            }
            for at, claim in enumerate(study["claims"], 1)
        ]
        sections.append(
            {
                **study,
                "id": slug(study["study"]),
                "claims": claims,
                "tables": tables_of(study),
                "figures": [figure_of(one, files=True) for one in drawn[study["study"]]],
                "full": _fills_rows(drawn[study["study"]]),
            }
        )
    claims = [claim for section in sections for claim in section["claims"]]
    config = run / "config.yaml"
    return {
        "sections": sections,
        "claims": claims,
        "tally": tally(claims),
        "ranges": any(is_range(one) for claim in claims for one in effects_of(claim)),
        "facts": _facts(results["provenance"]),
        "config": without_home(read_text(config)) if config.is_file() else "",
        "citation": _citation(results),
        "rebuild": _rebuild(run, results["provenance"]),
    }


def _fills_rows(drawn: list[Drawing]) -> bool:
    """Return whether figures leave no cell free in their last row on a wide page."""
    used = 0
    for one in drawn:
        wide = min(len(one.panels), COLUMNS)
        used = wide if used + wide > COLUMNS else used + wide
    return used in (0, COLUMNS)


def tally(claims: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """Return how many claims have each verdict that occurs."""
    count = Counter(claim["verdict"] for claim in claims)
    return [(word, count[word]) for word in SIGNS if count[word]]


def without_home(text: str) -> str:
    """Return text with the home folder as `~`: reports are sent around."""
    home = str(Path.home())
    return text.replace(f"{home}/", "~/") if home != "/" else text


def _facts(provenance: dict[str, Any]) -> dict[str, Any]:
    """Return provenance for readers: without home folders, data files by their last parts."""
    facts = dict(provenance)
    if isinstance(facts.get("data"), dict):
        facts["data"] = {
            "/".join(Path(place).parts[-3:]): value for place, value in facts["data"].items()
        }
    facts.pop("rebuild", None)
    return {
        key: without_home(value) if isinstance(value, str) else value
        for key, value in facts.items()
    }


def _rebuild(run: Path, provenance: dict[str, Any]) -> str:
    """Return the commands that make the run and this page again, with what they were made with."""
    folder = shlex.quote(run.resolve().name)
    made = [f"resect {provenance.get('resect_version', 'of unknown version')}"]
    if provenance.get("git_commit"):
        dirty = ", with changes that are not committed" if provenance.get("git_dirty") else ""
        made.append(f"commit {str(provenance['git_commit'])[:12]}{dirty}")
    if provenance.get("command"):
        made.append(f"first run as: {without_home(str(provenance['command']))}")
    return "\n".join(
        (
            f"# {'; '.join(made)}",
            f"resect reproduce {folder} -o {folder}-again",
            f"resect study run {folder}/config.yaml -o {folder}-anew",
            f"resect report {folder}",
        )
    )


def _citation(results: dict[str, Any]) -> str:
    facts = results["provenance"]
    year = str(facts.get("finished", ""))[:4]
    notes = [f"run “{results['name']}”", f"configuration {facts.get('config', 'unknown')}"]
    if facts.get("git_commit"):
        notes.append(f"commit {str(facts['git_commit'])[:12]}")
    return (
        "@software{resect,\n"
        "  title = {resect: causal weight surgery on language models},\n"
        f"  version = {{{facts.get('resect_version', 'unknown')}}},\n"
        f"  year = {{{year if year.isdigit() else 'unknown'}}},\n"
        f"  note = {{{', '.join(notes)}}},\n"
        "}"
    )


def _summary(results: dict[str, Any], contents: dict[str, Any]) -> dict[str, Any]:
    """Return `report.json`: what the page says, without its pictures."""
    keep = (
        *("claim", "verdict", "effect", "controls", "rule", "reason", "n", "seeds"),
        *("by_seed", "counted", "quote", "id"),
    )
    return {
        "name": results["name"],
        "quick": results["quick"],
        "tally": dict(contents["tally"]),
        "studies": [
            {
                "study": section["study"],
                "title": section["title"],
                "claims": [
                    {key: claim[key] for key in keep if key in claim} for claim in section["claims"]
                ],
                "shows": section["shows"],
                "does_not_show": section["does_not_show"],
                "settings": section["settings"],
                "figures": [
                    {"caption": one["caption"], "files": one["files"]} for one in section["figures"]
                ],
                "tables": {
                    name: {"rows": len(rows), "file": file_of(section["study"], name)}
                    for name, rows in _raw(results, section["study"]).items()
                    if rows
                },
            }
            for section in contents["sections"]
        ],
        "citation": contents["citation"],
        "rebuild": contents["rebuild"].splitlines(),
        "provenance": contents["facts"],
    }


def _raw(results: dict[str, Any], name: str) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = next(
        study["tables"] for study in results["studies"] if study["study"] == name
    )
    return found


def _replies(run: Path) -> list[dict[str, Any]]:
    """Return a few replies of every variant to the attacked probe."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((run / "records").glob("*.parquet")):
        for row in files.read_parquet(path):
            if row["probe"] == "generation":
                label = (
                    f"{row['role']}, seed {row['seed']}, {row['cut_kind']} "
                    f"{row['cut_target']} {row['cut_category']} q = {row['q']:g}"
                )
                group = groups.setdefault(label, [])
                if len(group) < REPLIES_EACH:
                    group.append(row)
    return [{"label": label, "rows": rows} for label, rows in sorted(groups.items())]
