"""An audit finds where weights changed, says what the change predicts, and follows its rule."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from typer.testing import CliRunner

import tiny
from resect.audit import AuditRequest, audit_models, load_tuned
from resect.audit.changes import TensorChange, change_of, mean_loss, shares
from resect.audit.rule import Thresholds, decide
from resect.cli import app
from resect.errors import InputError, MismatchError
from resect.mask import Mask, MaskTensor
from resect.model import prunable_tensors
from resect.records import Interval
from resect.report.audit import build_audit_report
from resect.selection import magnitude_matched


def draw_mask(model: Any, share: float = 0.05) -> Mask:
    draw = torch.Generator().manual_seed(3)
    tensors = {}
    for name, weight in prunable_tensors(model).items():
        index = (torch.rand(weight.numel(), generator=draw) < share).nonzero()[:, 0]
        value = weight.reshape(-1)[index].clone()
        tensors[name] = MaskTensor(
            tuple(weight.shape), index, value, torch.zeros(len(index), dtype=torch.uint8)
        )
    return Mask(tensors, {})


def moved(model: Any, size: float, mask: Mask | None = None) -> Any:
    """Return a copy with noise on all prunable weights, or on those of a mask alone."""
    other = copy.deepcopy(model)
    draw = torch.Generator().manual_seed(7)
    for name, weight in prunable_tensors(other).items():
        noise = size * torch.randn(weight.shape, generator=draw)
        if mask is not None:
            chosen = torch.zeros(weight.numel(), dtype=torch.bool)
            chosen[mask.tensors[name].index] = True
            noise *= chosen.view(weight.shape)
        weight.add_(noise)
    return other


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3_moe"])
def test_the_change_is_counted_as_a_loop_counts_it(architecture: str) -> None:
    model = tiny.build(architecture)
    mask = draw_mask(model)
    controls = [magnitude_matched(mask, prunable_tensors(model), label=str(n)) for n in range(3)]
    tuned = prunable_tensors(moved(model, 0.01))
    rows = change_of(model, tuned, mask, controls)
    before = prunable_tensors(model)
    for row in rows:
        delta = (tuned[row.name] - before[row.name]).reshape(-1).double()
        entry = mask.tensors[row.name]
        assert row.energy == pytest.approx(float((delta**2).sum()), rel=1e-5)
        slow = sum(float(delta[int(at)]) ** 2 for at in entry.index)
        assert row.energy_masked == pytest.approx(slow, rel=1e-5)
        assert row.changed == int((delta != 0).sum())
    whole = shares(rows)["model"][0]
    assert whole.enrichment == pytest.approx(1, abs=0.25)  # noise falls everywhere alike
    assert sum(part.energy for part in shares(rows)["layers"]) == pytest.approx(1)


@pytest.mark.parametrize("architecture", ["llama", "qwen3_moe"])
def test_the_predicted_change_is_the_measured_one(architecture: str) -> None:
    model = tiny.build(architecture)
    mask, encoded = draw_mask(model), tiny.examples(4)
    needed = [parameter.requires_grad for parameter in model.parameters()]
    residuals = []
    for size in (1e-3, 5e-4, 1e-4):
        tuned = moved(model, size)
        rows = change_of(model, prunable_tensors(tuned), mask, [], encoded)
        predicted = sum(row.predicted for row in rows)
        measured = mean_loss(tuned, encoded) - mean_loss(model, encoded)
        if size < 5e-4:
            assert predicted == pytest.approx(measured, rel=0.2, abs=2e-5)
        residuals.append(abs(predicted - measured))
        inside = moved(model, size, mask)
        alone = change_of(model, prunable_tensors(inside), mask, [], encoded)
        assert sum(r.predicted for r in alone) == pytest.approx(
            sum(r.predicted_masked for r in rows), rel=1e-2, abs=1e-3 * size
        )
    # What first order leaves out is of second order: half the step leaves a quarter.
    # At the smallest step fp32 losses cannot tell it from rounding.
    assert residuals[0] > 0
    assert residuals[1] == pytest.approx(residuals[0] / 4, rel=0.25)
    assert [parameter.requires_grad for parameter in model.parameters()] == needed
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_change_of_the_harm_set_alone_is_found() -> None:
    model = tiny.build("llama")
    mask = draw_mask(model)
    controls = [magnitude_matched(mask, prunable_tensors(model), label=str(n)) for n in range(9)]
    rows = change_of(model, prunable_tensors(moved(model, 0.01, mask)), mask, controls)
    whole = shares(rows)["model"][0]
    assert whole.share == pytest.approx(1)
    assert whole.p_value == pytest.approx(0.1)
    assert decide(rows, whole, {}, None).word == "touched"
    none = change_of(model, prunable_tensors(model), mask, controls)
    assert shares(none)["model"][0].share is None
    assert decide(none, shares(none)["model"][0], {}, None).word == "untouched"


def row(inside: float, matched: tuple[float, ...]) -> TensorChange:
    return TensorChange("a", 0, "q", 100, 5, 100, 5, 1.0, 0.05, (0.05, 0.05), 0.0, inside, matched)


RISE = {"prefilled": Interval("rise", 0.2, 0.1, 0.3)}


@pytest.mark.parametrize(
    ("inside", "rises", "word"),
    [
        (0.0, {}, "untouched"),
        (-0.02, {}, "touched"),
        (-0.004, {}, "untouched"),  # less than the smallest share of the loss
        (0.02, {}, "untouched"),  # away from harm
        (0.0, RISE, "reactivated"),
        (-0.02, RISE, "reactivated"),
        (0.0, {"prefilled": Interval("rise", 0.2, -0.01, 0.3)}, "untouched"),
        (0.0, {"prefilled": Interval("rise", 0.05, 0.01, 0.1)}, "untouched"),
        (0.0, {"prefilled": Interval("rise", None)}, "untouched"),
    ],
)
def test_the_rule(inside: float, rises: dict[str, Interval], word: str) -> None:
    rows = [row(inside, (-0.001, 0.001))]
    assert decide(rows, shares(rows)["model"][0], rises, 1.0).word == word
    louder = [row(inside, (-0.5, 0.001))]  # a matched set moved further: no evidence
    found = decide(louder, shares(louder)["model"][0], {}, 1.0, Thresholds())
    assert found.word == "untouched"


def files(folder: Path) -> dict[str, Path]:
    found = {}
    for name, prefix in (("target", "h"), ("preserve", "b")):
        rows = tiny.rows(6, prefix, split="calibration") + tiny.rows(
            5, f"{prefix}e", split="evaluation"
        )
        found[name] = folder / f"{name}.jsonl"
        found[name].write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return found


def test_folders_and_an_unmerged_adapter_on_the_command_line(tmp_path: Path) -> None:
    base, data = tiny.save("llama", tmp_path / "base"), files(tmp_path)
    adapted = peft.get_peft_model(
        tiny.build("llama"),
        peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False,
                        task_type="CAUSAL_LM"),
    )  # fmt: skip
    adapted.save_pretrained(tmp_path / "adapter")
    merged = prunable_tensors(adapted.merge_and_unload())
    loaded = prunable_tensors(load_tuned(str(base), str(tmp_path / "adapter")))
    assert all(torch.equal(weight, loaded[name]) for name, weight in merged.items())
    words = ["audit", str(base), str(tmp_path / "adapter"), "--target", str(data["target"]),
             "--preserve", str(data["preserve"]), "--q", "0.05", "--p", "0.05", "--skip", "2",
             "--max-new-tokens", "4"]  # fmt: skip
    done = CliRunner().invoke(app, [*words, "-o", str(tmp_path / "out")], standalone_mode=False)
    assert done.exception is None, done.output
    facts = json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))
    assert facts["verdict"]["word"] in ("untouched", "touched", "reactivated")
    changed = {row["name"].split(".")[-2] for row in facts["changes"] if row["changed"]}
    assert changed == {"q_proj"}
    assert [one["n"] for one in facts["measured"]] == [5] * 5
    page = (tmp_path / "out" / "audit.html").read_text(encoding="utf-8")
    assert facts["verdict"]["word"] in page
    facts["facts"]["tuned"] = "<script>alert(1)</script>"
    (tmp_path / "out" / "audit.json").write_text(json.dumps(facts), encoding="utf-8")
    assert "<script>" not in build_audit_report(tmp_path / "out").read_text(encoding="utf-8")


def test_a_cut_model_as_base_and_exit_codes(tmp_path: Path) -> None:
    model = tiny.build("llama")
    mask = draw_mask(model)
    mask.save(tmp_path / "m.mask.safetensors")
    tiny.save("llama", tmp_path / "whole")
    for name, entry in mask.tensors.items():
        prunable_tensors(model)[name].view(-1)[entry.index] = 0
    model.save_pretrained(tmp_path / "cut")
    tiny.tokenizer().save_pretrained(tmp_path / "cut")
    words = ["audit", str(tmp_path / "cut"), str(tmp_path / "whole"), "--mask",
             str(tmp_path / "m.mask.safetensors")]  # fmt: skip
    for at, (fail_on, code) in enumerate((("touched", 3), ("reactivated", 0))):
        more = ["--fail-on", fail_on, "-o", str(tmp_path / f"o{at}")]
        done = CliRunner().invoke(app, [*words, *more], standalone_mode=False)
        assert done.exception is None
        assert done.return_value == code


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    base = tiny.save("llama", tmp_path / "base")
    draw_mask(tiny.build("llama", seed=1)).save(tmp_path / "m.mask.safetensors")
    other = tiny.save("gpt2", tmp_path / "other")
    with pytest.raises(InputError, match="no harm set"):
        audit_models(AuditRequest(str(base), str(base)), tmp_path / "o")
    wrong = AuditRequest(str(base), str(base), mask=tmp_path / "m.mask.safetensors")
    with pytest.raises(MismatchError, match="another value"):
        audit_models(wrong, tmp_path / "o")
    draw_mask(tiny.build("llama")).save(tmp_path / "m.mask.safetensors")
    with pytest.raises(MismatchError, match="same architecture"):
        audit_models(AuditRequest(str(base), str(other), mask=wrong.mask), tmp_path / "o")
    assert not (tmp_path / "o").exists()
