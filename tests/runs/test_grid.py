"""The grid of q and p: smooth in the size of the model, and no q of it an empty mask."""

from __future__ import annotations

import re
from itertools import pairwise
from math import floor
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from resect.model import Coverage, find_prunable
from resect.organism import Recipe
from resect.runs import grid
from resect.runs.grid import grid_of, middle_fraction

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("weights", "low", "high"),
    [(10**6, 2.9e-3, 3.1e-3), (10**8, 0.9e-4, 1.7e-4), (8 * 10**9, 0.99e-5, 1.01e-5)],
)
def test_the_middle_is_where_models_were_studied(weights: int, low: float, high: float) -> None:
    assert low <= middle_fraction(weights) <= high


def test_q_falls_without_a_step() -> None:
    sizes = [round(10 ** (6 + step / 50)) for step in range(200)]
    ratios = [middle_fraction(b) / middle_fraction(a) for a, b in pairwise(sizes)]
    assert max(ratios) / min(ratios) == pytest.approx(1, abs=1e-4)
    assert max(ratios) < 1


@pytest.mark.parametrize("weights", [10**3, 10**6, 10**8, 8 * 10**9, 7 * 10**11])
@pytest.mark.parametrize("share", [1e-5, 1e-3, 1.0])
def test_no_q_is_an_empty_mask(weights: int, share: float) -> None:
    largest = max(1, round(weights * share))
    planned = grid_of(weights, largest)
    assert all(floor(q * largest) >= 1 for q in planned.fractions)
    assert all(0 < q <= 1 for q in (*planned.fractions, *planned.protected))
    assert planned.raised == (floor(grid.STEPS[0] * middle_fraction(weights) * largest) < 1)


SHAPES: dict[str, tuple[str, dict[str, int]]] = {
    "organism": (
        "llama",
        {"hidden_size": Recipe().hidden, "intermediate_size": Recipe().feed_forward,
         "num_hidden_layers": Recipe().layers, "num_attention_heads": Recipe().heads,
         "vocab_size": 1000},
    ),
    "SmolLM2-135M": (
        "llama",
        {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
         "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152},
    ),
    "Gemma-3-270M": (
        "gemma3_text",
        {"hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18,
         "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256,
         "vocab_size": 262144},
    ),
}  # fmt: skip


def coverage_of(model: str) -> Coverage:
    """Return the prunable weights of a shape, without a weight."""
    kind, sides = SHAPES[model]
    with torch.device("meta"):
        return find_prunable(AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sides)))


@pytest.mark.parametrize(
    ("model", "weights", "low", "high"),
    [
        ("organism", None, 2.9e-3, 3.1e-3),
        ("SmolLM2-135M", 106_168_320, 1e-4, 2e-4),
        ("Gemma-3-270M", 100_270_080, 1e-4, 2e-4),
    ],
)
def test_real_shapes_have_a_grid_that_cuts_something(
    model: str, weights: int | None, low: float, high: float
) -> None:
    coverage = coverage_of(model)
    assert weights in (None, coverage.total)
    assert 8 * 10**5 <= coverage.total <= 2 * 10**8
    sizes = [weight.size // len(weight.places) for weight in coverage.weights]
    planned = grid_of(coverage.total, max(sizes))
    assert low <= planned.fractions[3] <= high
    assert not planned.raised
    # The least q takes a weight of some tensor, the largest one of every tensor.
    assert sum(floor(planned.fractions[0] * size) for size in sizes) >= 1
    assert min(floor(planned.fractions[-1] * size) for size in sizes) >= 1


def test_examples_of_commands_are_those_of_a_size_of_the_rule() -> None:
    example = re.compile(r"--q (\S+) --p ([\d.e-]+)")
    shown = {
        path.name: example.findall("".join(re.findall(r'"([^"]*)"', path.read_text("utf-8"))))
        for path in (ROOT / "src" / "resect" / "cli").glob("*.py")
    }
    assert {name for name, pairs in shown.items() if pairs} >= {"locate.py", "score.py"}
    for name, pairs in shown.items():
        for q, p in pairs:
            assert middle_fraction(8 * 10**9) <= float(q) <= middle_fraction(10**6), name
            assert float(p) == pytest.approx(5 * float(q)), name


@pytest.mark.parametrize("page", ["README.md", "docs/real-model.md"])
def test_pages_say_the_same_rule(page: str) -> None:
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    rule = re.search(
        r"q is about (\S+) at one million prunable weights, (\S+) at 100 million and (\S+) at "
        r"8 billion, and p five times q",
        text,
    )
    assert rule is not None, "the page does not state the rule"
    for weights, written in zip((10**6, 10**8, 8 * 10**9), rule.groups(), strict=True):
        assert float(written) == pytest.approx(middle_fraction(weights), rel=0.05)
