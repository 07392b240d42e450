"""The map of architectures says what is so: every type is built, and a sample goes the whole way.

All types go the whole way with RESECT_ALL_TYPES=1, which takes minutes.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import mapped
from resect.errors import CoverageError
from resect.model import find_prunable

architectures = mapped.script("architectures")
model_types = mapped.script("model_types")
DOCS = Path(__file__).parents[2] / "docs"
VALUES = json.loads((DOCS / "architectures.json").read_text("utf-8"))
TYPES: dict[str, Any] = VALUES["types"]
BUILT = {name: row for name, row in TYPES.items() if row["state"] != "not built"}

# Forty: what a fault was found in, or what stands for a family (heads tied under another name,
# state spaces, buffers, streams, experts together or apart, joined tensors, parts of no width).
SAMPLE = (
    "bamba", "bloom", "blt", "camembert", "cohere2", "ctrl", "deepseek_v3", "deepseek_v4", "doge",
    "falcon", "falcon_mamba", "gemma3", "gemma3n_text", "gemma4_text", "git", "gpt2", "gpt_neox",
    "gpt_oss", "granitemoe", "hrm_text", "hunyuan_v1_moe", "hy_v4", "jamba", "jetmoe", "lfm2_moe",
    "llama", "llama4", "mamba2", "minimax", "mixtral", "mllama", "modernbert-decoder",
    "nemotron_h", "opt", "phi3", "qwen3_next", "recurrent_gemma", "rwkv", "zamba2", "zaya",
)  # fmt: skip


def test_the_page_shows_the_file() -> None:
    page = (DOCS / "architectures.md").read_text("utf-8")
    table = architectures.table(VALUES)
    begin, end = architectures.BEGIN, architectures.END
    assert architectures.filled(page, table, "", begin, end) == page


def test_all_types_are_there_and_none_ends_in_a_traceback() -> None:
    assert [*TYPES] == [*model_types.model_types()]
    assert len(BUILT) >= 168
    # What is covered goes through every step, or says in a message of ours which it refuses.
    for name, row in BUILT.items():
        assert architectures.state(row) == "covered" or architectures.reason(row), name
        broken = [step for step, said in row["tried"].items() if said.startswith("broken")]
        assert not broken, (name, broken)
    covered = [name for name, row in BUILT.items() if architectures.state(row) == "covered"]
    assert len(covered) >= 0.95 * len(BUILT)
    for name in covered:
        steps = BUILT[name]["tried"]
        assert (steps["cut"], steps["folder"], steps["hold"]) == ("exact", "exact", "held"), name


def test_no_type_has_drifted() -> None:
    """Build every type on the meta device: 20 s of one core, most of them transformers' imports."""
    drifted = {}
    for name, expected in TYPES.items():
        row = architectures.row(name)
        # Packages that are not installed, and wording of others, may differ by machine.
        unbuilt = row["state"] == expected["state"] == "not built"
        if not unbuilt and row != {k: v for k, v in expected.items() if k != "tried"}:
            drifted[name] = row
    assert not drifted, f"python benchmarks/architectures.py {' '.join(drifted)} writes them anew"


def test_no_type_has_a_router_or_a_deaf_part_among_its_prunable_weights() -> None:
    for name in BUILT:
        model = model_types.empty(name, small=True)
        modules = dict(model.named_modules())
        try:
            coverage = find_prunable(model, allow_partial=True)
        except CoverageError:
            continue  # its checkpoints join parameters that this package would have to take apart
        for weight in coverage.weights:
            where = f"{name}: {weight.name}"
            assert sum(side > 1 for side in weight.shape) > 1, where
            words = weight.name.split(".")
            for depth in range(len(words) - 1):
                module = modules[".".join(words[:depth])]
                said = getattr(module, "input_modalities", "text")
                assert "text" in ([said] if isinstance(said, str) else said), where
                assert "Router" not in type(module).__name__, where
            assert not chooses(weight.name, modules), where


def chooses(name: str, modules: dict[str, nn.Module]) -> bool:
    """Tell whether a weight beside experts gives a number for each of them."""
    words = name.split(".")
    if "experts" in words or "shared" in name or len(words) < 3:
        return False
    shape = modules[""].get_parameter(name).shape
    for depth in (2, 3):
        experts = getattr(modules[".".join(words[:-depth])], "experts", None)
        if experts is None:
            continue
        counts = {p.shape[0] for p in experts.parameters(recurse=False) if p.dim() == 3}
        if shape[0] in counts:
            return True
    return False


@pytest.mark.parametrize("name", [*BUILT] if os.environ.get("RESECT_ALL_TYPES") else SAMPLE)
def test_a_type_is_scored_cut_and_restored_as_the_map_says(name: str) -> None:
    assert architectures.tried(name) == TYPES[name]["tried"]
