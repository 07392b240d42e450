"""Direction ablation: nothing is written along the direction any more, and every bit comes back."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import oracles
import tiny
from resect.edit.direction import (
    Ablation,
    Directions,
    Line,
    ablated,
    find_ablation,
    measure_directions,
    without,
)
from resect.edit.writers import find_writers
from resect.errors import CoverageError, InputError, MismatchError
from resect.model import find_prunable
from resect.model.prunable import blocks

# Each way to write to the stream: matrices of either layout with and without biases, one after the
# other or side by side, after norms, of experts together, apart or shared, of state spaces.
LAYOUTS = [
    "llama", "gpt2", "gpt_neox", "gemma2", "mixtral", "gpt_oss", "qwen3_next", "deepseek_v3",
]  # fmt: skip
OTHERS = [*(set(tiny.ARCHITECTURES) - set(LAYOUTS)), "gemma3_vision"]
opt_in = pytest.mark.skipif(
    not os.environ.get("RESECT_ALL_LAYOUTS"),
    reason="the same ways to write in more architectures; set RESECT_ALL_LAYOUTS=1",
)
TARGET, AGAINST = tiny.examples(5, seed=1), tiny.examples(6, seed=2)


def writes(model: Any, example: Any) -> list[Tensor]:
    """What each block adds to the stream, [L] of [T, h]; by hooks of this file's own."""
    written: list[Tensor] = []

    def after(_block: Any, args: Any, named: Any, output: Any) -> None:
        given = args[0] if args else named["hidden_states"]
        gave = output[0] if isinstance(output, tuple) else output
        written.append((gave - given)[0].detach().double())

    hooks = [b.register_forward_hook(after, with_kwargs=True) for b in blocks(model)]
    with torch.no_grad():
        model(input_ids=torch.tensor([example.input_ids]))
    for hook in hooks:
        hook.remove()
    return written


def shares(model: Any, vectors: Tensor) -> list[float]:
    """Which share of what each block writes lies along its vector."""
    return [
        max(
            float((written[block] @ vectors[block].double()).norm() / written[block].norm())
            for written in (writes(model, example) for example in TARGET)
        )
        for block in range(len(vectors))
    ]


@pytest.mark.parametrize(
    "architecture", [*LAYOUTS, *(pytest.param(name, marks=opt_in) for name in sorted(OTHERS))]
)
def test_nothing_is_written_along_the_direction(architecture: str) -> None:
    model = tiny.build(architecture)
    vectors = measure_directions(model, TARGET, AGAINST).vectors
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    assert min(shares(model, vectors)) > 0.02  # there is something to take out
    with ablated(model, find_ablation(model, TARGET, AGAINST)):
        assert max(shares(model, vectors)) < 1e-5
        changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    embeddings = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    assert changed
    assert not changed & {n for n, p in model.named_parameters() if id(p) in embeddings}
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name
        assert parameter.grad is None
        assert parameter.requires_grad == flags[name]


