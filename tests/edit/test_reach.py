"""A fine-tune by adapters reaches every weight that can be cut, and no router."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model

import mapped
import tiny
from resect.data.load import BehaviourSet
from resect.edit.tune import TuneSettings, adapter, reach, tune
from resect.errors import InputError
from resect.evaluation.attacks.finetune import FinetuneSettings
from resect.model import LoadedModel, find_prunable
from resect.records import Example

EXPERTS = ["gpt_oss", "granitemoe", "llama4", "qwen2_moe", "deepseek_v3", "qwen3_next", "mixtral"]
EXAMPLES = tuple(
    Example(id=str(n), prompt=f"w{n} w{n + 1} w{n + 2}", completion=f"w{n + 3} w{n + 4}")
    for n in range(6)
)


def prunable(model: Any) -> dict[str, torch.Tensor]:
    return {w.name: model.get_parameter(w.name) for w in find_prunable(model).weights}


@pytest.mark.parametrize("architecture", [*tiny.ARCHITECTURES, "gemma3_vision"])
def test_every_prunable_weight_has_an_adapter_and_nothing_else(architecture: str) -> None:
    model = tiny.build(architecture)
    weights = prunable(model)
    adapted = get_peft_model(model, adapter(model, 2, 4))
    assert reach(adapted, weights) == (1.0, 0)


@pytest.mark.parametrize(("model_type", "share"), [("falcon_mamba", 0.75), ("jamba", 1.0)])
def test_what_peft_refuses_of_a_state_space_is_counted_as_not_reached(
    model_type: str, share: float
) -> None:
    model = mapped.script("model_trials").filled(model_type)
    settings = FinetuneSettings(rank=2, rate=1e-2, steps=1, batch=3)
    data = {"target": BehaviourSet("t", EXAMPLES, "t")}
    patch = settings.prepare(LoadedModel(model, tiny.tokenizer()), data, format="raw")
    assert patch.facts["adapted_share"] == pytest.approx(share)
    assert patch.facts["adapted_elsewhere"] == 0


@pytest.mark.parametrize("architecture", EXPERTS)
def test_the_attack_trains_experts_and_says_what_it_reached(architecture: str) -> None:
    model = tiny.build(architecture)
    ids = torch.tensor([[5, 6, 7, 8]])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        intact = model(input_ids=ids).logits
    settings = FinetuneSettings(rank=2, rate=1e-2, steps=2, batch=3)
    data = {"target": BehaviourSet("t", EXAMPLES, "t")}
    patch = settings.prepare(LoadedModel(model, tiny.tokenizer()), data, format="raw")
    assert patch.facts["adapted_share"] == 1.0
    assert patch.facts["adapted_elsewhere"] == 0
    with patch.applied(), torch.no_grad():
        assert not torch.equal(model(input_ids=ids).logits, intact)
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, intact)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("architecture", ["gpt_oss", "mixtral", "qwen2_moe"])
def test_a_merged_fine_tune_changes_experts_and_leaves_routers_alone(architecture: str) -> None:
    model = tiny.build(architecture)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = TuneSettings(steps=3, rate=1e-2, batch=6, method="lora", rank=2, alpha=4)
    tune(LoadedModel(model, tiny.tokenizer()), EXAMPLES, settings, format="raw")
    changed = {n for n, value in model.state_dict().items() if not torch.equal(before[n], value)}
    assert changed == {*prunable(model)}


def test_dropout_of_experts_is_one_message() -> None:
    settings = FinetuneSettings(rank=2, steps=1, dropout=0.1)
    loaded = LoadedModel(tiny.build("mixtral"), tiny.tokenizer())
    data = {"target": BehaviourSet("t", EXAMPLES, "t")}
    with pytest.raises(InputError, match="no dropout"):
        settings.prepare(loaded, data, format="raw")
    loaded = LoadedModel(tiny.build("llama"), tiny.tokenizer())
    assert settings.prepare(loaded, data, format="raw").facts["adapted_share"] == 1.0
