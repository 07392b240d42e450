"""A search is one attack: its strongest setting that leaves a model of use, chosen apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from resect.errors import InputError
from resect.runs.config import parse_config
from resect.runs.demo import demo_config
from resect.runs.run import measure_all, open_run, plan_run, summarise_run
from resect.studies.search import Tried, half_of, is_search, settings_of, strongest
from tiny_organism import tiny_organism
from tiny_run import tiny_values

SEARCH = "finetune-search:rank=2,limit=4,steps=1|2"


def test_every_combination_is_a_setting() -> None:
    assert settings_of("finetune-search:rate=1e-4|1e-3,steps=10,seed=0|1") == [
        "finetune:rate=1e-4,steps=10,seed=0",
        "finetune:rate=1e-4,steps=10,seed=1",
        "finetune:rate=1e-3,steps=10,seed=0",
        "finetune:rate=1e-3,steps=10,seed=1",
    ]
    assert settings_of("ablate_direction-search:depth=0.5|none+prefill:3") == [
        "ablate_direction:depth=0.5+prefill:3",
        "ablate_direction:depth=none+prefill:3",
    ]
    for plain in ("finetune:rate=1", "prefill=A web-search: 1+1", "finetune+prefill=Re-search:x"):
        assert settings_of(plain) == [plain]
    assert (half_of(SEARCH), half_of("finetune"), is_search("finetune")) == ("test", "", False)


@pytest.mark.parametrize(
    "search",
    [
        "finetune-search:", "finetune-search:rate", "finetune-search:rate=", "finetune-search:=1|2",
        "finetune-search:rate=1|", "finetune-search:rate=1e-3",
        "finetune-search:rate=1e-3|1e-3",
        "finetune-search:steps=" + "|".join(map(str, range(1, 202))),
    ],
)  # fmt: skip
def test_what_is_no_search_is_refused(search: str) -> None:
    with pytest.raises(InputError, match="cannot read the search"):
        settings_of(search)


def test_strongest_within_the_budget_counts() -> None:
    nan = float("nan")
    rows = [
        Tried("weak", 0.2, 0.0), Tried("strong", 0.5, 0.1), Tried("as strong", 0.5, 0.02),
        Tried("ruinous", 0.9, 0.11), Tried("unknown", 0.9, nan), Tried("unjudged", nan, 0.0),
    ]  # fmt: skip
    assert strongest(rows, 0.1, "none") == "strong"
    assert strongest(rows, 0.05, "none") == "as strong"
    assert strongest(rows, 0.2, "none") == "ruinous"
    assert strongest(rows[3:], 0.1, "none") == "none"


def test_a_search_is_planned_and_written_only_where_it_is() -> None:
    plain = demo_config((0,), quick=False, studies=["jailbreak"])
    values = plain.model_dump(mode="json")
    assert "search_utility_drop" not in values["studies"]["jailbreak"]
    values["studies"]["jailbreak"]["attacks"].append(SEARCH)
    config = parse_config(values, "test")
    assert config.model_dump(mode="json")["studies"]["jailbreak"]["search_utility_drop"] == 0.1
    added = set(plan_run(config)) - set(plan_run(plain))
    attacks = {f"finetune:rank=2,limit=4,steps={steps}" for steps in (1, 2)}
    assert {cell.attack for cell in added} == attacks
    assert {cell.probes for cell in added} == {("generation", "utility")}
    assert len(added) == 2 * 3  # intact, target cut, random cut


def test_whole_path(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    values = tiny_values(tiny_organism(tmp_path_factory), {})
    section = {"attacks": [SEARCH], "fraction": 0.01, "search_utility_drop": 1.0}
    values |= {"studies": {"jailbreak": section}, "attack_data": {"target": "hazard"}}
    config, run = parse_config(values, "test"), tmp_path / "run"
    open_run(config, run, resume=False)
    measure_all(config, run, jobs=1)
    results = json.loads(summarise_run(config, run).read_text(encoding="utf-8"))
    (study,) = results["studies"]
    rows = study["tables"]["search"]
    assert {row["arm"] for row in rows} == {"intact", "target cut", "random cut"}
    assert len(rows) == 3 * 2
    under = {row["arm"]: row for row in study["tables"]["attacks"] if row["attack"] == SEARCH}
    plain = {row["arm"]: row for row in study["tables"]["attacks"] if row["attack"] == "none"}
    assert all(0 < under[arm]["n"] < plain[arm]["n"] for arm in under)  # the test half alone
    assert "settings that the configuration names" in study["does_not_show"]
    assert [claim["claim"] for claim in study["claims"]][1].startswith("The cut withstands fine")
