"""Held weights stay where they are, whatever trains; the others are trained as if those were fixed.

The twin of `HoldMask` is a model whose held weights are constants: a parametrisation puts them in
on every forward pass, so that no optimiser ever sees them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
import trl
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.utils import parametrize

import resect
import tiny
from resect import HoldMask
from resect.audit.loading import load_tuned, open_tuned
from resect.edit.checkpoint import prune_checkpoint
from resect.errors import InputError, MismatchError
from resect.model import prunable_tensors
from resect.weights.mask import Mask, MaskTensor

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "sgd, momentum and decay": lambda p: torch.optim.SGD(
        p, lr=0.05, momentum=0.9, weight_decay=0.1
    ),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.5),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.05),
}


def draw_mask(model: Any, share: float = 0.05, seed: int = 3) -> Mask:
    """Return a random mask; the rows of one tensor at least are hit more than once."""
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, weight in prunable_tensors(model).items():
        index = (torch.rand(weight.numel(), generator=draw) < share).nonzero()[:, 0]
        value = weight.reshape(-1)[index].clone()
        tensors[name] = MaskTensor(
            tuple(weight.shape), index, value, torch.zeros(len(index), dtype=torch.uint8)
        )
    return Mask(tensors, {"model": "tiny"})


def batches(steps: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(5)
    return [torch.randint(4, tiny.VOCABULARY, (2, 10), generator=draw) for _ in range(steps)]


def train(
    model: Any,
    optimizer: torch.optim.Optimizer,
    *,
    steps: int = 6,
    accumulate: int = 1,
    clip: float | None = None,
) -> None:
    """Train as everybody does."""
    model.train()
    for at, ids in enumerate(batches(steps * accumulate)):
        model(input_ids=ids, labels=ids).loss.backward()
        if (at + 1) % accumulate == 0:
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
    model.eval()


def held_values(model: Any, mask: Mask) -> Tensor:
    tensors = prunable_tensors(model)
    return torch.cat(
        [tensors[name].reshape(-1)[e.index].detach() for name, e in mask.tensors.items()]
    )


def originals(mask: Mask) -> Tensor:
    return torch.cat([entry.value for entry in mask.tensors.values()])


class Constant(nn.Module):
    """The twin: weights at `chosen` are `value`, whatever the parameter says."""

    def __init__(self, chosen: Tensor, value: Tensor) -> None:
        super().__init__()
        self.chosen, self.value = chosen, value

    def forward(self, weight: Tensor) -> Tensor:
        return torch.where(self.chosen, self.value, weight)


def with_constants(model: Any, mask: Mask, *, zero: bool) -> Any:
    for name, entry in mask.tensors.items():
        module = model.get_submodule(name.rpartition(".")[0])
        chosen = torch.zeros(entry.size, dtype=torch.bool)
        value = torch.zeros(entry.size, dtype=entry.value.dtype)
        chosen[entry.index] = True
        if not zero:
            value[entry.index] = entry.value
        parametrize.register_parametrization(
            module, "weight", Constant(chosen.view(entry.shape), value.view(entry.shape))
        )
    return model


@pytest.mark.parametrize("at", ["zero", "original"])
@pytest.mark.parametrize("kind", [name for name in OPTIMIZERS if name != "adafactor"])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_the_rest_is_trained_as_if_held_weights_were_constants(
    at: Any, kind: str, clip: float | None
) -> None:
    model, twin = tiny.build("llama"), tiny.build("llama")
    mask = draw_mask(model)
    before = held_values(model, mask)
    optimizer = OPTIMIZERS[kind](model.parameters())
    with HoldMask(mask, at=at).holding(model, optimizer):
        train(model, optimizer, clip=clip, accumulate=2)
    with_constants(twin, mask, zero=at == "zero")
    train(twin, OPTIMIZERS[kind](twin.parameters()), clip=clip, accumulate=2)
    expected = torch.zeros_like(before) if at == "zero" else before
    assert torch.equal(held_values(model, mask), expected)
    for name, weight in prunable_tensors(model).items():
        twins = twin.get_submodule(name.rpartition(".")[0]).weight
        torch.testing.assert_close(weight, twins.detach(), rtol=1e-5, atol=1e-7)
    # Otherwise the equality above would say nothing.
    assert not torch.equal(model.model.embed_tokens.weight, tiny.build("llama").lm_head.weight)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize(
    ("architecture", "dtype"),
    [
        ("llama", torch.float32),
        ("llama", torch.bfloat16),
        ("gpt2", torch.bfloat16),
        # In bfloat16 experts as small as ours do not run: their rows are shorter than 16 bytes.
        ("qwen3_moe", torch.float32),
    ],
)
def test_every_cut_weight_stays_exactly_zero(
    kind: str, architecture: str, dtype: torch.dtype
) -> None:
    model = tiny.build(architecture, dtype=dtype)
    mask = draw_mask(model)
    optimizer = OPTIMIZERS[kind](model.parameters())
    hold = HoldMask(mask)
    hold.attach(model, optimizer)
    start = {name: weight.clone() for name, weight in prunable_tensors(model).items()}
    train(model, optimizer, steps=3)
    assert mask.count > 100
    assert int(held_values(model, mask).count_nonzero()) == 0
    moved = sum(int((w != start[n]).sum()) for n, w in prunable_tensors(model).items())
    assert moved > 0.5 * (mask.total - mask.count)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_without_holding_cut_weights_come_back(kind: str) -> None:
    model = tiny.build("llama")
    mask = draw_mask(model)
    HoldMask(mask).apply(model)
    train(model, OPTIMIZERS[kind](model.parameters()), steps=3)
    assert int(held_values(model, mask).count_nonzero()) > 0.9 * mask.count


def test_autocast_and_moments_of_an_earlier_training() -> None:
    model = tiny.build("llama")
    mask = draw_mask(model)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    train(model, optimizer, steps=2)  # moments at the held places are not zero
    mask = draw_mask(model)
    with HoldMask(mask).holding(model, optimizer), torch.autocast("cpu", dtype=torch.bfloat16):
        train(model, optimizer, steps=3)
    assert int(held_values(model, mask).count_nonzero()) == 0


def lora(model: Any) -> Any:
    settings = peft.LoraConfig(
        r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    return peft.get_peft_model(model, settings)


@pytest.mark.parametrize("at", ["zero", "original"])
def test_a_merged_adapter_is_reset_at_held_places_and_nowhere_else(at: Any) -> None:
    model = tiny.build("llama")
    mask = draw_mask(model)
    hold = HoldMask(mask, at=at)
    adapted = lora(model)
    optimizer = torch.optim.AdamW(adapted.parameters(), lr=0.01, weight_decay=0.1)
    hold.attach(adapted, optimizer)
    train(adapted, optimizer, steps=3)
    merged = adapted.merge_and_unload()
    unheld = {name: weight.clone() for name, weight in prunable_tensors(merged).items()}
    touched = hold.apply(merged)
    expected = originals(mask) if at == "original" else torch.zeros(mask.count)
    assert torch.equal(held_values(merged, mask), expected)
    moved = {
        name: entry.index.numel()
        for name, entry in mask.tensors.items()
        if "q_proj" in name or "down_proj" in name
    }
    assert 0.9 * sum(moved.values()) < touched <= sum(moved.values())
    for name, weight in prunable_tensors(merged).items():
        free = torch.ones(weight.numel(), dtype=torch.bool)
        free[mask.tensors[name].index] = False
        assert torch.equal(weight.reshape(-1)[free], unheld[name].reshape(-1)[free])
    assert hold.apply(merged) == 0


def sft(model: Any, folder: Path, *callbacks: Any, **options: Any) -> Any:
    words = [row["prompt"] + " " + row["completion"] for row in tiny.rows(12, "t")]
    trainer = trl.SFTTrainer(
        model=model,
        args=trl.SFTConfig(
            output_dir=str(folder),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            max_steps=4,
            learning_rate=0.01,
            weight_decay=0.3,
            report_to="none",
            use_cpu=True,
            save_strategy="steps",
            save_steps=2,
            disable_tqdm=True,
            logging_strategy="no",
            **options,
        ),
        train_dataset=Dataset.from_dict({"text": words}),
        processing_class=tiny.tokenizer(),
        callbacks=list(callbacks),
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("bf16", [False, True])
def test_sft_trainer_of_trl(bf16: bool, tmp_path: Path) -> None:
    model = tiny.build("llama")
    mask = draw_mask(model)
    sft(model, tmp_path, HoldMask(mask), bf16=bf16)
    assert int(held_values(model, mask).count_nonzero()) == 0
    halfway = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-2")
    assert int(held_values(halfway, mask).count_nonzero()) == 0
    other = tiny.build("llama")
    HoldMask(mask).apply(other)
    sft(other, tmp_path / "free", bf16=bf16)
    assert int(held_values(other, mask).count_nonzero()) > 0.9 * mask.count


def test_sft_trainer_with_an_adapter(tmp_path: Path) -> None:
    model = tiny.build("qwen3")
    mask = draw_mask(model)
    hold = HoldMask(mask)
    trainer = sft(lora(model), tmp_path, hold)
    merged = trainer.model.merge_and_unload()
    assert hold.apply(merged) > 0
    assert int(held_values(merged, mask).count_nonzero()) == 0


def test_a_saved_adapter_names_the_cut_base_and_not_the_intact_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny.save("qwen3", tmp_path / "intact")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "intact")
    mask = draw_mask(model)
    mask.save(tmp_path / "m.mask.safetensors")
    hold = HoldMask(mask)
    with caplog.at_level(logging.WARNING, logger="resect.edit.hold"):
        trainer = sft(lora(model), tmp_path / "out", hold)
    trainer.save_model(str(tmp_path / "adapter"))
    named = f"{tmp_path / 'intact'} cut with resect mask {mask.hash}"
    for folder in (tmp_path / "adapter", tmp_path / "out" / "checkpoint-2"):
        settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        assert settings["base_model_name_or_path"] == named
    (line,) = [line for line in caplog.messages if "bring the cut weights back" in line]
    assert named in line
    # The name that PEFT would follow leads nowhere, instead of to the intact model.
    with pytest.raises(OSError, match="cut with resect mask"):
        peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", local_files_only=True)
    # And an audit asks for the cut base.
    with pytest.raises(MismatchError, match="would bring the cut weights back"):
        load_tuned(str(tmp_path / "intact"), str(tmp_path / "adapter"))
    prune_checkpoint(tmp_path / "intact", mask, tmp_path / "cut")
    tuned = open_tuned(str(tmp_path / "cut"), str(tmp_path / "adapter"))
    assert "hold.apply(merged)" in tuned.notes[0]
    merged = trainer.model.merge_and_unload()
    for name, weight in prunable_tensors(merged).items():
        assert torch.equal(prunable_tensors(tuned.model)[name], weight)


def test_an_adapter_on_a_folder_that_was_cut_keeps_its_name(tmp_path: Path) -> None:
    tiny.save("qwen3", tmp_path / "intact")
    mask = draw_mask(tiny.build("qwen3"))
    prune_checkpoint(tmp_path / "intact", mask, tmp_path / "cut")
    for folder, at, named in (
        ("cut", "zero", str(tmp_path / "cut")),
        ("intact", "original", str(tmp_path / "intact")),
    ):
        model = lora(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / folder))
        HoldMask(mask, at=at).attach(model)  # type: ignore[arg-type]
        model.save_pretrained(tmp_path / f"{folder}-adapter")
        text = (tmp_path / f"{folder}-adapter" / "adapter_config.json").read_text(encoding="utf-8")
        assert json.loads(text)["base_model_name_or_path"] == named


def test_it_lets_go_when_training_ends(tmp_path: Path) -> None:
    model = tiny.build("llama")
    mask = draw_mask(model)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    with pytest.raises(ZeroDivisionError), HoldMask(mask).holding(model, optimizer):
        raise ZeroDivisionError
    assert int(held_values(model, mask).count_nonzero()) == 0
    train(model, optimizer, steps=2)
    assert int(held_values(model, mask).count_nonzero()) > 0.9 * mask.count


def test_it_says_once_what_it_costs(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny.build("llama")
    mask = draw_mask(model)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    hold = HoldMask(mask)
    hold.attach(model, optimizer)
    with caplog.at_level(logging.INFO, logger="resect.edit.hold"):
        train(model, optimizer, steps=30)
    assert len([line for line in caplog.messages if "ms a step" in line]) == 1
    cost = hold.cost
    assert cost.weights == mask.count
    assert cost.steps == 20
    assert 0 < cost.share < 1
    assert cost.seconds > 0


def test_other_models_are_refused() -> None:
    model = tiny.build("llama")
    mask = draw_mask(model)
    with pytest.raises(MismatchError, match="other values than in the mask"):
        HoldMask(mask).attach(tiny.build("llama", seed=1))
    HoldMask(mask, check=False).attach(tiny.build("llama", seed=1))
    with pytest.raises(MismatchError, match="no tensor"):
        HoldMask(mask, check=False).attach(tiny.build("gpt2"))
    with pytest.raises(InputError, match="zero, original"):
        HoldMask(mask, at="one")  # type: ignore[arg-type]
    HoldMask(mask).apply(model)
    HoldMask(mask).attach(model)  # a model that was cut before is what `zero` expects
    with pytest.raises(MismatchError, match="other values"):
        HoldMask(mask, at="original").attach(model)
    assert resect.HoldMask is HoldMask
