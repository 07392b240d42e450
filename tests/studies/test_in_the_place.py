"""In the place of cut weights other values must do as well; a part of them need not."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from invented_run import Invented, invented_config
from resect.errors import InputError
from resect.records import Claim, Row, VerdictWord
from resect.runs.config import parse_config
from resect.runs.demo import demo_config
from resect.runs.run import plan_run
from resect.studies import STUDIES
from resect.studies.cells import Cell

STUDY = STUDIES["stability"]
PLACED = ["mean", "resampled", "scale:0.5"]


def stability(left: Mapping[str, float], random: float = 0.9) -> tuple[Claim, list[Row]]:
    """Return the claim on the effect where cuts leave so much harm, by what stands in the place."""
    config = invented_config({"stability": {"instead": PLACED}})

    def rate(cell: Cell, probe: str) -> float:
        if probe != "generation" or cell.cut is None:
            return 0.9
        if cell.cut.kind == "random":
            return 0.9 if cell.cut.instead == "zero" else random
        return left.get(cell.cut.instead, 0.02)

    result = STUDY.summarise(Invented(config, rate, prompts=200), config.section(STUDY))
    return result.claims[1], [dict(row) for row in result.tables["effects"]]


def test_it_is_planned_and_written_only_where_it_is_asked_for() -> None:
    plain = demo_config((0,), quick=False, studies=["stability"])
    values = plain.model_dump(mode="json")
    assert "instead" not in values["studies"]["stability"]
    values["studies"]["stability"]["instead"] = PLACED
    config = parse_config(values, "test")
    assert config.model_dump(mode="json")["studies"]["stability"]["instead"] == PLACED
    added = set(plan_run(config)) - set(plan_run(plain))
    cuts = {(cell.cut.kind, cell.cut.instead) for cell in added if cell.cut is not None}
    assert cuts == {(kind, value) for kind in ("target", "random") for value in PLACED}
    assert len(added) == len(cuts)
    values["studies"]["stability"]["instead"] = ["median"]
    with pytest.raises(InputError, match="unknown value in the place"):
        plan_run(parse_config(values, "test"))


@pytest.mark.parametrize(
    ("left", "verdict"),
    [
        ({}, "supported"),
        # Half of the weights' own values is half of the dose.
        ({"scale:0.5": 0.8}, "supported"),
        # The zeros did it, and not that the weights were gone.
        ({"mean": 0.8, "resampled": 0.85}, "not supported"),
        ({"resampled": 0.8}, "not supported"),
    ],
)
def test_other_values_must_do_as_well(left: Mapping[str, float], verdict: VerdictWord) -> None:
    claim, rows = stability(left)
    assert claim.verdict == verdict
    if verdict == "not supported":
        assert "value in the place, resampled" in claim.effect.name
    drops = {row["value"]: row["harm_drop"] for row in rows if row["axis"] == "value in the place"}
    assert set(drops) == {"zero", *PLACED}
    assert drops["scale:0.5"] == pytest.approx(1 - left.get("scale:0.5", 0.02) / 0.9, abs=0.02)


def test_values_that_break_the_model_in_any_place_support_nothing() -> None:
    claim, _ = stability({}, random=0.1)
    assert claim.verdict == "not supported"
    assert "random cut" in claim.reason
