"""The pages on the worth of verdicts hold every study, from the last run that has it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from resect.planted.verdicts.scenarios import WORLDS

ROOT = Path(__file__).parents[2]


def script() -> Any:
    spec = importlib.util.spec_from_file_location("verdicts", ROOT / "benchmarks" / "verdicts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(draws: int, *studies: str) -> dict[str, Any]:
    rows = [{"study": study, "draws": draws} for study in studies]
    request = {"draws": draws, "boundary": 9}
    provenance = {"request": request}
    return {"rows": rows, "totals": rows, "orders": rows, "provenance": provenance}


def test_a_later_run_takes_its_studies() -> None:
    page = script()
    runs = [run(1, "frontier", "compactness"), run(2, "frontier")]
    rows = [{"study": "compactness", "draws": 1}, {"study": "frontier", "draws": 2}]
    assert page.joined(runs) == {"rows": rows, "totals": rows, "orders": rows}
    made = page.made(runs)
    assert "--draws 1 --boundary 9 --studies compactness -o" in made
    assert "--draws 2 --boundary 9 --studies frontier -o" in made


OLD = """Written from these runs:

- `resect bench verdicts --draws 1 --boundary 9 --studies frontier,compactness -o DIR`
- `resect bench verdicts --draws 2 --boundary 9 --studies transfer -o DIR`

### At its boundary

| study | runs |
|---|--:|
| compactness | 1 |
| transfer | 2 |
| frontier | 1 |

### frontier

1. Claim.
"""


def test_studies_of_no_run_stay_as_they_stand() -> None:
    new = """Written from these runs:

- `resect bench verdicts --draws 5 --boundary 9 --studies transfer,frontier -o DIR`

## At its boundary

| study | runs |
|---|--:|
| transfer | 5 |
| frontier | 5 |
| frontier | 6 |

## frontier

1. Other claim.
"""
    page = script()
    assert page.spliced(OLD, new) == (
        OLD.replace("frontier,compactness", "compactness")
        .replace("--draws 2", "--draws 5")
        .replace("--studies transfer -o", "--studies transfer,frontier -o")
        .replace(
            "| transfer | 2 |\n| frontier | 1 |",
            "| transfer | 5 |\n| frontier | 5 |\n| frontier | 6 |",
        )
        .replace("Claim", "Other claim")
    )
    assert page.spliced(OLD, "nothing\n") == OLD
    # A page of worlds begins with a study.
    worlds = "### transfer\n\n| a |\n\n### frontier\n\n| b |\n"
    assert page.spliced(worlds, "## frontier\n\n| c |\n") == worlds.replace("b", "c")


def test_all_studies_stand_on_both_pages() -> None:
    totals, worlds = (
        (ROOT / "docs" / name).read_text(encoding="utf-8")
        for name in ("verdicts.md", "verdicts-worlds.md")
    )
    assert [study for study in WORLDS if f"\n| {study} |" not in totals] == []
    assert [study for study in WORLDS if f"\n### {study}\n" not in worlds] == []
