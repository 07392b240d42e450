"""A run whose cells share passes: the same records up to rounding, and a report that says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from invented_run import invented_config
from resect.edit.many import NotTogether
from resect.errors import InputError
from resect.evaluation.attacks import parse_attack
from resect.files.origin import hash_value
from resect.files.tables import read_parquet
from resect.report.shared import beside_others, shared_passes
from resect.runs import measure
from resect.runs.config import parse_config
from resect.runs.joint import TOO_LARGE, alike, companions, why_alone
from resect.runs.run import _scored_by, measure_all, open_run, summarise_run
from resect.runs.sweep import SweepRequest, sweep_config
from resect.studies.cells import Cell, Cut, Tuning
from tiny_organism import tiny_organism
from tiny_run import tiny_values

FRONTIER = {"fractions": [0.005, 0.02], "protected": [0.01], "scopes": ["tensor"]}


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny_values(tiny_organism(tmp_path_factory), FRONTIER)


def measured(values: dict[str, Any], run: Path, **evaluation: Any) -> dict[str, Any]:
    """Measure the cells of a configuration and return its `results.json`."""
    changed = values | {"evaluation": values["evaluation"] | evaluation}
    config = parse_config(changed, "test")
    open_run(config, run, resume=False)
    measure_all(config, run, jobs=1)
    results: dict[str, Any] = json.loads(summarise_run(config, run).read_text(encoding="utf-8"))
    return results


def records(run: Path) -> dict[str, list[dict[str, Any]]]:
    return {path.name: read_parquet(path) for path in sorted((run / "records").iterdir())}


@pytest.fixture(scope="module")
def alone(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run whose cells were asked one by one."""
    run = tmp_path_factory.mktemp("alone") / "run"
    assert "together" not in measured(values, run)["provenance"]
    assert not (run / "together").exists()
    return run


def test_records_are_those_of_cells_asked_one_by_one(
    values: dict[str, Any], alone: Path, tmp_path: Path
) -> None:
    told = measured(values, tmp_path / "run", together=3, check_together=2)["provenance"]
    before, after = records(alone), records(tmp_path / "run")
    assert list(before) == list(after)
    for name, rows in before.items():
        note = json.loads((tmp_path / f"run/together/{name[: -len('.parquet')]}.json").read_text())
        for row, shared in zip(rows, after[name], strict=True):
            assert shared.pop("together", 1) == note["cells"]
            numbers = {key: row[key] for key in ("nll", "kl", "score") if row[key] is not None}
            assert {key: shared[key] for key in numbers} == pytest.approx(numbers, abs=1e-5)
            assert shared | numbers == row
    facts = told["together"]
    assert facts["most"] == 3
    assert facts["cells"] + sum(facts["alone"].values()) == len(before)
    assert facts["cells"] > len(before) / 2
    assert facts["checked"]["cells"] == 2
    assert facts["checked"]["different"] == 0
    assert facts["checked"]["nll"] < 1e-5


def test_a_model_that_does_not_pass_the_trial_is_asked_cut_by_cut(
    values: dict[str, Any], alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> None:
        raise NotTogether("its rows are in another order")

    monkeypatch.setattr(measure, "routes_of", refuse)
    told = measured(values, tmp_path / "run", together=4)
    assert records(tmp_path / "run") == records(alone)
    count = len(records(alone))
    assert told["provenance"]["together"] == {
        "most": 4, "cells": 0, "alone": {"its rows are in another order": count},
    }  # fmt: skip


def test_reports_say_that_replies_depend_on_those_beside_them() -> None:
    assert beside_others({}) == ""
    assert "can depend on the prompts beside it" in beside_others({"decoding": "continuous"})
    values = invented_config({"compactness": {}}).model_dump(mode="json")
    for mode, said in (("fast", {}), ("exact", {}), ("continuous", {"decoding": "continuous"})):
        evaluation = values["evaluation"] | {"decoding": mode}
        facts = _scored_by(parse_config(values | {"evaluation": evaluation}, "test"))
        assert {name: facts[name] for name in facts if name == "decoding"} == said


def test_reports_say_what_was_asked_together() -> None:
    assert shared_passes({}) == ""
    facts: dict[str, object] = {"most": 3, "cells": 9, "alone": {}}
    assert shared_passes({"together": facts}) == (
        "9 variants were asked together, up to 3 in a pass; their numbers differ by rounding from "
        "those of variants that are asked one by one. How many tokens differ was not checked "
        "(evaluation.check_together)."
    )
    facts["alone"] = {"it is fine-tuned": 2, TOO_LARGE: 1}
    facts["checked"] = {"cells": 2, "replies": 40, "tokens": 1200, "different": 3, "nll": 4e-7}
    assert shared_passes({"together": facts}).endswith(
        "Asked alone were 2 because it is fine-tuned; 1 because more than 3 % of the weights are "
        "cut. Of 2 of them, which were asked alone as well with 40 replies, 3 of 1,200 tokens "
        "differ (0.25 %) and mean NLLs differ by at most 4e-07 nats a token."
    )


def test_configurations_without_it_keep_their_hash(values: dict[str, Any]) -> None:
    plain = parse_config(values, "test").model_dump(mode="json")
    evaluation = values["evaluation"] | {"together": 1, "check_together": 0}
    named = parse_config(values | {"evaluation": evaluation}, "test").model_dump(mode="json")
    assert hash_value(plain) == hash_value(named)
    assert not {"together", "check_together"} & set(plain["evaluation"])
    for wrong in ({"together": 0}, {"check_together": -1}):
        with pytest.raises(InputError, match="together"):
            parse_config(values | {"evaluation": values["evaluation"] | wrong}, "test")


def test_the_option_reaches_the_configuration() -> None:
    request = SweepRequest("model", "target", "preserve", together=8, check_together=2)
    evaluation = sweep_config(request).evaluation
    assert (evaluation.together, evaluation.check_together) == (8, 2)


def test_who_can_share_passes() -> None:
    cut = Cut("generation", "target", 0.01)
    cells = [
        Cell("aligned", 0, Cut("generation", kind, q), ("utility",))
        for q in (0.03, 0.01, 0.02)
        for kind in ("target", "random")
    ]
    none, attack = parse_attack("none"), parse_attack("finetune+prefill:3")
    cell = Cell("aligned", 0, cut, ("utility",))
    assert [why_alone(each, none) for each in (*cells, Cell("aligned", 0, None, ()))] == [""] * 7
    assert why_alone(cell, attack) == "an attack changes its weights"
    assert "tuned" in why_alone(Cell("aligned", 0, cut, (), Tuning("x", 1, 0.1)), none)
    assert "direction" in why_alone(Cell("aligned", 0, Cut("x", "direction", 1.0), ()), none)
    assert alike(cell, cells[0])
    assert not alike(cell, Cell("aligned", 0, cut, ("generation",)))
    assert not alike(cell, Cell("aligned", 1, cut, ("utility",)))
    assert not alike(cell, Cell("aligned", 0, cut, ("utility",), samples=2, temperature=1.0))
    # Nested cuts stand side by side, whatever the order of the cells.
    for each in cells:
        together = companions(each, cells, 3)
        assert each in together
        assert len({peer.cut.kind for peer in together if peer.cut}) == 1
    assert len(companions(cells[0], cells, 99)) == 6
    assert companions(cells[0], cells, 1) == [cells[0]]
