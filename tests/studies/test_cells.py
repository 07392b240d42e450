"""Cells keep the names that their files have had, whatever fields are added."""

from __future__ import annotations

import json
from dataclasses import MISSING, Field, fields, replace
from pathlib import Path

import pytest

from resect.files.writing import plain
from resect.records import LEFT_OUT_BY_DEFAULT
from resect.studies.cells import Cell, Cut, Tuning, changes_path, mask_path

CUT = Cut("generation", "target", 0.004, p=0.01, scope="model", rounds=3, draw=2)
BARE = Cell("aligned", 0, None, ("generation",))
TUNED = Cell(
    "dpo", 1, CUT, ("utility",), Tuning("harm", 10, 1e-4, against=Cut("x", "target", 0.1)), "none"
)
# What a run of 0.1.0 named by: fields that came later are none of these.
NAMED = {
    Cut: set("target kind q category p scope rounds scored_on examples draw".split()),
    Tuning: set("data steps rate category examples batch method rank hold against".split()),
    Cell: set("role seed cut probes tuning attack".split()),
}


def test_names_of_files_are_those_of_before() -> None:
    run = Path()
    assert BARE.key == "4cdad7f8d7a3dff1"
    assert replace(BARE, cut=CUT).key == "62c9c4881f75f3ff"
    assert TUNED.key == "fd0dbd39cf2103de"
    assert mask_path(run, "aligned", 3, CUT).name == "c2fa7cb104d07e95.mask.safetensors"
    assert changes_path(run, TUNED).name == "fd0dbd39cf2103de.json"


def test_the_column_of_a_cut_is_that_of_before() -> None:
    assert json.dumps(plain(CUT), sort_keys=True) == (
        '{"category": "", "draw": 2, "examples": null, "kind": "target", "p": 0.01, '
        '"q": 0.004, "rounds": 3, "scope": "model", "scored_on": "", "target": "generation"}'
    )


@pytest.mark.parametrize("record", NAMED)
def test_fields_that_came_later_are_left_out_by_default(record: type[Cut | Tuning | Cell]) -> None:
    later: list[Field[object]] = [
        field for field in fields(record) if field.name not in NAMED[record]
    ]
    assert len(later) == len(fields(record)) - len(NAMED[record])
    for field in later:
        assert field.default is not MISSING
        assert field.metadata == LEFT_OUT_BY_DEFAULT, field.name
