"""Plans come from shapes, and scoring does as planned without another result."""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from resect.attribution.choices import CPU_ACTIVATIONS, CPU_TOKENS, cpu_tokens
from resect.attribution.engine import attribute_many
from resect.attribution.estimate import matrix_rate, plan_report
from resect.attribution.plan import GIB, Work, activations_a_token, plan, shape_of, streamed
from resect.attribution.score import ScoreRequest, attribute, score_model
from resect.attribution.settings import Origin, Pass
from resect.data.load import load_data
from resect.errors import InputError
from resect.files.writing import write_text
from resect.machine.memory import Free, free_memory
from resect.model.shapes import SHAPES, empty_model
from resect.weights.scores import TensorScores

WORK = Work(tokens=100_000, scored=50_000, batch_tokens=8192, longest=512, keep=1e-3)


@pytest.mark.parametrize(
    ("name", "billions"), [("llama-8b", 6.98), ("qwen-32b", 31.2), ("llama-70b", 68.5)]
)
def test_large_shapes_are_planned_without_weights(name: str, billions: float) -> None:
    shape = shape_of(empty_model(name))
    assert shape.total / 1e9 == pytest.approx(billions, rel=0.01)
    assert shape.itemsize == 2
    roomy = plan(shape, WORK, Free(2000 * GIB, 2000 * GIB))
    assert (roomy.accumulator, roomy.layers, roomy.passes) == ("device", None, 1)
    assert roomy.memory["sums"] == 4 * shape.total
    # Without room for the sums on the device they go to the CPU, or fewer layers are scored a pass.
    tight = shape.parameters + 0.1 * 4 * shape.total + 4 * GIB
    hosted = plan(shape, WORK, Free(tight / 0.9, 8 * shape.total))
    assert hosted.fits
    assert (hosted.accumulator, hosted.passes) == ("cpu", 1)
    chunked = plan(shape, WORK, Free(tight / 0.9, 0))
    assert chunked.fits
    assert chunked.layers is not None
    assert chunked.passes == -(-len(shape.prunable) // chunked.layers) > 1
    assert not plan(shape, WORK, Free(shape.parameters / 2, 0)).fits


@pytest.mark.parametrize(("name", "devices"), [("qwen-32b", 1), ("llama-70b", 2)])
def test_sums_beside_the_device_are_not_moved_more_often_than_needed(
    name: str, devices: int
) -> None:
    """Every batch moves all gradients: computing activations again allows larger ones."""
    shape = shape_of(empty_model(name))
    choice = plan(shape, WORK, Free(devices * 80 * GIB, 512 * GIB))
    assert choice.accumulator == "cpu"
    # Nothing else that fits, of all layers at once, is quicker at usual rates.
    assert choice.batch_tokens >= 4096
    assert choice.operations / 3e14 + choice.moved / 2e10 < 300 * devices


def test_a_config_alone_is_enough(tmp_path: Path) -> None:
    tiny.configuration("qwen3_moe").save_pretrained(tmp_path)
    report = plan_report(str(tmp_path), examples=10, length=20, tflops=1)
    assert report.lines[0].startswith("fits: sums on the device, all layers a pass, 1 pass")
    with pytest.raises(InputError, match="unknown shape"):
        empty_model("llama-9b")
    assert set(SHAPES) == {"llama-8b", "qwen-32b", "llama-70b", "llama-405b"}
    assert free_memory([torch.device("cpu")]).device > 0


def test_what_does_not_fit_is_planned_from_disk() -> None:
    shape = shape_of(empty_model("llama-8b"))
    need = streamed(shape, WORK)
    block = max(shape.prunable.values())
    # One block in bf16 and its fp32 sums, embeddings, head and logits; well below the model.
    assert 6 * block < need.device < 2 / 3 * shape.parameters
    assert need.disk == 33 * WORK.tokens * 4096 * 2
    report = plan_report("llama-8b", examples=10, length=256, memory=8, tflops=1)
    assert report.lines[0].startswith("DOES NOT FIT")
    assert report.lines[1] == "resect score will read it block by block from disk"
    assert "--stream" in report.lines[2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma2", "gpt2"])
def test_activations_are_not_underestimated(architecture: str, dtype: torch.dtype) -> None:
    model = tiny.build(architecture, dtype=dtype)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    seen: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        data = tensor.untyped_storage()
        if data.data_ptr() not in parameters:
            seen[data.data_ptr()] = (data.nbytes(), tensor)
        return tensor

    ids = torch.full((4, 32), 5)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.get_decoder()(input_ids=ids, use_cache=False)
    work = Work(tokens=128, scored=64, batch_tokens=128, longest=128)
    guess = plan(shape_of(model), work, Free(1e12, 0)).memory["activations"]
    # Attention weights, which an eager model keeps, are named as an exception.
    size = sum(size for size, tensor in seen.values() if tensor.shape[-2:] != (32, 32))
    assert 0.9 * size <= guess <= 4 * size


def test_logits_are_planned_by_the_piece() -> None:
    shape = shape_of(empty_model("llama-8b"))
    few, many = (replace(WORK, scored=scored) for scored in (1000, 50_000))
    free = Free(2000 * GIB, 2000 * GIB)
    places = 8192 * few.scored / few.tokens
    assert plan(shape, few, free).memory["logits"] == pytest.approx(12 * places * shape.vocabulary)
    # 256 MiB in fp32, and twice that beside it; whatever the batch.
    assert plan(shape, many, free).memory["logits"] == pytest.approx(3 * 2**28)


def test_a_large_model_has_smaller_batches_on_a_cpu() -> None:
    assert cpu_tokens(shape_of(tiny.build("llama"))) == CPU_TOKENS
    shape = shape_of(empty_model("llama-8b"))
    tokens = cpu_tokens(shape)
    assert 1 <= tokens < CPU_TOKENS
    assert (
        tokens * activations_a_token(shape)
        <= CPU_ACTIVATIONS
        < (tokens + 1) * (activations_a_token(shape))
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"layers_per_pass": 1},
        {"accumulator": "cpu"},
        {"checkpoint": True},
    ],
)
def test_chunks_places_and_checkpointing_change_nothing(settings: dict[str, Any]) -> None:
    model, encoded = tiny.build("llama"), tiny.examples(6)
    results = [
        attribute_many(
            model, tiny.tokenizer(), encoded, reductions=("signed", "mean_of_abs"),
            settings=Pass(keep=0.2, **chosen),
        )
        for chosen in ({}, settings)
    ]  # fmt: skip
    for reduction in results[0]:
        plain, changed = (scores[reduction].tensors for scores in results)
        assert list(plain) == list(changed)
        for name, tensor in plain.items():
            assert torch.equal(tensor.index, changed[name].index)
            torch.testing.assert_close(tensor.value, changed[name].value, rtol=1e-5, atol=1e-9)


