"""A run that asks of a grid what its claims need; the slow twin is the run of the whole grid."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tiny
from command_line import call, write
from resect.errors import InputError
from resect.files.origin import hash_value
from resect.files.tables import read_parquet, write_parquet
from resect.report.shared import searched_grid
from resect.runs import measure
from resect.runs.config import RunConfig, parse_config
from resect.runs.run import carry_out, measure_all, open_run, plan_run, summarise_run
from resect.runs.searching import choices_of, facts_of_search, most_questions
from resect.studies import STUDIES
from resect.studies.cells import Cell, record_path
from tiny_organism import tiny_organism
from tiny_run import tiny_values

# Its replies show no harm: cuts are told apart by the likelihood of harmful answers.
FRACTIONS = [0.005, 0.02, 0.05, 0.15]
GRID = {"fractions": FRACTIONS, "protected": [0.01], "scopes": ["tensor", "model"]}


def config_of(values: dict[str, Any], search: str) -> RunConfig:
    return parse_config(values | {"evaluation": values["evaluation"] | {"search": search}}, "test")


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    values = tiny_values(tiny_organism(tmp_path_factory), GRID)
    probes = {"generation": "hazard", "utility": "utility"}
    values["evaluation"] |= {"limit": 12, "measure": "likelihood", "probes": probes}
    values["studies"]["compactness"] = {"fractions": FRACTIONS, "largest_fraction": 0.05}
    return values


def measured(config: RunConfig, run: Path) -> dict[str, Any]:
    open_run(config, run, resume=False)
    measure_all(config, run, jobs=1)
    results: dict[str, Any] = json.loads(summarise_run(config, run).read_text(encoding="utf-8"))
    return results


@pytest.fixture(scope="module")
def full(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("full") / "run"
    measured(config_of(values, "full"), run)
    return run


@pytest.fixture(scope="module")
def searched(
    values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, without_paper: None
) -> Path:
    run = tmp_path_factory.mktemp("searched") / "run"
    carry_out(config_of(values, "halving"), run, resume=False)
    return run


def results_of(run: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((run / "results.json").read_text(encoding="utf-8"))
    return results


def tables_of(run: Path, study: str) -> dict[str, list[dict[str, Any]]]:
    (tables,) = (s["tables"] for s in results_of(run)["studies"] if s["study"] == study)
    return tables  # type: ignore[no-any-return]


def records(run: Path) -> dict[str, list[dict[str, Any]]]:
    return {path.name: read_parquet(path) for path in sorted((run / "records").iterdir())}


def test_what_is_asked_is_answered_as_in_the_whole_grid(full: Path, searched: Path) -> None:
    whole: dict[tuple[str, str, str], dict[str, Any]] = {}
    for rows in records(full).values():
        whole |= {(row["cut"], row["probe"], row["example_id"]): row for row in rows}
    asked = [row for rows in records(searched).values() for row in rows]
    keys = [(row["cut"], row["probe"], row["example_id"]) for row in asked]
    assert len(keys) == len(set(keys))
    assert 0 < len(keys) < 0.75 * len(whole)
    for key, row in zip(keys, asked, strict=True):
        for name, value in whole[key].items():
            if isinstance(value, float):
                # Other prompts share its batch.
                assert row[name] == pytest.approx(value, abs=1e-4), name
            else:
                assert row[name] == value, name


def test_numbers_are_those_of_the_whole_grid_or_none(full: Path, searched: Path) -> None:
    pairs = list(
        zip(
            tables_of(full, "frontier")["grid"],
            tables_of(searched, "frontier")["grid"],
            strict=True,
        )
    )
    numbers = 0
    for usual, row in pairs:
        names = [name for name in row if name.startswith(("harm_drop", "utility_drop"))]
        for name in names:
            if row[name] is not None:
                assert row[name] == pytest.approx(usual[name], abs=1e-3)
                numbers += 1
        if row["harm_drop"] is None:
            assert not row["on_front"]
    assert 0 < numbers < 6 * len(pairs)
    untouched = [row for _, row in pairs if row["removed_fraction"] is None]
    assert all(row["harm_drop"] is None and row["utility_drop"] is None for row in untouched)
    for row in tables_of(searched, "compactness")["curve"]:
        # A curve is over all prompts, so that it has the intact model and chosen cuts alone.
        assert (row["harm_drop"] is None) == (row["n"] is None)
    assert "intact" in {r["arm"] for r in tables_of(searched, "compactness")["curve"] if r["n"]}


def test_the_report_says_what_was_not_asked_and_why(values: dict[str, Any], searched: Path) -> None:
    facts = results_of(searched)["provenance"]["search"]
    asked = sum(map(len, records(searched).values()))
    assert facts["asked"] == asked
    config = config_of(values, "halving")
    intact = next(cell for cell in plan_run(config) if cell.cut is None)
    rows = read_parquet(record_path(searched, intact))
    counts = {probe: sum(row["probe"] == probe for row in rows) for probe in intact.probes}
    assert facts["grid"] == sum(counts[p] for cell in plan_run(config) for p in cell.probes)
    page = (searched / "report.html").read_text(encoding="utf-8")
    assert searched_grid(results_of(searched)["provenance"]) in page
    for study in ("frontier", "compactness"):
        rows = tables_of(searched, study)["search"]
        assert len(rows) == sum(len(c.cuts) for c in choices_of(config, STUDIES[study]))
        for row in rows:
            whole = {row["asked_for_harm"], row["asked_for_utility"]} == {"both halves"}
            assert (row["not_asked_since"] == "") == whole
            assert (row["harm_drop"] is None) == (row["asked_for_harm"] == "no")
    most = most_questions(config, plan_run(config), counts.__getitem__)
    assert asked <= most.count + len(plan_run(config)) < most.grid
    assert searched_grid({}) == ""


def test_the_grid_is_counted_whole_where_the_intact_model_is_attacked_too(
    values: dict[str, Any], searched: Path, tmp_path: Path
) -> None:
    config, run = config_of(values, "halving"), tmp_path / "run"
    shutil.copytree(searched, run)
    cells = plan_run(config)
    before = facts_of_search(config, run, cells)["search"]
    intact = next(cell for cell in cells if cell.cut is None)
    # An attack is put to one probe alone, and to fewer prompts.
    attacked = replace(intact, attack="prefill:3", probes=("generation",))
    rows = [row for row in read_parquet(record_path(run, intact)) if row["probe"] == "generation"]
    write_parquet(record_path(run, attacked), rows[:5])
    after = facts_of_search(config, run, [*cells, attacked])["search"]
    assert isinstance(before, dict)
    assert isinstance(after, dict)
    assert after["grid"] == before["grid"] + 5
    assert after["asked"] == before["asked"] + 5


def test_a_stopped_search_goes_on_and_ends_the_same(
    values: dict[str, Any], searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run, written = config_of(values, "halving"), tmp_path / "run", measure._judge
    asked: list[Cell] = []

    def judge(cell: Cell, *arguments: Any) -> None:
        if len(asked) == 4:
            raise KeyboardInterrupt
        asked.append(cell)
        written(cell, *arguments)

    monkeypatch.setattr(measure, "_judge", judge)
    with pytest.raises(KeyboardInterrupt):
        measured(config, run)
    before = {path.name: path.stat().st_mtime_ns for path in (run / "records").iterdir()}
    monkeypatch.undo()
    open_run(config, run, resume=True)
    measure_all(config, run, jobs=1)
    summarise_run(config, run)
    assert records(run) == records(searched)
    for name, time in before.items():
        if not name.endswith(".asked.parquet"):
            assert (run / "records" / name).stat().st_mtime_ns == time
    for study in ("frontier", "compactness"):
        assert tables_of(run, study) == tables_of(searched, study)


def test_one_command_asks(values: dict[str, Any], tmp_path: Path) -> None:
    config = config_of(values, "halving")
    file = tmp_path / "study.yaml"
    file.write_text(json.dumps(config.model_dump(mode="json")), encoding="utf-8")
    for words in (["--shard", "1/2"], ["--launcher", "local"]):
        refused = call("study", "run", file, "-o", tmp_path / "run", *words)
        assert refused.returncode == 2
        assert "one command" in refused.stdout + refused.stderr
        assert not (tmp_path / "run").exists()


def test_several_processes_ask_the_same_of_several_models(
    values: dict[str, Any], tmp_path: Path
) -> None:
    # Two draws on one model: each is searched by itself.
    config = config_of(values | {"seeds": [0, 1]}, "halving")
    folders = [tmp_path / name for name in ("alone", "together")]
    told: list[tuple[int, int]] = []
    for folder, jobs in zip(folders, (1, 2), strict=True):
        open_run(config, folder, resume=False)
        measure_all(config, folder, jobs=jobs, on_progress=lambda done, of: told.append((done, of)))
        summarise_run(config, folder)
    one, other = folders
    assert records(one) == records(other)
    assert {rows[0]["seed"] for rows in records(one).values()} == {0, 1}
    assert json.loads((one / "search.json").read_text("utf-8")) == json.loads(
        (other / "search.json").read_text("utf-8")
    )
    assert results_of(one)["studies"] == results_of(other)["studies"]
    assert told[-1][0] == told[-1][1]
    assert all(done <= of for done, of in told)


def test_plans_say_the_largest_number_of_questions(tmp_path: Path) -> None:
    model = tiny.save("llama", tmp_path / "model")
    rows = tiny.rows(16, "c", split="calibration") + tiny.rows(16, "ee", split="evaluation")
    benign = tiny.rows(12, "bbb", split="calibration") + tiny.rows(10, "dddd", split="evaluation")
    words = [model, "--target", write(tmp_path / "harm.jsonl", rows)]
    words += ["--preserve", write(tmp_path / "benign.jsonl", benign)]
    words += ["--search", "halving", "--dry-run", "-o", tmp_path / "run"]
    swept = call("sweep", *words, "--prompts", 10)
    assert swept.returncode == 0, swept.stderr
    # 26 cells of two probes; at most one of them whole, 20 on one half, and one and its control.
    most = 10 * (2 + 20 + 1 + 0.5)
    assert f"at most {most:.0f} of 520, {100 * most / 520:.3g} % are asked" in spaced(swept.stderr)
    planned = call("run", *words, "--prompts", 10)
    assert planned.returncode == 0, planned.stderr
    assert re.search(r"questions at most \d+ of \d+, [\d.]+ % are asked", spaced(planned.stderr))
    assert not (tmp_path / "run").exists()


def spaced(text: str) -> str:
    return " ".join(text.split())


def test_configurations_without_it_keep_their_hash(values: dict[str, Any]) -> None:
    plain = parse_config(values, "test").model_dump(mode="json")
    named = config_of(values, "full").model_dump(mode="json")
    assert hash_value(plain) == hash_value(named)
    assert "search" not in plain["evaluation"]
    with pytest.raises(InputError, match="search"):
        config_of(values, "thirds")


def test_parts_are_named_apart_and_wholes_as_ever() -> None:
    cell = Cell("aligned", 0, None, ("generation", "utility"))
    parts = [cell.part(probe, half) for probe in cell.probes for half in ("selection", "test")]
    assert len({part.key for part in (cell, *parts)}) == 5
    assert replace(cell, probes=()).key == cell.key
