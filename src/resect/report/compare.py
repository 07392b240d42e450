"""Several runs side by side: a matrix of verdicts, a table of effects, and what differs in rules.

Runs are comparable where their rules are the same; a claim whose rule or settings differ between
runs is marked. Claims are matched by study and wording, so a run without a claim has a gap.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from resect import files
from resect.errors import InputError
from resect.files.reading import refuse_links_out
from resect.report.figures.paper import write_figures
from resect.report.figures.parts import MOST_TITLE, drops, folded, names, number
from resect.report.figures.spec import Drawing, Panel, Point, Series, looks
from resect.report.html import read_results, tally
from resect.report.markdown import table, text
from resect.report.page import figure_of, render
from resect.report.tables import Table, csv_text
from resect.report.words import (
    SIGNS,
    bounds_of,
    bounds_sentence,
    interval,
    is_fraction,
    is_range,
    slug,
)


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
    found = [read_results(run) for run in runs]
    refuse_links_out(output)
    labels = _labels(runs, found)
    try:
        claims = _claims(labels, found)
        drawn = _drawings(claims)
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(
            "a run has no whole result",
            got=f"{type(error).__name__}: {error}",
            fix="write it again with `resect study run ... --resume`",
        ) from error
    rows = _rows(claims)
    page = render(
        "compare.html",
        labels=labels,
        tallies=[
            tally([claim["runs"][label] for claim in claims if label in claim["runs"]])
            for label in labels
        ],
        quick=[label for label, one in zip(labels, found, strict=True) if one.get("quick")],
        claims=claims,
        figures=[figure_of(one, files=True) for one in drawn],
        effects=_table(rows),
        ranges=any("bounds" in row for row in rows),
    )
    write_figures(drawn, output / "figures")
    files.write_text(output / "tables" / "effects.csv", csv_text(rows))
    facts = {label: one["provenance"] for label, one in zip(labels, found, strict=True)}
    files.write_json(
        output / "report.json",
        {"runs": [{"label": label, "provenance": facts[label]} for label in labels]}
        | {"claims": claims},
    )
    files.write_text(output / "report.md", _markdown(labels, claims))
    files.write_text(output / "report.html", page)
    return output / "report.html"


def _labels(runs: list[Path], found: list[dict[str, Any]]) -> list[str]:
    """Return a name for each run: its own, with its folder where two have the same."""
    own = [str(one.get("name", run.name)) for run, one in zip(runs, found, strict=True)]
    count = Counter(own)
    named = [
        name if count[name] == 1 else f"{name} ({run.resolve().name})"
        for run, name in zip(runs, own, strict=True)
    ]
    again = Counter(named)
    return [name if again[name] == 1 else f"{name} #{at}" for at, name in enumerate(named, 1)]


def _claims(labels: list[str], found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return every claim with the runs that weigh it, and whether their rules are the same."""
    claims: dict[tuple[str, str], dict[str, Any]] = {}
    for label, results in zip(labels, found, strict=True):
        known = {study["study"]: study["settings"] for study in results["studies"]}
        for claim in results["claims"]:
            key = (claim["study"], claim["claim"])
            one = claims.setdefault(
                key, {"study": key[0], "claim": key[1], "runs": {}, "settings": []}
            )
            one["runs"][label] = claim
            if known.get(key[0]) not in one["settings"]:
                one["settings"].append(known.get(key[0]))
    for one in claims.values():
        rules = {claim["rule"] for claim in one["runs"].values()}
        settings = one.pop("settings")
        keys = {key for each in settings for key in each or {}}
        one["differs"] = len(rules) > 1 or len(settings) > 1
        one["differs_in"] = (
            sorted(
                key for key in keys if len({str((each or {}).get(key)) for each in settings}) > 1
            )
            or ["rule"] * one["differs"]
        )
    return list(claims.values())


