"""A configuration that cuts whole units: what is written, what is refused, what masks hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import tiny
from command_line import write
from resect.errors import InputError
from resect.model import load_model, prunable_tensors
from resect.runs.config import dump_config, parse_config
from resect.runs.masks import Masks
from resect.runs.subject import Subjects
from resect.runs.sweep import SweepRequest, sweep_config
from resect.studies.cells import Cut, needed_keep
from resect.weights.mask import Mask


def values(folder: Path, **selection: Any) -> dict[str, Any]:
    return {
        "name": "whole",
        "models": {"aligned": str(folder / "model")},
        "data": {name: str(folder / f"{name}.jsonl") for name in ("harm", "kept")},
        "targets": {"generation": {"data": "harm"}},
        "preserve": {"data": "kept"},
        "selection": {"p": 0.1, **selection},
        "evaluation": {"probes": {"generation": "harm", "likelihood": "kept"}, "judge": "keyword"},
        "studies": {"frontier": {"fractions": [0.2], "protected": [0.1]}},
    }


def test_a_configuration_names_its_unit_and_others_keep_their_text(tmp_path: Path) -> None:
    plain = parse_config(values(tmp_path), "x")
    assert "unit:" not in dump_config(plain)
    assert parse_config(values(tmp_path, unit="weight"), "x").model_dump() == plain.model_dump()
    whole = parse_config(values(tmp_path, unit="neuron"), "x")
    assert parse_config(yaml.safe_load(dump_config(whole)), "x").selection.unit == "neuron"
    assert (needed_keep(plain, []), needed_keep(whole, [])) == (0.1, 1.0)


def test_bad_units_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"selection\.unit: .*'neuron', 'head' or 'expert'"):
        parse_config(values(tmp_path, unit="layer"), "x")
    turns = values(tmp_path, unit="head")
    method = {"name": "4 rounds", "target": "generation", "rounds": 4}
    turns["studies"]["frontier"]["methods"] = [method]
    with pytest.raises(InputError, match=r"frontier\.methods\.0: whole heads are located in one"):
        parse_config(turns, "x")


def test_a_grid_names_the_unit_of_a_sweep(tmp_path: Path) -> None:
    grid = tmp_path / "grid.yaml"
    grid.write_text("fractions: [0.1]\nunit: neuron\n", "utf-8")
    config = sweep_config(SweepRequest("m", "harm.jsonl", "benign.jsonl", grid=grid))
    assert config.selection.unit == "neuron"
    grid.write_text("unit: layer\n", "utf-8")
    with pytest.raises(InputError, match=r"selection\.unit"):
        sweep_config(SweepRequest("m", "harm.jsonl", "benign.jsonl", grid=grid))


def neurons(mask: Mask) -> list[set[int]]:
    """The neurons of each layer, of which the mask must have all."""
    rows = []
    for layer in range(2):
        gate = mask.tensors[f"model.layers.{layer}.mlp.gate_proj.weight"].index
        down = mask.tensors[f"model.layers.{layer}.mlp.down_proj.weight"].index
        rows.append(set((gate // 16).tolist()))
        assert len(gate) == len(down) == 16 * len(rows[-1])
        assert set((down % 24).tolist()) == rows[-1]
    return rows


def test_a_run_cuts_units_and_holds_them_to_random_ones(tmp_path: Path) -> None:
    tiny.save("llama", tmp_path / "model")
    for name, prompt in (("harm", "c"), ("kept", "bb")):
        rows = tiny.rows(4, prompt, split="calibration")
        write(tmp_path / f"{name}.jsonl", rows + tiny.rows(2, 2 * prompt, split="evaluation"))
    config = parse_config(values(tmp_path, unit="neuron"), "x")
    masks = Masks(config, tmp_path / "run", needed_keep(config, []))
    subject = Subjects(config, tmp_path / "run").load("aligned", 0)
    cut = Cut("generation", "target", 0.2)
    masks.locate(subject, cut)
    mask = masks.mask(subject, cut)
    chosen = neurons(mask)
    assert any(chosen)
    drawn = neurons(masks.mask(subject, Cut("generation", "random", 0.2)))
    assert [len(units) for units in drawn] == [len(units) for units in chosen]
    assert not any(ours & theirs for ours, theirs in zip(chosen, drawn, strict=True))
    neurons(masks.mask(subject, Cut("generation", "next_slice", 0.2)))
    weights = prunable_tensors(load_model(tmp_path / "model").model)
    for name, tensor in mask.tensors.items():
        assert torch.equal(tensor.value, weights[name].detach().reshape(-1)[tensor.index])
