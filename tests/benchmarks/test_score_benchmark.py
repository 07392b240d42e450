"""The pieces of the benchmark of scoring work, and its arms agree, on a model of two layers."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

FOLDER = Path(__file__).parents[2] / "benchmarks"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


arms = load("arms")
score = load("score")
TINY = arms.Case("tiny", 32, 2, 64, 5, (8, 20))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scores = tmp_path_factory.mktemp("scores")
    for arm in (*arms.REDUCTIONS, "per_layer"):
        arms.measure(TINY, arm, scores)
    return scores


def test_models_are_of_the_size_they_are_called() -> None:
    for case, size in ((score.SMALL, 10e6), (score.MIDDLE, 60e6), (score.LARGE, 200e6)):
        with torch.device("meta"):
            assert arms.build(case).num_parameters() == pytest.approx(size, rel=0.05)


def test_the_same_case_is_the_same_work_again() -> None:
    model, again = arms.build(TINY), arms.build(TINY)
    assert all(map(torch.equal, model.state_dict().values(), again.state_dict().values()))
    assert arms.examples(TINY) == arms.examples(TINY)
    assert {len(example.input_ids) for example in arms.examples(TINY)} <= set(range(8, 21))


def test_the_naive_pass_leaves_the_gradient_of_its_last_batch() -> None:
    model, encoded = arms.build(TINY), arms.examples(TINY)
    arms.naive(model, [*encoded[:3], *encoded])
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_engine_finds_the_masks_of_the_per_layer_algorithm(folder: Path) -> None:
    rows = score.compare_masks(folder)
    assert [row["differ"] for row in rows] == [0] * 6
    assert max(row["removed"] for row in rows) > 20


def test_a_difference_of_masks_is_counted(folder: Path, tmp_path: Path) -> None:
    for file in folder.glob("*.safetensors"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    wrong = score.load_file(folder / "oracle-signed.safetensors")
    save_file({n: -w for n, w in wrong.items()}, tmp_path / "oracle-signed.safetensors")
    assert sum(row["differ"] for row in score.compare_masks(tmp_path)) > 20


def test_memory_parts_count_what_is_there() -> None:
    model = arms.build(TINY)
    parts = arms.memory_parts(model, arms.examples(TINY))
    blocks = model.model.layers
    assert parts["model"] == 4 * model.num_parameters()
    matrices = sum(w.numel() for block in blocks for w in block.parameters() if w.dim() == 2)
    assert parts["accumulator"] == 4 * matrices
    # At least the inputs of the seven linear layers are saved.
    tokens = sum(len(example.input_ids) for example in arms.examples(TINY))
    assert parts["activations"] > 4 * tokens * len(blocks) * 3 * TINY.hidden


def test_operations_are_those_of_every_matrix_and_token() -> None:
    model, encoded = arms.build(TINY), arms.examples(TINY)
    counts = arms.operations(model, encoded)
    blocks = sum(w.numel() for w in model.model.layers.parameters() if w.dim() == 2)
    head = model.lm_head.weight.numel()
    # One batch, padded to the longest: once forward and twice back, two operations a weight.
    tokens = len(encoded) * max(len(example.input_ids) for example in encoded)
    assert counts["naive"] == 6 * tokens * (blocks + head)
    # No padding between rows of one length, and logits of the scored half alone.
    least = sum(6 * len(row.input_ids) * blocks + 6 * row.scored_tokens * head for row in encoded)
    assert least * 0.9 < counts["signed"] < counts["naive"]


def test_selection_is_timed_at_a_hundred_points(folder: Path) -> None:
    assert len(score.GRID) == 100
    assert all(seconds > 0 for seconds in score.time_selection(folder).values())


def test_exponents_are_slopes() -> None:
    rows = [
        {"axis": "tokens", "reduction": "signed", "size": n, "seconds": 3 * n**1.5}
        for n in (1, 2, 4)
    ]
    assert score.exponents(rows)["tokens", "signed"] == pytest.approx(1.5)


def results(seconds: float) -> dict[str, Any]:
    def one(took: float) -> dict[str, Any]:
        return {"seconds": took, "peak": 30, "base": 10, "tokens": 70}

    turn = {"naive": one(1)} | {name: one(seconds) for name in arms.REDUCTIONS}
    case: dict[str, Any] = {"case": TINY._asdict(), "rounds": [turn, turn]}
    case["parts"] = {"bytes": {"model": 15, "accumulator": 10}, "prunable": 100}
    case["per_layer"] = one(2.0)
    case["masks"] = [{"q": 0.1, "p": 0.1, "scope": "tensor", "removed": 9, "differ": 0}]
    case["selection"] = {"load": 0.1, "tensor": 0.1, "model": 2}
    case["held"] = {name: one(1) for name in score.HELD}
    size = {"bytes": 9, "scores": 400, "weights": 400, "kept": 2, "total": 100}
    case["files"] = dict.fromkeys(arms.REDUCTIONS, size)
    rows = [
        {"axis": "tokens", "reduction": "signed", "size": n, "seconds": n**2} for n in (1, 2, 4)
    ]
    return {
        "machine": score.machine(), "threads": 1, "seconds": 1, "cases": [case], "growth": rows,
    }  # fmt: skip


@pytest.mark.parametrize(("seconds", "met"), [(0.54, True), (0.61, False)])
def test_targets_are_met_or_missed(seconds: float, met: bool) -> None:
    outcomes = {target.what: target.met for target in score.targets(results(seconds))}
    assert outcomes["signed, time over naive"] is met
    assert outcomes["mean_of_abs, time over naive"] is met
    assert outcomes["per-layer time over signed"]
    assert outcomes["signed, most memory held"]
    assert outcomes["signed, file over dense scores and weights"]
    assert not outcomes["100 selections per model"]
    assert not outcomes["signed, exponent in tokens"]


def test_the_page_is_filled_between_its_markers() -> None:
    page = (FOLDER.parent / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    content = score.page(results(1.6))
    assert "MISSED" in content
    filled = score.fill(page, content)
    assert content in filled
    assert score.fill(filled, "other") == score.fill(page, "other")
    assert filled.split(score.MARKS[0])[0] == page.split(score.MARKS[0])[0]


def test_a_busy_machine_writes_no_page(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("\n".join(score.MARKS), encoding="utf-8")
    monkeypatch.setattr("os.getloadavg", lambda: (3.1, 0.0, 0.0))
    monkeypatch.setattr("sys.argv", ["score.py", "--page", str(page)])
    monkeypatch.setattr(score, "run", lambda *_arguments: pytest.fail("it was measured"))
    assert score.main() == 2
    assert "load average over a minute is 3.1, and at most 0.5" in capsys.readouterr().err
    assert page.read_text(encoding="utf-8") == "\n".join(score.MARKS)
    assert not score.busy(0.4)