def _rows(claims: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "study": one["study"],
            "claim": one["claim"],
            "run": label,
            "verdict": claim["verdict"],
            "effect": claim["effect"]["value"],
            "effect_low": claim["effect"]["low"],
            "effect_high": claim["effect"]["high"],
            "which": claim["effect"]["name"],
            "prompts": claim["n"],
            "same_rule": not one["differs"],
        }
        | ({"bounds": "range"} if is_range(claim["effect"]) else {})
        for one in claims
        for label, claim in one["runs"].items()
    ]


def _effect(row: dict[str, Any]) -> dict[str, Any]:
    """Return the effect that a row of the table of effects holds."""
    return {
        "name": row["which"],
        "value": row["effect"],
        "low": row["effect_low"],
        "high": row["effect_high"],
        "bounds": row.get("bounds"),
    }


def _table(rows: list[dict[str, Any]]) -> Table:
    """Return the table of effects, a row a claim and run."""
    columns = (("study", False), ("claim", False), ("run", False), ("verdict", False))
    shown = tuple(
        (
            row["study"],
            row["claim"],
            row["run"],
            f"{SIGNS[row['verdict']][0]} {row['verdict']}",
            interval(_effect(row)),
            row["which"],
            str(row["prompts"]),
        )
        for row in rows
    )
    bounds = bounds_of(_effect(row) for row in rows)
    head = (*columns, (f"effect [{bounds}]", True), ("which is", False), ("prompts", True))
    return Table("effects", "", head, shown, "tables/effects.csv")


def _drawings(claims: list[dict[str, Any]]) -> list[Drawing]:
    """Return one figure a study: the effect of each claim in each run."""
    drawn = []
    for study in dict.fromkeys(one["study"] for one in claims):
        panels = tuple(
            panel for one in claims if one["study"] == study and (panel := _panel(one)) is not None
        )
        if panels:
            effects = (run["effect"] for one in claims for run in one["runs"].values()
                       if one["study"] == study)  # fmt: skip
            bounds = bounds_sentence(effects)
            caption = f"{study.replace('_', ' ')}: the effect in each run, with {bounds}."
            drawn.append(Drawing(f"compare-{slug(study)}", caption, panels))
    return drawn


def _panel(one: dict[str, Any]) -> Panel | None:
    effects = {
        label: claim["effect"]
        for label, claim in one["runs"].items()
        if claim["effect"]["value"] is not None and is_fraction(claim["effect"])
    }
    if not effects:
        return None
    labels = list(one["runs"])
    style = looks(["target"])["target"]
    points = tuple(
        Point(
            effect["value"],
            labels.index(label),
            effect["low"],
            effect["high"],
            f"{label}: {interval(effect)}",
        )
        for label, effect in effects.items()
    )
    edges = [number(effect[key]) for effect in effects.values() for key in ("value", "low", "high")]
    title = folded(one["claim"], MOST_TITLE)
    return Panel(
        title,
        drops("", edges, 1.0),
        names(labels),
        series=(Series("", style, points, False, "whisker", "x"),),
        height=56 + 22 * len(labels) + 15 * title.count("\n"),
    )


def _markdown(labels: list[str], claims: list[dict[str, Any]]) -> str:
    rows = []
    for one in claims:
        cells = []
        for label in labels:
            claim = one["runs"].get(label)
            cells.append(
                f"{SIGNS[claim['verdict']][0]} {interval(claim['effect'])}"
                if claim
                else "not asked"
            )
        mark = " (rules differ)" if one["differs"] else ""
        rows.append([text(one["claim"]) + mark, *cells])
    signs = ", ".join(f"{sign} {word}" for word, (sign, _) in SIGNS.items())
    bounds = bounds_sentence(run["effect"] for one in claims for run in one["runs"].values())
    lines = ["# resect: runs side by side", "", f"{signs}; effects with {bounds}.", ""]
    return "\n".join([*lines, *table(["claim", *(text(label) for label in labels)], rows)]) + "\n"
