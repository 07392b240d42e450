"""The table of round trips says what is so: rows whose tool is here are run again.

All rows are run with RESECT_ROUND_TRIPS=1, which makes environments for the other tools by pip.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import mapped

trips = mapped.script("round_trips")
checks = mapped.script("trip_checks")
DOCS = Path(__file__).parents[2] / "docs"
VALUES: dict[str, Any] = json.loads((DOCS / "round-trips.json").read_text("utf-8"))
ROWS: dict[str, dict[str, str]] = VALUES["rows"]
HERE = [name for name, trip in trips.TRIPS.items() if trips.here(trip)]
ELSEWHERE = sorted({trip.environment for trip in trips.TRIPS.values() if not trips.here(trip)})
ASKED = bool(os.environ.get("RESECT_ROUND_TRIPS"))


def test_the_page_shows_the_file() -> None:
    page = (DOCS / "round-trips.md").read_text("utf-8")
    assert trips.filled(page, trips.table(VALUES), "", trips.BEGIN, trips.END) == page
    assert {*ROWS} == {*trips.TRIPS}
    assert VALUES["absent"] == trips.ABSENT


def test_whatever_is_lost_has_a_way_back_that_was_tried() -> None:
    for name, row in ROWS.items():
        trip = trips.TRIPS[name]
        lossless = row["zeros"] == "all" and row["fits"] == "yes"
        assert bool(trip.todo) != lossless, name
        if row["zeros"] != "all":
            assert row["held"] == row["cut_again"] == "all", name
            assert "HoldMask" in trip.todo or row.get("file_f16") == "all", name
        # Nothing but a message of ours, which is known, is said against a mask.
        for step in ("fits", "restored", "held", "cut_again", "inside", "file_keep"):
            said = row.get(step, "")
            known = said.removeprefix("no: ") in checks.REFUSALS.values()
            assert not said.startswith("no: ") or known, (name, step, said)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Any] = {}

    def case(kind: str) -> Any:
        if kind not in made:
            made[kind] = trips.make(kind, tmp_path_factory.mktemp("case") / kind)
        return made[kind]

    return case


@pytest.mark.parametrize("name", HERE)
def test_a_row_is_what_the_tool_does(name: str, cases: Any, tmp_path: Path) -> None:
    expected = ROWS[name]
    row = trips.measured(name, cases, tmp_path)
    assert row == expected, f"python benchmarks/round_trips.py {name} writes it anew"


@pytest.mark.skipif(
    not ASKED, reason="RESECT_ROUND_TRIPS=1 fetches these tools by pip and runs them for minutes"
)
@pytest.mark.parametrize("environment", ELSEWHERE)
def test_rows_of_other_tools_are_what_they_do(environment: str) -> None:
    names = [n for n, trip in trips.TRIPS.items() if trip.environment == environment]
    rows = trips.measure_in(environment, names)
    drifted = {name: row for name, row in rows.items() if row != ROWS[name]}
    assert not drifted, f"python benchmarks/round_trips.py {' '.join(drifted)} writes them anew"
