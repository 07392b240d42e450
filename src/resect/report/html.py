"""Results in, one offline HTML file out.

The file has no script and loads nothing: a content security policy in it says so to the browser.
Everything that comes from data is escaped by Jinja; control and direction-changing characters are
made visible first.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import jinja2

from resect import store
from resect.errors import InputError
from resect.report.figures import FIGURES
from resect.report.figures._style import Drawing, svg

SIGNS = {
    "supported": ("✓", "yes"),
    "not supported": ("✗", "no"),
    "inconclusive": ("?", "unsure"),
    "not measurable": ("–", "none"),
}
LONGEST_REPLY = 600
REPLIES_EACH = 3


def build_report(run: str | Path, *, show_replies: bool = False) -> Path:
    """Write `report.html` and `figures/*.svg` of a run.

    Args:
        run: Folder of a run.
        show_replies: Show some replies of the models; they may be harmful text.

    Returns:
        The path of the report.

    Raises:
        InputError: The folder has no results, or they are broken.
    """
    run = Path(run)
    if not (run / "results.json").is_file():
        raise InputError(
            f"{run} has no results.json", fix="give the folder of a run, or run the study first"
        )
    results = store.read_json(run / "results.json")
    try:
        sections = [_section(study) for study in results["studies"]]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{run / 'results.json'} is not a whole result",
            got=f"{type(error).__name__}: {error}",
            fix="write it again with `resect study run ... --resume`",
        ) from error
    for section in sections:
        for figure in section["figures"]:
            store.write_text(run / "figures" / f"{figure['name']}.svg", figure["svg"])
    config = run / "config.yaml"
    text = (
        _environment()
        .get_template("template.html")
        .render(
            results=results,
            sections=sections,
            signs=SIGNS,
            config=config.read_text(encoding="utf-8") if config.is_file() else "",
            replies=_replies(run) if show_replies else None,
        )
    )
    store.write_text(run / "report.html", text)
    return run / "report.html"


def _section(study: dict[str, Any]) -> dict[str, Any]:
    draw = FIGURES.get(study["study"])
    drawings: list[Drawing] = draw(study["tables"], study["settings"]) if draw else []
    tables = []
    for name, rows in study["tables"].items():
        seeds = [row for row in rows if row.get("seed") is not None]
        tables.append(
            {"name": name, "pooled": [r for r in rows if r.get("seed") is None], "seeds": seeds}
        )
    return {
        **study,
        "tables": tables,
        "figures": [
            {"name": one.name, "caption": one.caption, "svg": svg(one)} for one in drawings
        ],
    }


def _replies(run: Path) -> list[dict[str, Any]]:
    """Return a few replies of every variant to the attacked probe."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((run / "records").glob("*.parquet")):
        for row in store.read_parquet(path):
            if row["probe"] == "generation":
                label = (
                    f"{row['role']}, seed {row['seed']}, {row['cut_kind']} "
                    f"{row['cut_target']} {row['cut_category']} q = {row['q']:g}"
                )
                group = groups.setdefault(label, [])
                if len(group) < REPLIES_EACH:
                    group.append(row)
    return [{"label": label, "rows": rows} for label, rows in sorted(groups.items())]


def visible(value: Any) -> str:
    """Return text in which control and direction-changing characters are spelled out."""
    return "".join(
        character
        if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co")
        else f"\\u{{{ord(character):x}}}"
        for character in str(value)
    )


def percent(value: float | None) -> str:
    """Return a fraction in percent with one decimal."""
    return "–" if value is None else f"{100 * value:.1f} %"


def interval(effect: dict[str, Any]) -> str:
    """Return a value with its bounds, in percent."""
    if effect["value"] is None:
        return "–"
    if effect["low"] is None or effect["high"] is None:
        return percent(effect["value"])
    return f"{percent(effect['value'])} [{100 * effect['low']:.1f}, {100 * effect['high']:.1f}]"


def cell(value: Any) -> str:
    """Return a table cell."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return visible(value)


def short(value: Any) -> str:
    """Return a reply, cut where it becomes too long to read."""
    text = visible(value)
    return text if len(text) <= LONGEST_REPLY else f"{text[:LONGEST_REPLY]} …"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("resect.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {
        "visible": visible, "percent": percent, "interval": interval, "cell": cell, "short": short,
    }  # fmt: skip
    environment.filters |= filters
    return environment
