"""Fill the pages on the worth of verdicts from runs of `resect bench verdicts`.

    python benchmarks/verdicts.py DIR [DIR ...]

A study is taken from the last folder that has it, and from the pages as they stand if none has it.
Totals go to `docs/verdicts.md`, the rows of single worlds to `docs/verdicts-worlds.md`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from resect.files.reading import read_json
from resect.files.writing import write_text
from resect.planted.verdicts.scenarios import WORLDS
from resect.planted.verdicts.text import BEGIN, END, by_world, filled, in_all

DOCS = Path(__file__).parent.parent / "docs"
PARTS = ("rows", "totals", "orders")


def joined(runs: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return the tables of several runs, each study of the last run that has it."""
    last = {row["study"]: number for number, run in enumerate(runs) for row in run["rows"]}
    order = list(WORLDS)
    return {
        part: sorted(
            (
                row
                for number, run in enumerate(runs)
                for row in run[part]
                if last.get(row["study"]) == number
            ),
            key=lambda row: order.index(row["study"]),
        )
        for part in PARTS
    }


def made(runs: list[dict[str, Any]]) -> str:
    """Return the commands, each with the studies that are taken from it."""
    last = {row["study"]: number for number, run in enumerate(runs) for row in run["rows"]}
    lines = []
    for number, run in enumerate(runs):
        request = run["provenance"]["request"]
        studies = [study for study in WORLDS if last.get(study) == number]
        if studies:
            amount = f"--draws {request['draws']} --boundary {request['boundary']}"
            lines.append(f"- `resect bench verdicts {amount} --studies {','.join(studies)} -o DIR`")
    return "\n".join(["Written by `benchmarks/verdicts.py` from these runs:", "", *lines])


def spliced(old: str, new: str) -> str:
    """Return what stands in a page, with the studies of a new table in the place of their old rows.

    Args:
        old: What stands there, headings one level deeper than in a new table.
        new: The new table; of studies that it lacks the old rows and commands stay.
    """
    before, after = _parts(old), _parts(f"\n{new}".replace("\n## ", "\n### "))
    renewed = {_study(line) for lines in after.values() for line in lines} | set(after)
    text = []
    for heading, lines in before.items():
        fresh = after.get(heading, [])
        if heading in WORLDS:
            text += fresh or lines
            continue
        rows = [line for line in lines if _study(line) not in renewed] + fresh
        rows = sorted(filter(_study, rows), key=lambda line: list(WORLDS).index(_study(line)))
        commands = [_without(line, renewed) for line in lines if line.startswith(COMMAND)]
        commands += [line for line in fresh if line.startswith(COMMAND)]
        for line in lines:
            if line.startswith(COMMAND):
                text += [command for command in commands if command != COMMAND]
                commands = []
            elif not _study(line):
                text += [line, *rows] if line.startswith("|---") else [line]
    return "\n".join(text)


COMMAND = "- `resect bench verdicts "


def _parts(text: str) -> dict[str, list[str]]:
    """Return the lines of each part by its heading, which is the first of them."""
    parts: dict[str, list[str]] = {"": []}
    for line in text.split("\n"):
        if line.startswith("### "):
            parts[line.removeprefix("### ")] = []
        parts[list(parts)[-1]].append(line)
    return parts


def _study(line: str) -> str:
    """Return the study that a row of a table is of; empty for another line."""
    word = line.removeprefix("| ").partition(" | ")[0]
    return word if line.startswith("| ") and word in WORLDS else ""


def _without(line: str, studies: Collection[str]) -> str:
    """Return a command less studies; its beginning alone if none is left."""
    if not line.startswith(COMMAND):
        return line
    before, option, rest = line.partition("--studies ")
    named, space, end = rest.partition(" ")
    left = [name for name in named.split(",") if name not in studies]
    return f"{before}{option}{','.join(left)}{space}{end}" if left else COMMAND


def main() -> int:
    """Fill both pages."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", type=Path, nargs="+", help="output folders, later ones win")
    runs = [read_json(folder / "results.json") for folder in parser.parse_args().runs]
    tables = joined(runs)
    pages = {
        DOCS / "verdicts.md": in_all(tables, made(runs)),
        DOCS / "verdicts-worlds.md": by_world(tables["rows"]),
    }
    for page, text in pages.items():
        document = page.read_text(encoding="utf-8")
        place = document.partition(f"{BEGIN}\n")[2].partition(END)[0]
        if place.strip():
            text = spliced(place.removeprefix("\n"), text)
        write_text(page, filled(document, "\n" + text, str(page)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