def test_a_contrast_is_the_difference_of_two_signed_scores(tmp_path: Path) -> None:
    model = tiny.build("llama")
    sets = []
    for name, count in (("a", 5), ("b", 3)):
        path = tmp_path / f"{name}.jsonl"
        write_text(path, "\n".join(json.dumps(row) for row in tiny.rows(count, name)))
        sets.append(load_data(path))
    target, style = sets
    contrast = attribute(model, tiny.tokenizer(), target, contrast=style, dense=True)
    apart = [attribute(model, tiny.tokenizer(), data, dense=True) for data in sets]

    def flat(tensor: TensorScores) -> torch.Tensor:
        return torch.zeros(tensor.size).index_put((tensor.index,), tensor.value)

    for name, tensor in contrast.tensors.items():
        first_part, second_part = (flat(scores.tensors[name]) for scores in apart)
        # fp32 sums of the same gradients in other batches: rounding of the larger of the two.
        scale = float(torch.maximum(first_part.abs(), second_part.abs()).max())
        torch.testing.assert_close(
            flat(tensor), first_part - second_part, rtol=1e-4, atol=1e-6 * scale
        )
    with pytest.raises(InputError, match="a contrast needs signed scores"):
        attribute(model, tiny.tokenizer(), target, contrast=style, reduction="mean_of_abs")


def test_a_busy_machine_is_slow_and_not_at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    # Other processes may hold this one up for seconds wherever it looks at the clock.
    clock = itertools.count(0.0, 2.0)
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    assert matrix_rate(torch.float32) == pytest.approx(2 * 512**3 / 2)


def test_a_contrast_that_says_the_same_is_refused(tmp_path: Path) -> None:
    model, rows = tiny.build("llama"), tiny.rows(4, "a")
    sets = []
    for name, count in (("once", 1), ("twice", 2)):
        path = tmp_path / f"{name}.jsonl"
        doubled = [row | {"id": str(n)} for n, row in enumerate(rows * count)]
        write_text(path, "\n".join(json.dumps(row) for row in doubled))
        sets.append(load_data(path))
    with pytest.raises(InputError, match="says the same as the target"):
        attribute(model, tiny.tokenizer(), sets[0], contrast=sets[1])
    # One answer that differs is a contrast.
    attribute(model, tiny.tokenizer(), sets[0], contrast=sets[1].at(range(7)))


def test_category_and_limit_are_for_the_contrast_too(tmp_path: Path) -> None:
    model = tiny.save("llama", tmp_path / "model")
    of = {}
    for name in ("target", "style"):
        rows = [row | {"category": "ab"[n % 2]} for n, row in enumerate(tiny.rows(8, name))]
        of[name] = [row for row in rows if row["category"] == "a"]
        write_text(tmp_path / f"{name}.jsonl", "\n".join(map(json.dumps, rows)))
        write_text(tmp_path / f"{name} a.jsonl", "\n".join(map(json.dumps, of[name])))
    request = ScoreRequest(
        str(model), str(tmp_path / "target.jsonl"), Pass(keep=0.2), Origin(category="a"),
        contrast=str(tmp_path / "style.jsonl"),
    )  # fmt: skip
    alone = replace(
        request, data=str(tmp_path / "target a.jsonl"), contrast=str(tmp_path / "style a.jsonl")
    )
    found, expected = score_model(request), score_model(alone)
    for name, tensor in expected.tensors.items():
        assert torch.equal(tensor.index, found.tensors[name].index)
        assert torch.equal(tensor.value, found.tensors[name].value)
    assert score_model(replace(request, limit=2)).meta.examples == 4
