"""Fill the pages on the worth of verdicts from runs of `resect bench verdicts`.

    python benchmarks/verdicts.py DIR [DIR ...]

A study is taken from the last folder that has it. Totals go to `docs/verdicts.md`, the rows of
single worlds to `docs/verdicts-worlds.md`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from resect.files.reading import read_json
from resect.files.writing import write_text
from resect.planted.verdicts.scenarios import WORLDS
from resect.planted.verdicts.text import by_world, filled, in_all

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
        write_text(page, filled(page.read_text(encoding="utf-8"), "\n" + text, str(page)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
