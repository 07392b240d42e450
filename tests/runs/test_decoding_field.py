"""How replies are decoded: from the options to the model, and no trace of the default."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import resect.evaluation.sets
from invented_run import invented_config
from resect.cli import app
from resect.errors import InputError
from resect.evaluation.evaluate import EvalRequest, _provenance, _settings
from resect.files.origin import hash_value
from resect.runs import auto, sweep
from resect.runs.config import dump_config, parse_config
from resect.runs.measure import evaluation_settings
from resect.runs.run import plan_run
from resect.runs.sweep import SweepRequest, sweep_config


class _StopError(Exception):
    """Ends a command once its request is known."""


def values(**evaluation: Any) -> dict[str, Any]:
    written = invented_config({"compactness": {}}).model_dump(mode="json")
    return written | {"evaluation": written["evaluation"] | evaluation}


def test_the_default_leaves_no_trace() -> None:
    plain = parse_config(values(), "test")
    named = parse_config(values(decoding="fast"), "test")
    assert "decoding" not in plain.model_dump(mode="json")["evaluation"]
    assert dump_config(named) == dump_config(plain)
    # What earlier builds wrote before there was the field.
    assert hash_value(plain.model_dump(mode="json")["evaluation"]) == hash_value(
        {
            "probes": values()["evaluation"]["probes"], "limit": None, "judge": "exact",
            "max_new_tokens": 256, "batch_size": 16, "alike": 0.5,
        }
    )  # fmt: skip
    request = EvalRequest("model", ("generation",), ("data",))
    written: Any = _provenance(request, {})["request"]
    assert set(written) == {field.name for field in fields(request)} - {"decoding"}


def test_exact_reaches_those_who_ask() -> None:
    config = parse_config(values(decoding="exact"), "test")
    assert parse_config(yaml.safe_load(dump_config(config)), "test") == config
    assert evaluation_settings(config).generation.decoding == "exact"
    assert evaluation_settings(parse_config(values(), "test")).generation.decoding == "fast"
    # Cells have the names that they had: a run is of one configuration.
    keys = {cell.key for cell in plan_run(config)}
    assert keys == {cell.key for cell in plan_run(parse_config(values(), "test"))}
    request = SweepRequest("model", "target", "preserve", decoding="exact")
    assert sweep_config(request).evaluation.decoding == "exact"
    asked = EvalRequest("model", ("generation",), ("data",), decoding="exact")
    assert _settings(asked).generation.decoding == "exact"
    assert _provenance(asked, {})["request"]["decoding"] == "exact"  # type: ignore[index]
    with pytest.raises(InputError, match=r"evaluation\.decoding: Input should be 'fast',"):
        parse_config(values(decoding="quick"), "test")


@pytest.mark.parametrize("command", ["run", "sweep", "eval"])
def test_the_option_reaches_the_request(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def stop(request: Any, *_others: Any, **_named: Any) -> None:
        seen.append(request)
        raise _StopError

    monkeypatch.setattr(auto, "plan_auto", stop)
    monkeypatch.setattr(sweep, "sweep_config", stop)
    monkeypatch.setattr(resect.evaluation.sets, "evaluate_sets", stop)
    options = {
        "run": [],
        "sweep": ["--target", "a.jsonl", "--preserve", "b.jsonl"],
        "eval": ["--probe", "generation", "--data", "a.jsonl"],
    }[command]
    arguments = [command, "model", *options, "-o", str(tmp_path / "out")]
    named = [(["--decoding", mode], mode) for mode in ("exact", "continuous")]
    for more, mode in (([], "fast"), *named):
        done = CliRunner().invoke(app, [*arguments, *more])
        assert isinstance(done.exception, _StopError), done.output
        assert seen[-1].decoding == mode
    assert CliRunner().invoke(app, [*arguments, "--decoding", "quick"]).exit_code == 2
