"""A configuration without the field is what it was: its text, its hash, its records' names."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from invented_run import invented_config
from resect.errors import InputError
from resect.files.origin import hash_value
from resect.runs.config import dump_config, parse_config
from resect.studies import STUDIES
from resect.studies.design import Design


def values(**changes: Any) -> dict[str, Any]:
    written = invented_config({"compactness": {}}).model_dump(mode="json")
    return written | {key: written[key] | value for key, value in changes.items()}


def test_the_default_leaves_no_trace() -> None:
    written = values()
    assert "measure" not in written["evaluation"]
    # Nor does a study that came with it.
    assert set(written["studies"]) == {n for n, study in STUDIES.items() if study.measure is None}
    # What version 0.1.0 and later builds wrote before there was the field.
    assert hash_value(written["evaluation"]) == hash_value(
        {
            "probes": written["evaluation"]["probes"], "limit": None, "judge": "exact",
            "max_new_tokens": 256, "batch_size": 16, "alike": 0.5,
        }
    )  # fmt: skip
    named = parse_config(values(evaluation={"measure": "replies"}), "test")
    assert dump_config(named) == dump_config(parse_config(written, "test"))


def test_a_likelihood_is_written_and_read_back() -> None:
    config = parse_config(values(evaluation={"measure": "likelihood"}), "test")
    text = dump_config(config)
    assert yaml.safe_load(text)["evaluation"]["measure"] == "likelihood"
    assert parse_config(yaml.safe_load(text), "test") == config
    with pytest.raises(InputError, match=r"evaluation\.measure: Input should be 'replies' or"):
        parse_config(values(evaluation={"measure": "luck"}), "test")


def test_a_probe_is_scored_where_its_set_is() -> None:
    written = values(evaluation={"probes": {}})
    written["data"] = {name: f"{name}.jsonl" for name in ("harm", "benign", "trivia", "prose")}
    written["targets"] = {
        "gate": {"data": "harm", "tokens": 1},
        "content": {"data": "harm", "skip": 3},
        "facts": {"data": "trivia", "skip": 1},
        "trivia": {"data": "trivia", "skip": 2},
    }
    written |= {"target": "content", "preserve": {"data": "benign", "skip": 4}}
    written["targets"]["generation"] = {"data": "harm", "skip": 5}
    probes = {"generation": "harm", "gate": "harm", "utility": "benign", "other": "trivia"}
    written["evaluation"]["probes"] = probes | {"trivia": "trivia", "prose": "prose"}
    design = parse_config(written, "test")
    assert isinstance(design, Design)
    skips = {}
    for probe in design.evaluation.probes:
        target = design.scored_as(probe)
        skips[probe] = None if target is None else (target.skip, target.tokens)
    assert skips == {
        "generation": (3, None),
        "gate": (0, 1),
        "utility": (4, None),
        "other": (1, None),
        "trivia": (2, None),
        "prose": None,
    }
