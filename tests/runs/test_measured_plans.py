"""Plans from counts against runs that were measured: within 1.5 times of each.

What stands here are those runs' own numbers (docs/design/plans.md): two processes of a thread each.
A matrix product of one thread does 84e9 operations a second, memory 15 GB/s, and a small operation
takes 4 µs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from resect.runs.config import RunConfig
from resect.runs.demo import SETS, demo_config
from resect.runs.forecast import expected_here
from resect.runs.passes import RowSize, SetSize
from resect.runs.real.design import real_config
from resect.runs.real.models import MODELS
from resect.runs.real.sets import Size
from resect.runs.run import plan_run
from resect.runs.speed import OPERATIONS_A_BLOCK, OPERATIONS_A_ROW, TRAFFIC, Assumed

SMALL = 4e-6
MACHINE = Assumed(
    memory=8, host=8, rate=0.65 * 84e9, bandwidth=15e9, step=OPERATIONS_A_BLOCK * SMALL,
    overlaps=False, traffic=TRAFFIC, row=OPERATIONS_A_ROW * SMALL,
)  # fmt: skip
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": True,
    "dtype": "float32",
}  # fmt: skip
ORGANISM = LLAMA | {
    "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "vocab_size": 497,
    "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 32,
    "max_position_embeddings": 64,
}  # fmt: skip
SMOLLM2 = LLAMA | {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152,
    "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
}  # fmt: skip


def sized(scored: int, asked: int, prompt: int, answer: int, opening: int = 0) -> SetSize:
    row = RowSize(prompt, answer)
    return SetSize((row,) * scored, (row,) * asked, opening)


def at(config: RunConfig, folder: Path) -> RunConfig:
    """Return a configuration whose models are all in one folder."""
    return config.model_copy(update={"models": dict.fromkeys(config.models, str(folder))})


def saved(folder: Path, values: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    return folder


def test_the_demonstration(tmp_path: Path) -> None:
    sizes = dict.fromkeys(SETS, sized(160, 0, 11, 15)) | {
        "hazard": sized(160, 100, 11, 15), "refusals": sized(160, 100, 11, 8),
        "benign": sized(232, 100, 10, 6), "tasks": sized(0, 268, 10, 8),
        "detection": sized(160, 60, 9, 2), "explanation": sized(160, 100, 10, 8),
        "advice": sized(16, 64, 11, 5), "good_advice": sized(8, 0, 11, 5),
    }  # fmt: skip
    config = at(demo_config((0,), quick=False), saved(tmp_path / "model", ORGANISM))
    cells = plan_run(config)
    # Of five seeds 1,780 took 43 core-minutes where nothing else ran, 48 in another run.
    assert len(cells) == 1780 / 5
    seconds = expected_here(config, cells, sizes, machine=MACHINE)
    assert 43 / 5 / 1.5 < seconds / 60 < 43 / 5 * 1.5
    assert expected_here(config, cells, sizes, machine=MACHINE, full=True) < 2 * seconds


def test_a_real_model(tmp_path: Path) -> None:
    sizes = {
        "harm": sized(91, 28, 43, 48, 24), "benign": sized(92, 32, 72, 47, 24),
        "few": sized(0, 8, 65, 44, 24), "facts": sized(0, 32, 42, 36, 24),
        "harmless": sized(0, 28, 43, 46, 24), "prose": sized(0, 32, 0, 66),
    }  # fmt: skip
    folder = saved(tmp_path / "model", SMOLLM2)
    size = Size(asked=32, pool=96, scored=64, tokens=48, seeds=3, fractions=4)
    paths = {name: Path(f"{name}.jsonl") for name in sizes}
    config = real_config(MODELS["smollm2"], folder, paths, size, quick=False)
    cells = plan_run(config)
    # It took 96 core-minutes on a machine that others used too.
    assert len(cells) == pytest.approx(63, abs=3)
    minutes = expected_here(config, cells, sizes, machine=MACHINE) / 60
    assert 96 / 1.5 < minutes < 96 * 1.5