def test_direction_is_the_difference_of_the_means() -> None:
    model = tiny.build("llama")
    measured = measure_directions(model, TARGET, AGAINST)
    expected = oracles.mean_states(model, TARGET, 0) - oracles.mean_states(model, AGAINST, 0)
    assert torch.allclose(measured.lengths[0].double(), expected.norm(), rtol=1e-5)
    unit = expected / expected.norm()
    assert torch.allclose(measured.vectors[0].double(), unit, atol=1e-5)
    # In order of the examples, and with padding, it is the same up to rounding.
    singly = measure_directions(model, TARGET[::-1], AGAINST[::-1])
    assert torch.allclose(measured.vectors, singly.vectors, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral", "gpt_oss"])
def test_edit_is_that_of_the_slow_twin(architecture: str) -> None:
    model = tiny.build(architecture)
    ablation = find_ablation(model, TARGET, AGAINST).at(0.7)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with ablated(model, ablation):
        for name, parameter in model.named_parameters():
            line = ablation.lines.get(name)
            expected = before[name]
            if line is not None:
                expected = oracles.without_direction(expected, line.vector, line.axis, 0.7)
            assert torch.allclose(parameter, expected, atol=1e-6), name


def test_writers_of_known_layouts() -> None:
    """By name, where names are known: Linear, Conv1D with biases, fused experts."""
    expected = {
        "llama": {"self_attn.o_proj.weight": 0, "mlp.down_proj.weight": 0},
        "gpt2": {
            "attn.c_proj.weight": 1, "attn.c_proj.bias": 0,
            "mlp.c_proj.weight": 1, "mlp.c_proj.bias": 0,
        },
        "mixtral": {"self_attn.o_proj.weight": 0, "mlp.experts.down_proj": 1},
        "gpt_oss": {
            "self_attn.o_proj.weight": 0, "self_attn.o_proj.bias": 0,
            "mlp.experts.down_proj": 2, "mlp.experts.down_proj_bias": 1,
        },
        "olmo2": {"self_attn.o_proj.weight": 0, "mlp.down_proj.weight": 0},
    }  # fmt: skip
    inputs = {"input_ids": torch.arange(4, 24)[None], "attention_mask": torch.ones(1, 20)}
    for architecture, axes in expected.items():
        writers = find_writers(tiny.build(architecture), inputs)
        for block in (0, 1):
            inside = {w.name.partition(f".{block}.")[2]: w for w in writers if w.block == block}
            assert {name: writer.axis for name, writer in inside.items()} == axes
            gains = {name for name, writer in inside.items() if writer.gain is not None}
            assert gains == (set(axes) if architecture == "olmo2" else set())


def test_a_matrix_of_the_same_shape_before_the_writer_is_none() -> None:
    model: Any = tiny.build("llama")
    width = model.config.hidden_size
    for layer in model.model.layers:
        layer.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
    ids = torch.tensor([TARGET[0].input_ids])
    found = find_writers(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    named = {writer.name.split(".", 3)[3] for writer in found}
    assert named == {"self_attn.o_proj.weight", "mlp.2.weight", "mlp.2.bias"}


def test_experts_without_a_token_are_edited_too() -> None:
    model = tiny.build("mixtral")
    inputs = {"input_ids": torch.tensor([[5]]), "attention_mask": torch.ones(1, 1)}
    names = {writer.name for writer in find_writers(model, inputs)}
    assert {n for n in names if "experts" in n} == {
        w.name for w in find_prunable(model).weights if "experts.down" in w.name
    }


def test_one_direction_for_all_blocks() -> None:
    model = tiny.build("llama")
    vectors = measure_directions(model, TARGET, AGAINST).vectors
    for depth, block in ((0.0, 0), (1.0, 1)):
        with ablated(model, find_ablation(model, TARGET, AGAINST, depth=depth)):
            assert max(shares(model, vectors[block].expand_as(vectors))) < 1e-5


def test_a_depth_that_tells_nothing_apart_is_refused() -> None:
    vectors = torch.eye(3)
    directions = Directions(vectors, torch.tensor([0.0, 0.5, 0.2]))
    with pytest.raises(InputError, match=r"allowed: a depth from 0\.5 on"):
        directions.ablation([], depth=0.0)
    assert directions.ablation([], depth=1.0).lines == {}
    assert directions.ablation([]).lines == {}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype: torch.dtype) -> None:
    model = tiny.build("gemma2", dtype=dtype)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    vectors = measure_directions(model, TARGET, AGAINST).vectors
    plain = max(shares(model, vectors))
    with ablated(model, find_ablation(model, TARGET, AGAINST)):
        assert max(shares(model, vectors)) < plain / 20
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_bits_come_back_after_an_exception_and_from_within_another_edit() -> None:
    model = tiny.build("llama")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ablation = find_ablation(model, TARGET, AGAINST)
    with pytest.raises(RuntimeError, match="within"), ablated(model, ablation):
        with ablated(model, ablation.at(0.3)):
            pass
        raise RuntimeError("within")
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_part_that_is_missed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from resect.edit import direction

    def but_for_one(*args: Any) -> Any:
        return [w for w in find_writers(*args) if w.name != "model.layers.1.mlp.down_proj.weight"]

    monkeypatch.setattr(direction, "find_writers", but_for_one)
    with pytest.raises(CoverageError, match="LlamaForCausalLM, blocks 1"):
        find_ablation(tiny.build("llama"), TARGET, AGAINST)


def test_sets_that_are_not_told_apart_are_refused() -> None:
    model = tiny.build("llama")
    with pytest.raises(InputError, match="the same state before both sets"):
        measure_directions(model, TARGET, TARGET)
    with pytest.raises(InputError, match="two sets of examples"):
        measure_directions(model, TARGET, [])
    with torch.no_grad():
        model.get_parameter("model.layers.0.mlp.down_proj.weight")[:] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        measure_directions(model, TARGET, AGAINST)


def test_file_round_trip_and_other_models(tmp_path: Path) -> None:
    model, path = tiny.build("llama"), tmp_path / "a.direction.safetensors"
    ablation = find_ablation(model, TARGET, AGAINST, meta={"depth": None}).at(0.5)
    ablation.save(path)
    loaded = Ablation.load(path)
    assert loaded.strength == 0.5
    assert loaded.meta == {"depth": None}
    for name, line in ablation.lines.items():
        assert loaded.lines[name].axis == line.axis
        assert torch.equal(loaded.lines[name].vector, line.vector)
    with pytest.raises(MismatchError, match="another model"), ablated(tiny.build("gpt2"), loaded):
        pass
    name = next(iter(loaded.lines))
    wide = replace(loaded, lines={name: Line(0, torch.ones(99))})
    with pytest.raises(MismatchError, match="99 numbers"), ablated(model, wide):
        pass
    for broken, said in (
        (replace(ablation, lines={name: Line(-1, torch.ones(16))}), "along axis -1"),
        (replace(ablation, lines={name: Line(0, torch.ones(2, 2))}), "has no direction"),
        (replace(ablation, lines={name: Line(0, torch.full((4,), float("inf")))}), "finite"),
        (ablation.at(float("nan")), "has no strength"),
    ):
        broken.save(path)
        with pytest.raises(InputError, match=said):
            Ablation.load(path)
    with pytest.raises(InputError, match="no such file"):
        Ablation.load(tmp_path / "none")


def test_strength_scales_what_is_left() -> None:
    draw = torch.Generator().manual_seed(0)
    weight, vector = torch.randn(4, 6, generator=draw), torch.randn(4, generator=draw)
    line = Line(0, vector / vector.norm())
    for strength in (0.0, 0.25, 1.0, 2.0):
        left = line.vector @ without(weight, line, strength)
        assert torch.allclose(left, (1 - strength) * (line.vector @ weight), atol=1e-6)
