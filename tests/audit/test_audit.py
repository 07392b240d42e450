"""An audit finds where weights changed, says what the change predicts, and follows its rule."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from typer.testing import CliRunner

import tiny
from resect.audit import AuditRequest, Effects, audit_models, load_tuned
from resect.audit.changes import TensorChange, change_of, shares
from resect.audit.effects import Key, Measured, Models, effects_of
from resect.audit.request import Names
from resect.audit.rule import decide
from resect.cli import app
from resect.data.encode import encode
from resect.data.load import BehaviourSet, load_data
from resect.edit.live import transplanted
from resect.errors import InputError, MismatchError
from resect.model import prunable_tensors
from resect.records import Encoded, Interval
from resect.report.audit import build_audit_report
from resect.weights.controls import magnitude_matched
from resect.weights.mask import Mask, MaskTensor


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
    changed = copy.deepcopy(model)
    draw = torch.Generator().manual_seed(7)
    for name, weight in prunable_tensors(changed).items():
        noise = size * torch.randn(weight.shape, generator=draw)
        if mask is not None:
            chosen = torch.zeros(weight.numel(), dtype=torch.bool)
            chosen[mask.tensors[name].index] = True
            noise *= chosen.view(weight.shape)
        weight.add_(noise)
    return changed


def mean_loss(model: Any, encoded: Sequence[Encoded]) -> float:
    """Return the mean over examples of the model's own loss, one example at a time."""
    losses = []
    for example in encoded:
        ids = torch.tensor([example.input_ids])
        labels = ids.clone()
        labels[:, : example.first_scored] = -100
        with torch.no_grad():
            losses.append(float(model(input_ids=ids, labels=labels).loss))
    return sum(losses) / len(losses)


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
        slow = sum(float(delta[int(index)]) ** 2 for index in entry.index)
        assert row.energy_masked == pytest.approx(slow, rel=1e-5)
        assert row.changed == int((delta != 0).sum())
    whole = shares(rows)["model"][0]
    assert whole.enrichment == pytest.approx(1, abs=0.25)  # noise falls everywhere alike
    assert sum(share.energy for share in shares(rows)["layers"]) == pytest.approx(1)


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
    assert decide(rows, whole, [], None).word == "touched"
    none = change_of(model, prunable_tensors(model), mask, controls)
    assert shares(none)["model"][0].share is None
    assert decide(none, shares(none)["model"][0], [], None).word == "untouched"


def row(energy_masked: float = 0.05) -> TensorChange:
    return TensorChange("a", 0, "q", 100, 5, 100, 5, 1.0, energy_masked, (0.05,) * 9)


def surely(value: float) -> Interval:
    return Interval("rise", value, value - 0.001, value + 0.001)


def risen(rise: Interval, key: Key = "prefilled", prompts: int = 30) -> list[Measured]:
    return [Measured(f"insults, {key}", 0.0, rise.value, rise, prompts, prompts, key)]


def full(before: float = 0.95) -> list[Measured]:
    """Return the rate of a judge that finds the behaviour in the base model's replies already."""
    still = Interval("rise", 0.0, -0.05, 0.05)
    return [Measured("insults, asked plainly", before, before, still, 30, 30, "plain")]


RISE = risen(Interval("rise", 0.2, 0.1, 0.3))
STILL = risen(Interval("rise", 0.0, -0.1, 0.1))
LIKELIER = Effects(
    1.0, surely(-0.1), surely(-0.02), surely(-0.08), (-0.01, *[0.001] * 8), n=30, prompts=30,
    preserve=surely(-0.02), beyond=surely(-0.08),
)  # fmt: skip


