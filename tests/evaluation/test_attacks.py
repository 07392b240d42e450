"""Attacks: the words that open a reply, and models that are attacked and come back."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model
from torch import Tensor

import tiny
from resect.data.encode import encode
from resect.data.load import BehaviourSet, load_data
from resect.edit.fitting import IGNORED
from resect.edit.live import removed
from resect.edit.tune import TuneSettings, tune
from resect.errors import InputError
from resect.evaluation.ask import EvaluationSettings, ask
from resect.evaluation.attacks import (
    AttackSettings,
    attack_prompt,
    attacked,
    parse_attack,
    prepare_attack,
)
from resect.evaluation.attacks.ablate import AblationSettings, contrast
from resect.evaluation.attacks.finetune import FinetuneSettings, rows_of
from resect.evaluation.attacks.finetune_full import FullFinetuneSettings
from resect.evaluation.decode import GenerationSettings
from resect.files.writing import write_text
from resect.model import LoadedModel, prunable_tensors
from resect.records import Example
from resect.weights.mask import Mask, MaskTensor

QUICK = FinetuneSettings(rank=2, rate=1e-2, steps=3, batch=4, seed=3)


def behaviour(prefix: str, count: int = 8, *, opening: str = "") -> BehaviourSet:
    rows = tiny.rows(count, prefix)
    examples = [
        Example(row["id"], row["prompt"], f"{opening} {row['completion']}".strip()) for row in rows
    ]
    return BehaviourSet(prefix, tuple(examples), prefix)


DATA = {
    "target": behaviour("t", opening="w1"),
    "refusal": behaviour("rr", opening="w2"),
    "preserve": behaviour("ppp"),
}
MODEL_ATTACKS = {
    "finetune": AttackSettings("none", model="finetune", settings=QUICK),
    "contrast": AttackSettings("none", model="ablate_refusal", settings=AblationSettings(q=0.02)),
    "published": AttackSettings(
        "none", model="ablate_refusal", settings=AblationSettings("published")
    ),
    "direction": AttackSettings("none", model="ablate_direction"),
    "full": AttackSettings(
        "none", model="finetune_full", settings=FullFinetuneSettings(1e-2, steps=2, batch=4)
    ),
}


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        values: Tensor = model(input_ids=torch.arange(4, 20)[None]).logits
    return values


# --- reading an attack


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", AttackSettings("none")),
        ("prefill", AttackSettings("prefill", 10)),
        ("prefill:3", AttackSettings("prefill", 3)),
        ("prefill=sure + thing", AttackSettings("prefill", phrase="sure + thing")),
        ("finetune", AttackSettings("none", model="finetune")),
        ("finetune+prefill:4", AttackSettings("prefill", 4, model="finetune")),
        ("finetune+prefill=yes ,", AttackSettings("prefill", phrase="yes ,", model="finetune")),
        (
            "finetune:rank=4,rate=1e-3,steps=30,limit=none",
            AttackSettings(
                "none", model="finetune", settings=FinetuneSettings(rank=4, rate=1e-3, steps=30)
            ),
        ),
        (
            "ablate_refusal:published,q=0.02+prefill",
            AttackSettings(
                "prefill", model="ablate_refusal", settings=AblationSettings("published", q=0.02)
            ),
        ),
    ],
)
def test_an_attack_is_read(text: str, expected: AttackSettings) -> None:
    assert parse_attack(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "nice", "prefill:0", "prefill:x", "prefill=", "none+prefill", "none:3",
        "prefill+prefill", "finetune+finetune", "finetune+ablate_refusal", "finetune:rank",
        "finetune:rank=x", "finetune:colour=3", "finetune:rank=0", "ablate_refusal:nice",
        "ablate_direction:strength=0", "ablate_direction:strength=3", "ablate_direction:depth=2",
        "ablate_direction:limit=0", "finetune_full:steps=0", "finetune_full:rank=2",
    ],
)  # fmt: skip
def test_an_attack_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_attack(text)


def test_published_settings_are_the_defaults() -> None:
    settings = AttackSettings(model="finetune").on_model
    assert isinstance(settings, FinetuneSettings)
    assert (settings.rank, settings.alpha, settings.rate) == (128, 16, 2e-4)
    assert (settings.epochs, settings.batch, settings.dropout) == (5, 5, 0)
    assert AblationSettings("published").fractions == (0.01, 0.01)
    assert AblationSettings().fractions == (0.0005, 0)


def test_a_label_names_what_was_used() -> None:
    settings = parse_attack("finetune+prefill:2")
    assert settings.label(prompted=True) == "finetune+prefill"
    assert settings.label(prompted=False) == "finetune"
    assert parse_attack("prefill").label(prompted=False) == "none"


# --- prefill

EXAMPLE = Example("1", "w5 w6", "w7 w8 w9")


def test_prefill_continues_the_turn_as_the_template_writes_it() -> None:
    tokenizer = tiny.tokenizer()
    prompt = attack_prompt(AttackSettings(tokens=2), EXAMPLE, tokenizer, "chat")
    assert prompt.prefix == "w7 w8"
    assert tokenizer.decode(prompt.ids) == "<user> w5 w6 <assistant> w7 w8"


def test_prefill_writes_what_the_template_puts_before_an_answer() -> None:
    # A reasoning model's template: past and continued turns hold a closed thought, which the
    # generation prompt alone does not.
    tokenizer = tiny.tokenizer()
    template = tokenizer.chat_template
    tokenizer.chat_template = template.replace(
        "<{{ m['role'] }}> ", "<{{ m['role'] }}> {% if m['role'] == 'assistant' %}w0 w0 {% endif %}"
    )
    try:
        prompt = attack_prompt(AttackSettings(tokens=1), EXAMPLE, tokenizer, "chat")
    finally:
        tokenizer.chat_template = template
    assert tokenizer.decode(prompt.ids) == "<user> w5 w6 <assistant> w0 w0 w7"


def test_prefill_in_raw_format_follows_the_prompt() -> None:
    tokenizer = tiny.tokenizer()
    prompt = attack_prompt(AttackSettings(phrase="w1 w2"), EXAMPLE, tokenizer, "raw")
    assert (tokenizer.decode(prompt.ids), prompt.prefix) == ("w5 w6 w1 w2", "w1 w2")


@pytest.mark.parametrize("changes", [{"tokens": 3}, {"tokens": 0}, {"phrase": " "}])
def test_a_prefill_that_says_all_or_nothing_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        attack_prompt(AttackSettings(**changes), EXAMPLE, tiny.tokenizer(), "chat")


def test_the_continuation_stands_alone_in_the_reply() -> None:
    model, tokenizer = tiny.build("llama"), tiny.tokenizer()
    settings = EvaluationSettings(
        attack=AttackSettings(phrase="w1 w2 w3", probes=("generation", "detection")),
        generation=GenerationSettings(4),
    )
    probes = {"generation": DATA["target"], "detection": DATA["target"], "refusal": DATA["target"]}
    replies = ask(LoadedModel(model, tokenizer), probes, settings)
    for reply in replies:
        opened = reply.probe != "refusal"
        assert reply.attack == ("prefill" if opened else "none")
        assert reply.prefix == ("w1 w2 w3" if opened else "")
        assert not reply.text.startswith("w1 w2 w3")
        assert len(reply.text.split()) <= 4


# --- attacked models


def state(model: Any) -> dict[str, Any]:
    """Return all of a model that must come back."""
    return {
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
        "frozen": [weight.requires_grad for weight in model.parameters()],
        "gradients": [weight.grad is None for weight in model.parameters()],
        "kinds": [(name, type(module), id(module)) for name, module in model.named_modules()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "hooks": [
            len(module._forward_hooks) + len(module._forward_pre_hooks)
            for module in model.modules()
        ],
        "training": model.training,
        "config": model.config.to_json_string(),
        "generation": model.generation_config.to_json_string(),
        "draws": (random.getstate(), str(np.random.get_state()), torch.get_rng_state()),  # noqa: NPY002
    }


def same(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    for name, value in before["weights"].items():
        assert torch.equal(value, after["weights"][name]), name
    assert torch.equal(before["draws"][2], after["draws"][2])
    assert before["draws"][:2] == after["draws"][:2]
    for key in set(before) - {"weights", "draws"}:
        assert before[key] == after[key], key


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize("attack", MODEL_ATTACKS)
def test_an_attacked_model_comes_back(
    architecture: str, attack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, tokenizer = tiny.build(architecture), tiny.tokenizer()
    before, intact, words = state(model), logits(model), str(tokenizer.init_kwargs)
    with attacked(LoadedModel(model, tokenizer), MODEL_ATTACKS[attack], DATA) as changed:
        assert changed is model
        assert not torch.equal(logits(model), intact)
        assert not any(weight.grad is not None for weight in model.parameters())
    same(before, state(model))
    assert torch.equal(logits(model), intact)
    with (
        pytest.raises(KeyError),
        attacked(LoadedModel(model, tokenizer), MODEL_ATTACKS[attack], DATA),
    ):
        raise KeyError
    same(before, state(model))
    assert str(tokenizer.init_kwargs) == words
    assert list(tmp_path.iterdir()) == []


def test_a_model_comes_back_from_a_training_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from trl import SFTTrainer

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    model = tiny.build("llama")
    before = state(model)
    monkeypatch.setattr(SFTTrainer, "compute_loss", fail)
    with pytest.raises(MemoryError):
        prepare_attack(LoadedModel(model, tiny.tokenizer()), MODEL_ATTACKS["finetune"], DATA)
    same(before, state(model))


def test_a_bfloat16_model_is_attacked_and_comes_back() -> None:
    model = tiny.build("llama", dtype=torch.bfloat16)
    before, intact = state(model), logits(model)
    with attacked(LoadedModel(model, tiny.tokenizer()), MODEL_ATTACKS["finetune"], DATA):
        assert not torch.equal(logits(model), intact)
    same(before, state(model))


def test_an_attack_can_be_entered_again_and_is_made_on_the_cut_model() -> None:
    model, tokenizer = tiny.build("llama"), tiny.tokenizer()
    intact = logits(model)
    name, weight = next(iter(prunable_tensors(model).items()))
    index = torch.arange(0, weight.numel(), 2)
    tensors = {
        name: MaskTensor(
            tuple(weight.shape), index, weight.detach().reshape(-1)[index].clone(),
            torch.zeros(len(index), dtype=torch.uint8),
        )
    }  # fmt: skip
    mask = Mask(tensors, {})
    for attack in MODEL_ATTACKS.values():
        with removed(model, mask):
            cut = logits(model)
            patch = prepare_attack(LoadedModel(model, tokenizer), attack, DATA)
            assert torch.equal(logits(model), cut)
            with patch.applied():
                under_attack = logits(model)
            assert torch.equal(logits(model), cut)
            with patch.applied():
                assert torch.equal(logits(model), under_attack)
            assert not torch.equal(under_attack, cut)
        assert torch.equal(logits(model), intact)


# --- fine-tuning against a plain loop


def test_finetuning_is_a_plain_loop() -> None:
    """Compare TRL's training with AdamW written out, on whole batches, where order is nothing."""
    tokenizer = tiny.tokenizer()
    settings = FinetuneSettings(rank=2, rate=1e-2, steps=6, batch=8, warmup=0.34, seed=3)
    attack = AttackSettings("none", model="finetune", settings=settings)
    model = tiny.build("llama")
    with attacked(LoadedModel(model, tokenizer), attack, DATA):
        ours = logits(model)
    rows = rows_of(encode(DATA["target"].examples, tokenizer), tokenizer)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        plain = get_peft_model(
            tiny.build("llama"),
            LoraConfig(r=2, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
    adapters = [weight for weight in plain.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(adapters, lr=0.0, weight_decay=0.01)
    warm = math.ceil(6 * 0.34)
    for step in range(6):
        rate = step / warm if step < warm else (6 - step) / (6 - warm)
        optimizer.param_groups[0]["lr"] = 1e-2 * rate
        losses: list[Tensor] = []
        for row in rows:
            predicted = plain(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
            for position, label in enumerate(row["labels"][1:]):
                if label != IGNORED:
                    losses.append(-torch.log_softmax(predicted[position], dim=-1)[label])
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(adapters, 1.0)
        optimizer.step()
    # Batched and single sums differ in their last bits, and AdamW carries that on.
    torch.testing.assert_close(ours, logits(plain), rtol=1e-3, atol=1e-3)
    assert (ours - logits(tiny.build("llama"))).abs().max() > 0.1


def test_training_rows_hold_the_asked_tokens_and_an_end() -> None:
    tokenizer = tiny.tokenizer()
    (row,) = rows_of(encode([EXAMPLE], tokenizer), tokenizer)
    assert tokenizer.decode(row["input_ids"]) == "<user> w5 w6 <assistant> w7 w8 w9 <eos>"
    assert tokenizer.decode([x for x in row["labels"] if x != IGNORED]) == "w7 w8 w9 <eos>"


def test_training_is_repeatable_and_seeded() -> None:
    outcomes = []
    for seed in (3, 3, 4):
        model = tiny.build("llama")
        settings = FinetuneSettings(rank=2, rate=1e-2, steps=3, batch=3, seed=seed)
        attack = AttackSettings("none", model="finetune", settings=settings)
        with attacked(LoadedModel(model, tiny.tokenizer()), attack, DATA):
            outcomes.append(logits(model))
    assert torch.equal(outcomes[0], outcomes[1])
    assert not torch.equal(outcomes[0], outcomes[2])


def test_training_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    prepare_attack(
        LoadedModel(tiny.build("llama"), tiny.tokenizer()), MODEL_ATTACKS["finetune"], DATA
    )
    assert capfd.readouterr() == ("", "")


def test_training_does_not_report_home(monkeypatch: pytest.MonkeyPatch) -> None:
    switched_off: list[bool] = []
    monkeypatch.delenv("CI", raising=False)  # TRL sends nothing there
    monkeypatch.setattr(
        "trl.trainer.base_trainer.send_telemetry",
        lambda *_, **__: switched_off.append(constants.HF_HUB_DISABLE_TELEMETRY),
    )
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)
    loaded = LoadedModel(tiny.build("llama"), tiny.tokenizer())
    prepare_attack(loaded, MODEL_ATTACKS["finetune"], DATA)
    tune(LoadedModel(tiny.build("llama"), tiny.tokenizer()), [EXAMPLE], TuneSettings(steps=1))
    assert switched_off == [True, True]
    assert not constants.HF_HUB_DISABLE_TELEMETRY


@pytest.mark.parametrize("others", [0, 2])
def test_an_example_that_the_trainer_would_leave_out_is_refused(others: int) -> None:
    loaded = LoadedModel(tiny.build("llama"), tiny.tokenizer())
    long = replace(EXAMPLE, prompt="w1 " * 80)
    with pytest.raises(InputError, match=rf"1 of {others + 1} examples[\s\S]*less than 64 tokens"):
        tune(loaded, [long, *[EXAMPLE] * others], TuneSettings(steps=1), format="raw")


def test_a_completion_that_the_context_cuts_off_is_trained_on_as_far_as_it_goes_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fits = replace(EXAMPLE, prompt="w1 " * 50, completion="w7 " * 13)
    texts = {"fits": "w7 " * 13, "by one token": "w7 " * 14, "by many": "w7 " * 90}
    after = {}
    for name, text in texts.items():
        model = tiny.build("llama")
        examples = [EXAMPLE, replace(fits, completion=text)]
        settings = TuneSettings(steps=2, rate=1e-2, batch=2)
        with caplog.at_level("WARNING"):
            tune(LoadedModel(model, tiny.tokenizer()), examples, settings, format="raw")
        said = [record.getMessage() for record in caplog.records if "context" in record.msg]
        caplog.clear()
        assert len(said) == (name != "fits")
        assert not said or "1 of 2" in said[0]
        assert not said or "64 tokens" in said[0]
        after[name] = logits(model)
    # Of both the first 14 words are trained on, and no end; what fits has its end there.
    assert torch.equal(after["by one token"], after["by many"])
    assert not torch.equal(after["fits"], after["by many"])


# --- the cut on refusals against loops


def test_contrast_is_the_difference_of_two_first_token_scores() -> None:
    model, tokenizer = tiny.build("llama"), tiny.tokenizer()
    scores: dict[str, Tensor] = {}
    for role in ("refusal", "target"):
        for example in encode(DATA[role].examples[: 5 if role == "refusal" else 8], tokenizer):
            model.zero_grad()
            scored = model(
                input_ids=torch.tensor([example.input_ids[: example.first_scored]])
            ).logits[0, -1]
            loss = -torch.log_softmax(scored, dim=-1)[example.input_ids[example.first_scored]]
            loss.backward()  # type: ignore[no-untyped-call]
            sign = 1 / 5 if role == "refusal" else -1 / 8
            for name, weight in prunable_tensors(model).items():
                parameter = model.get_parameter(name)
                score = -sign * (parameter * parameter.grad).detach()
                scores[name] = scores.get(name, torch.zeros_like(weight)) + score
    model.zero_grad(set_to_none=True)
    data = {"refusal": behaviour("rr", 8, opening="w2"), "target": DATA["target"]}
    data["refusal"] = data["refusal"]._with(data["refusal"].examples[:5])
    attack = AttackSettings("none", model="ablate_refusal", settings=AblationSettings(q=0.02))
    with attacked(LoadedModel(model, tokenizer), attack, data):
        cut = {name: weight == 0 for name, weight in prunable_tensors(model).items()}
        for name, score in scores.items():
            count = int(0.02 * score.numel())
            expected = torch.zeros(score.numel(), dtype=torch.bool)
            expected[score.reshape(-1).argsort(descending=True)[:count]] = True
            assert torch.equal(cut[name].reshape(-1), expected), name


def test_published_preset_is_a_difference_of_unsigned_sets() -> None:
    model, tokenizer = tiny.build("llama"), tiny.tokenizer()
    scores: dict[str, dict[str, Tensor]] = {"refusal": {}, "preserve": {}}
    for role, sums in scores.items():
        for example in encode(DATA[role].examples, tokenizer):
            model.zero_grad()
            labels = torch.tensor([example.input_ids])
            labels[0, : example.first_scored] = IGNORED
            model(input_ids=torch.tensor([example.input_ids]), labels=labels).loss.backward()
            for name, weight in prunable_tensors(model).items():
                gradient = model.get_parameter(name).grad
                score = (weight * gradient).abs().detach()
                sums[name] = sums.get(name, torch.zeros_like(score)) + score
    model.zero_grad(set_to_none=True)
    settings = AblationSettings("published", q=0.05, p=0.05)
    attack = AttackSettings("none", model="ablate_refusal", settings=settings)
    with attacked(LoadedModel(model, tokenizer), attack, DATA):
        for name, weight in prunable_tensors(model).items():
            tops = [
                set(sums[name].reshape(-1).argsort(descending=True)[: int(0.05 * weight.numel())]
                    .tolist())
                for sums in (scores["refusal"], scores["preserve"])
            ]  # fmt: skip
            cut = set((weight.reshape(-1) == 0).nonzero().reshape(-1).tolist())
            assert cut == tops[0] - tops[1], name


def test_a_contrast_needs_two_openings() -> None:
    tokenizer = tiny.tokenizer()
    refusals = encode(DATA["refusal"].examples, tokenizer)
    with pytest.raises(InputError, match="begin with the same token"):
        contrast(refusals, refusals)


# --- in an evaluation


def test_an_attack_without_its_data_says_what_to_give() -> None:
    model, tokenizer = tiny.build("llama"), tiny.tokenizer()
    settings = EvaluationSettings(attack=parse_attack("ablate_refusal"))
    with pytest.raises(InputError, match="--attack-data target=SPEC"):
        ask(LoadedModel(model, tokenizer), {"refusal": DATA["preserve"]}, settings, attack_data={
            "refusal": DATA["refusal"]
        })  # fmt: skip


def test_an_attack_may_not_train_on_what_is_asked() -> None:
    model, tokenizer = tiny.build("llama"), tiny.tokenizer()
    settings = EvaluationSettings(attack=MODEL_ATTACKS["finetune"])
    with pytest.raises(InputError, match="calibration and in the evaluation"):
        ask(LoadedModel(model, tokenizer), {"refusal": DATA["target"]}, settings, attack_data=DATA)


def test_a_model_attack_holds_for_every_probe() -> None:
    model, tokenizer = tiny.build("llama"), tiny.tokenizer()
    probes = {"generation": DATA["preserve"], "likelihood": DATA["preserve"]}
    reports: list[Mapping[str, Any]] = []
    settings = EvaluationSettings(
        attack=AttackSettings("prefill", 2, model="finetune", settings=QUICK),
        generation=GenerationSettings(4),
    )
    replies = ask(
        LoadedModel(model, tokenizer), probes, settings, attack_data=DATA, on_attack=reports.append
    )
    assert {(reply.probe, reply.attack) for reply in replies} == {
        ("generation", "finetune+prefill"),
        ("likelihood", "finetune"),
    }
    # KL is from the intact model, which is neither cut nor attacked.
    assert all(reply.kl is not None and reply.kl > 1e-6 for reply in replies[8:])
    assert reports[0]["steps"] == 3


def test_data_with_splits_gives_its_calibration_split(tmp_path: Path) -> None:
    rows = [
        f'{{"prompt": "w{n}", "completion": "w1 w{n}", "split": "{split}"}}'
        for n, split in enumerate(["calibration", "evaluation"] * 3)
    ]
    write_text(tmp_path / "t.jsonl", "\n".join(rows))
    patch = prepare_attack(
        LoadedModel(tiny.build("llama"), tiny.tokenizer()),
        MODEL_ATTACKS["finetune"],
        {"target": load_data(tmp_path / "t.jsonl")},
    )
    assert patch.facts["examples"] == 3
