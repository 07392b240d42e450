"""Direction ablation as the rival of a cut: off unless asked for, and measured like any arm."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from resect.edit.direction import Ablation
from resect.errors import InputError
from resect.files.origin import hash_value
from resect.files.tables import read_parquet
from resect.runs.config import RunConfig, dump_config, parse_config
from resect.runs.demo import demo_config
from resect.runs.run import measure_all, open_run, plan_run, summarise_run
from resect.studies.cells import Cell, Cut, Tuning, direction_path, needed_keep, record_path
from resect.studies.direction import Direction
from tiny_organism import tiny_organism
from tiny_run import tiny_values

# Of the demonstration's configuration and cells, before there was such a rival.
CONFIGURATION, CELLS, COUNT = "d5d0fbc271f20a3d", "05ce0808f688358a", 182
GRID = {"fractions": [0.01]}
RIVAL = {"strengths": [0.5, 1.0], "depths": [1.0]}


def test_nothing_changes_where_nobody_asks_for_it() -> None:
    config = demo_config((0,), quick=False, studies=["specificity", "frontier", "jailbreak"])
    values = config.model_dump(mode="json") | {"models": {}, "data": {}}
    assert hash_value(values) == CONFIGURATION
    cells = plan_run(config)
    assert (hash_value([cell.key for cell in cells]), len(cells)) == (CELLS, COUNT)
    assert "direction" not in dump_config(config)


def test_rival_adds_its_own_cells_alone() -> None:
    plain = demo_config((0,), quick=False, studies=["specificity", "frontier"])
    values = plain.model_dump(mode="json")
    for name in ("specificity", "frontier"):
        values["studies"][name]["direction"] = {}
    config = parse_config(values, "test")
    before, after = plan_run(plain), plan_run(config)
    added = {cell.cut for cell in set(after) - set(before)}
    assert set(before) <= set(after)
    assert added == set(Direction().cuts(config))
    assert len(added) == len(config.studies.specificity.fractions)  # as often tried
    # A strength is no fraction of a ranking: scores are kept as far as before.
    assert needed_keep(config, after) == needed_keep(plain, before)
    assert parse_config(json.loads(json.dumps(config.model_dump(mode="json"))), "x") == config


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "target", "depth": 0.5},
        {"kind": "direction", "instead": "mean"},
        {"kind": "direction", "rounds": 2},
        {"kind": "direction", "p": 0.1},
        {"kind": "direction", "scope": "model"},
        {"kind": "direction", "scored_on": "base"},
    ],
)
def test_directions_and_cuts_of_weights_are_not_mixed_up(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="does not hold for a direction"):
        Cut("generation", q=1.0, **options)


def test_a_direction_cannot_be_held() -> None:
    with pytest.raises(InputError, match="zeroes no weight"):
        Cell("aligned", 0, Cut("a", "direction", 1.0), (), tuning=Tuning("b", 1, 1e-3, hold=True))


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"target": "nothing"}, "'nothing' is not under targets"),
        ({"strengths": [0.0]}, "greater than 0"),
        ({"strengths": [3.0]}, "less than or equal to 2"),
        ({"strengths": []}, "at least 1 item"),
        ({"depths": [1.5]}, "less than or equal to 1"),
        ({"depth": 1}, "Extra inputs"),
    ],
)
def test_bad_grids_are_refused(section: dict[str, Any], said: str) -> None:
    values = demo_config((0,), quick=False, studies=["frontier"]).model_dump(mode="json")
    values["studies"]["frontier"]["direction"] = section
    with pytest.raises(InputError, match=said):
        parse_config(values, "test")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    values = tiny_values(
        tiny_organism(tmp_path_factory), GRID | {"protected": [0.01], "scopes": ["tensor"]}
    )
    # Without tasks utility is the likelihood of texts, which any edit moves.
    del values["evaluation"]["probes"]["utility"], values["data"]["utility"]
    values["studies"]["frontier"]["direction"] = RIVAL
    values["studies"]["specificity"] = GRID | {"benign": [], "matched": [], "direction": RIVAL}
    return parse_config(values, "test")


def test_whole_path(config: RunConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    open_run(config, run, resume=False)
    measure_all(config, run, jobs=1)
    results = json.loads(summarise_run(config, run).read_text(encoding="utf-8"))
    claims = {claim["claim"]: claim for claim in results["claims"]}
    assert any(text.endswith("at the same budget: direction.") for text in claims)
    rival = claims["The cut does more than taking one direction out of what the blocks write."]
    assert [control["name"] for control in rival["controls"]] == [
        "drop of harm, chosen target cuts, test half",
        "drop of harm, direction ablation, test half",
        "drop of utility, direction ablation, test half",
    ]
    tables = {study["study"]: study["tables"] for study in results["studies"]}
    assert "direction" in {row["arm"] for row in tables["specificity"]["bars"]}
    points = [row for row in tables["frontier"]["grid"] if row["method"] == "direction"]
    assert {(row["scope"], row["q"]) for row in points} == {
        ("each block", 0.5), ("each block", 1.0), ("depth 1", 0.5), ("depth 1", 1.0),
    }  # fmt: skip
    _check_files(config, run)


def _check_files(config: RunConfig, run: Path) -> None:
    """Strengths share a file; a direction cuts no weight, and changes what the model says."""
    section = config.studies.frontier.direction
    cuts = section.cuts(config)
    paths = {direction_path(run, "aligned", 0, cut) for cut in cuts}
    assert len(paths) == 2
    assert set((run / "masks").glob("*.direction.safetensors")) == paths
    edits = [Ablation.load(path) for path in sorted(paths)]
    assert {edit.strength for edit in edits} == {1.0}
    assert all((edit.meta or {})["against"] == "preserve" for edit in edits)
    cell = Cell("aligned", 0, replace(cuts[1]), ())
    rows, intact = (read_parquet(record_path(run, c)) for c in (cell, replace(cell, cut=None)))
    assert {row["removed"] for row in rows} == {0}
    assert {row["cut_kind"] for row in rows} == {"direction"}
    texts = [
        [row["nll"] for row in side if row["probe"] == "likelihood"] for side in (rows, intact)
    ]
    assert texts[0] != texts[1]