@pytest.mark.parametrize(
    ("effects", "measured", "word"),
    [
        (LIKELIER, STILL, "touched"),
        (LIKELIER, [], "touched"),
        (LIKELIER, RISE, "reactivated"),
        (replace(LIKELIER, whole=surely(0.1)), STILL, "untouched"),  # less likely in all
        (replace(LIKELIER, whole=surely(-0.009)), STILL, "untouched"),  # hardly likelier
        (replace(LIKELIER, whole=Interval("rise", -0.1, -0.3, 0.1)), STILL, "untouched"),
        # Everything became likelier: the preserve set by as much, or by more.
        (replace(LIKELIER, beyond=surely(0.02)), STILL, "untouched"),
        (replace(LIKELIER, beyond=surely(-0.009)), STILL, "untouched"),
        (replace(LIKELIER, beyond=Interval("rise", -0.1, -0.3, 0.1)), STILL, "untouched"),
        (replace(LIKELIER, beyond=None, preserve=None), STILL, "undecided"),
        (replace(LIKELIER, whole=surely(0.1), beyond=None), STILL, "untouched"),
        (replace(LIKELIER, inside=surely(0.02)), STILL, "untouched"),  # not by the mask
        (replace(LIKELIER, inside=Interval("rise", -0.02, -0.1, 0.1)), STILL, "untouched"),
        (replace(LIKELIER, inside=Interval("rise", None)), STILL, "untouched"),
        (replace(LIKELIER, matched=(-0.03, 0.001)), STILL, "untouched"),  # not more than others
        (replace(LIKELIER, matched=(-0.01,) * 8), STILL, "undecided"),
        # Too few prompts, however many rows.
        (replace(LIKELIER, n=400, prompts=19), STILL, "undecided"),
        (LIKELIER, risen(Interval("rise", 1.0, 0.4, 1.0), prompts=4), "touched"),
        (None, risen(Interval("rise", 1.0, 0.4, 1.0), prompts=4), "undecided"),
        (None, [], "untouched"),
        (None, RISE, "reactivated"),
        (None, risen(Interval("rise", 0.2, -0.01, 0.3)), "untouched"),
        (None, risen(Interval("rise", 0.05, 0.01, 0.1)), "untouched"),
        (None, risen(Interval("rise", None)), "untouched"),
        (None, risen(Interval("rise", 0.9, 0.8, 1.0), "refusal"), "untouched"),
        # A rate that is at its end cannot rise; one of two that can is enough.
        (None, full(), "undecided"),
        (LIKELIER, full(), "touched"),
        (replace(LIKELIER, whole=surely(0.1)), full(), "undecided"),
        (None, [*full(), *STILL], "untouched"),
        (None, [*full(), *RISE], "reactivated"),
        (None, full(0.9), "untouched"),
    ],
)
def test_the_rule(effects: Effects | None, measured: list[Measured], word: str) -> None:
    rows = [row()]
    names = Names("insults", "small talk")
    verdict = decide(rows, shares(rows)["model"][0], measured, effects, names=names)
    assert verdict.word == word
    text = " ".join(verdict.reasons)
    assert "harm" not in text  # the behaviour has the name that it was given
    rates = [behaviour for behaviour in measured if behaviour.key != "refusal"]
    assert ("cannot be seen" in text) == (word != "reactivated" and (effects is None or not rates))
    if word == "undecided":
        assert re.search("give (more|a base)|without --preserve|higher --matched", text)
    if effects is not None and word == "touched":
        assert "answers of insults became likelier" in text
        assert "small talk" in text


def test_a_mask_that_holds_most_of_the_change_is_touched() -> None:
    fewer = replace(row(0.11), energy_controls=(0.05,) * 8)
    for changed, word in (
        (row(0.11), "touched"),
        (row(0.09), "untouched"),
        (fewer, "undecided"),
    ):
        rows = [changed]
        assert decide(rows, shares(rows)["model"][0], [], None).word == word


