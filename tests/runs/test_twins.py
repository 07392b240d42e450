"""The intact model of several draws is asked once, and records are as if each had asked it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from resect.evaluation.ask import ask
from resect.files.tables import read_parquet, write_parquet
from resect.records import Reply
from resect.runs import measure, twins
from resect.runs.config import RunConfig, parse_config
from resect.runs.run import measure_all, open_run
from resect.runs.twins import is_copied
from resect.studies.cells import Cell, Cut, asked_path, record_path
from tiny_organism import tiny_organism
from tiny_run import tiny_values

FRONTIER = {"fractions": [0.02], "protected": [0.01], "scopes": ["tensor"]}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    built = tiny_organism(tmp_path_factory)
    return parse_config(tiny_values(built, FRONTIER) | {"seeds": [0, 1]}, "test")


def test_records_are_those_of_a_run_that_asks_every_seed(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    usual: Callable[..., list[Reply]] = ask

    def counted(*arguments: Any, **named: Any) -> list[Reply]:
        asked.append(arguments[3])
        return usual(*arguments, **named)

    monkeypatch.setattr(measure, "ask", counted)
    for name in ("once", "anew"):
        if name == "anew":
            monkeypatch.setattr(twins, "is_shared", lambda *_: False)
        asked.clear()
        open_run(config, tmp_path / name, resume=False)
        measure_all(config, tmp_path / name, jobs=1)
        assert asked.count(None) == {"once": 1, "anew": 2}[name]
    names = sorted(path.name for path in (tmp_path / "anew/records").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "once/records").iterdir())
    for name in names:
        records = [read_parquet(tmp_path / run / "records" / name) for run in ("once", "anew")]
        assert records[0] == records[1]
    # Which models played a role is written for every seed.
    assert len(list((tmp_path / "once/models").iterdir())) == 2


def test_what_is_no_twin(config: RunConfig, tmp_path: Path) -> None:
    intact = Cell("aligned", 1, None, ("generation",))
    row = {"seed": 0, "probe": "generation", "text": "dax"}

    def copied(cell: Cell, changed: RunConfig = config, **columns: Any) -> bool:
        write_parquet(record_path(tmp_path, replace(cell, seed=0)), [row | columns])
        return is_copied(changed, tmp_path, cell)

    assert copied(intact)
    assert read_parquet(asked_path(tmp_path, intact)) == [row | {"seed": 1}]
    assert copied(replace(intact, attack="prefill:3"))
    # A cut or training of every seed, an attack that makes something, a half of other prompts.
    assert not copied(replace(intact, cut=Cut("generation", "random", 0.02)))
    assert not copied(replace(intact, attack="finetune"))
    assert not copied(replace(intact, attack="gcg:steps=2"))
    assert not copied(replace(intact, attack="few_shot:2"))
    assert not copied(replace(intact, half="test"))
    # Fewer probes than are asked, and numbers of shared passes.
    assert not copied(replace(intact, probes=("generation", "utility")))
    assert not copied(intact, together=4)
    # A model, or data, of each seed.
    for field in ("models", "data"):
        places = {name: f"{place}-{{seed}}" for name, place in getattr(config, field).items()}
        assert not copied(intact, config.model_copy(update={field: places}))