@pytest.mark.parametrize("architecture", ["llama", "qwen3_moe"])
def test_values_are_lent_to_a_set_and_given_back(architecture: str) -> None:
    model = tiny.build(architecture)
    mask, tuned = draw_mask(model), moved(model, 0.1)
    weights, donor = prunable_tensors(model), prunable_tensors(tuned)
    before = {name: weight.clone() for name, weight in weights.items()}
    with pytest.raises(KeyError), transplanted(weights, mask, donor):
        for name, weight in before.items():
            chosen = torch.zeros(weight.numel(), dtype=torch.bool)
            chosen[mask.tensors[name].index] = True
            slow = torch.where(chosen.view(weight.shape), donor[name], weight)
            assert torch.equal(prunable_tensors(model)[name], slow)
        raise KeyError
    assert all(torch.equal(weights[name], weight) for name, weight in before.items())


@pytest.mark.parametrize("architecture", ["llama", "qwen3_moe"])
def test_parts_of_a_change_are_what_models_with_them_show(
    architecture: str, tmp_path: Path
) -> None:
    model, tokenizer = tiny.build(architecture), tiny.tokenizer()
    tuned = moved(model, 0.1)
    mask = draw_mask(model)
    control = magnitude_matched(mask, prunable_tensors(model), label="0")
    sets = {name: load_data(str(path)) for name, path in files(tmp_path).items()}
    request = AuditRequest("", "", batch_size=2)
    effects = effects_of(request, Models(model, tuned, tokenizer), mask, [control], sets)

    def encoded(data: BehaviourSet) -> list[Encoded]:
        return encode(data.split("evaluation").examples, tokenizer, format="chat")

    def mixed(into: Any, chosen: Mask, out_of: Any) -> Any:
        blend = copy.deepcopy(into)
        for name, entry in chosen.tensors.items():
            spots = torch.unravel_index(entry.index, entry.shape)
            prunable_tensors(blend)[name][spots] = prunable_tensors(out_of)[name][spots]
        return blend

    harmful, benign = encoded(sets["target"]), encoded(sets["preserve"])
    before = mean_loss(model, harmful)
    assert effects is not None
    assert effects.before == pytest.approx(before, abs=1e-5)
    assert effects.n == len(harmful) == 5
    for value, variant in (
        (effects.whole.value, tuned),
        (effects.inside.value, mixed(model, mask, tuned)),
        (effects.outside.value, mixed(tuned, mask, model)),
        (effects.matched[0], mixed(model, control, tuned)),
    ):
        assert value == pytest.approx(mean_loss(variant, harmful) - before, abs=1e-5)
        assert abs(value or 0.0) > 1e-4
    assert effects.benign is not None
    slow = mean_loss(mixed(model, mask, tuned), benign) - mean_loss(model, benign)
    assert effects.benign.value == pytest.approx(slow, abs=1e-5)
    moved_benign = mean_loss(tuned, benign) - mean_loss(model, benign)
    assert effects.preserve is not None
    assert effects.preserve.value == pytest.approx(moved_benign, abs=1e-5)
    assert effects.beyond is not None
    assert effects.beyond.value == pytest.approx(
        mean_loss(tuned, harmful) - before - moved_benign, abs=1e-5
    )
    assert effects.beyond.low is not None
    assert effects.beyond.high is not None
    assert effects.whole.low is not None
    assert effects.whole.high is not None
    # A difference of two sets is less certain than either.
    assert effects.beyond.high - effects.beyond.low > effects.whole.high - effects.whole.low
    assert effects.elsewhere is None  # nothing else was moved
    assert effects.inside.low is not None
    assert effects.inside.high is not None
    assert effects.inside.low < effects.inside.high
    assert effects_of(request, Models(model, tuned, tokenizer), mask, [], {}) is None


def files(folder: Path) -> dict[str, Path]:
    paths = {}
    for name, prefix in (("target", "h"), ("preserve", "b")):
        rows = tiny.rows(6, prefix, split="calibration") + tiny.rows(
            5, f"{prefix}e", split="evaluation"
        )
        paths[name] = folder / f"{name}.jsonl"
        paths[name].write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return paths


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
    content = json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))
    assert content["verdict"]["word"] == "undecided"  # five prompts say nothing
    assert "harm" not in json.dumps(content["verdict"]) + json.dumps(content["measured"])
    assert content["measured"][0]["name"] == "target, asked plainly"
    changed = {row["name"].split(".")[-2] for row in content["changes"] if row["changed"]}
    assert changed == {"q_proj"}
    assert [behaviour["n"] for behaviour in content["measured"]] == [5] * 6
    assert content["measured"][-1]["key"] == "preserve refusal"
    assert content["effects"]["n"] == 5
    assert len(content["effects"]["matched"]) == 19
    # The same tokenizer, and nothing moved outside of the blocks.
    (note,) = content["notes"]
    assert "were cut off by the limit on tokens" in note
    assert "cut off" in done.output
    for row in content["measured"]:
        assert (row["cut_off"] is None) == row["key"].endswith("loss")
    page = (tmp_path / "out" / "audit.html").read_text(encoding="utf-8")
    assert content["verdict"]["word"] in page
    assert page.count("inside one of 19 matched sets alone, mean") == 1
    # The sets one by one are folded away.
    folded = page.split("inside each of the 19 matched sets alone")[-1].split("</table>")[0]
    assert folded.count("<tr><td") == 19
    content["facts"]["tuned"] = "<script>alert(1)</script>"
    (tmp_path / "out" / "audit.json").write_text(json.dumps(content), encoding="utf-8")
    page = build_audit_report(tmp_path / "out").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert page.count("<script>") == 1  # the page's own, whose hash the policy names


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
    for index, (fail_on, code) in enumerate((("touched", 3), ("reactivated", 0))):
        options = ["--fail-on", fail_on, "-o", str(tmp_path / f"o{index}")]
        done = CliRunner().invoke(app, [*words, *options], standalone_mode=False)
        assert done.exception is None
        assert done.return_value == code


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    base = tiny.save("llama", tmp_path / "base")
    draw_mask(tiny.build("llama", seed=1)).save(tmp_path / "m.mask.safetensors")
    stranger = tiny.save("gpt2", tmp_path / "other")
    with pytest.raises(InputError, match="no weights to look at"):
        audit_models(AuditRequest(str(base), str(base)), tmp_path / "o")
    wrong = AuditRequest(str(base), str(base), mask=tmp_path / "m.mask.safetensors")
    with pytest.raises(MismatchError, match="another value"):
        audit_models(wrong, tmp_path / "o")
    draw_mask(tiny.build("llama")).save(tmp_path / "m.mask.safetensors")
    with pytest.raises(MismatchError, match="same architecture"):
        audit_models(AuditRequest(str(base), str(stranger), mask=wrong.mask), tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_an_audit_says_how_a_fitted_judge_errs(tmp_path: Path) -> None:
    from labelled import rows as labelled
    from resect.evaluation.judges.fitted_fit import FitRequest, fit_judge

    labels = tmp_path / "labels.jsonl"
    labels.write_text("".join(json.dumps(row) + "\n" for row in labelled()), encoding="utf-8")
    fit_judge(FitRequest((labels,)), tmp_path / "harm.json")
    base, data = tiny.save("llama", tmp_path / "base"), files(tmp_path)
    words = ["audit", str(base), str(base), "--target", str(data["target"]), "--preserve",
             str(data["preserve"]), "--q", "0.05", "--p", "0.05", "--max-new-tokens", "4",
             "--judge", f"fitted:{tmp_path / 'harm.json'}"]  # fmt: skip
    done = CliRunner().invoke(app, [*words, "-o", str(tmp_path / "out")], standalone_mode=False)
    assert done.exception is None, done.output
    content = json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))
    assert [row["category"] for row in content["judge_errors"]] == ["all", "looms", "tides"]
    page = (tmp_path / "out" / "audit.html").read_text(encoding="utf-8")
    assert "How the judge errs, on labelled replies" in page
    assert "not corrected for this" in page
    words[-1] = "keyword"
    done = CliRunner().invoke(app, [*words, "-o", str(tmp_path / "plain")], standalone_mode=False)
    assert done.exception is None, done.output
    assert "judge_errors" not in (tmp_path / "plain" / "audit.json").read_text(encoding="utf-8")
