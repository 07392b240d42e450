"""A folder with a low-rank adapter is a model: its base with the adapter merged into it."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import tiny
from command_line import call, ok, write
from resect.errors import InputError
from resect.model import load_model
from resect.model.adapter import RECORD, is_adapter, merged_folder
from resect.model.load import load_tokenizer
from resect.weights.mask import Mask

ROWS = [{"prompt": f"w{n} w2", "completion": "w5 w6 w7 w8"} for n in range(4)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RESECT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save("llama", tmp_path_factory.mktemp("bases") / "m")


def adapted(base: Path, folder: Path, **options: Any) -> Path:
    """Save an adapter with PEFT, as its users do."""
    torch.manual_seed(7)
    setup = LoraConfig(
        r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False,
        task_type="CAUSAL_LM", **options,
    )  # fmt: skip
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    get_peft_model(model, setup).save_pretrained(str(folder))
    return folder


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("options", [{}, {"use_dora": True}], ids=["LoRA", "DoRA"])
def test_an_adapter_is_loaded_as_peft_merges_it(
    options: dict[str, Any], base: Path, cache: Path, tmp_path: Path, caplog: Any
) -> None:
    folder = adapted(base, tmp_path / "a", **options)
    assert is_adapter(folder)
    # What a merge left that was killed a day ago.
    litter = cache / "merged" / ".dead.1234.part"
    litter.mkdir(parents=True)
    os.utime(litter, (0, 0))
    with caplog.at_level(logging.WARNING, "resect.model.adapter"):
        model: Any = load_model(folder).model
        load_model(folder)
    (line,) = [r.getMessage() for r in caplog.records if r.name == "resect.model.adapter"]
    assert "is merged once with its base" in line
    plain: Any = AutoModelForCausalLM.from_pretrained(base)
    expected = weights(PeftModel.from_pretrained(plain, str(folder)).merge_and_unload())
    assert {n: torch.equal(v, expected[n]) for n, v in weights(model).items()} == dict.fromkeys(
        expected, True
    )
    before = weights(load_model(base).model)
    assert any(not torch.equal(value, before[name]) for name, value in expected.items())
    assert model.name_or_path == str(folder)
    assert len(list((cache / "merged").iterdir())) == 1
    assert load_tokenizer(folder).get_vocab() == load_tokenizer(base).get_vocab()


HEAD, TOKENS = "lm_head", "embed_tokens"


@pytest.mark.parametrize(
    ("architecture", "targets", "ensured", "more_tokens", "with_tables"),
    [
        ("llama", [HEAD], False, 0, True),
        ("llama", [HEAD], False, 0, False),
        ("llama", [TOKENS], False, 0, True),
        ("llama", [HEAD, TOKENS], False, 0, True),
        ("llama", [HEAD], True, 0, True),
        ("llama", [HEAD], False, 3, True),
        ("qwen2", [HEAD], False, 0, True),
        ("qwen2", [HEAD, TOKENS], False, 3, True),
    ],
)
def test_an_adapter_on_the_head_or_the_embeddings_is_the_model_that_was_trained(
    architecture: str,
    targets: list[str],
    ensured: bool,
    more_tokens: int,
    with_tables: bool,
    tmp_path: Path,
) -> None:
    # Llama's head is tied here, Qwen2's is not.
    base, folder = tiny.save(architecture, tmp_path / "m"), tmp_path / "a"
    plain: Any = AutoModelForCausalLM.from_pretrained(base)
    if more_tokens:
        plain.resize_token_embeddings(plain.config.vocab_size + more_tokens)
    setup = LoraConfig(
        r=2, target_modules=targets, init_lora_weights=False, ensure_weight_tying=ensured,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    trained: Any = get_peft_model(plain, setup).eval()
    trained.save_pretrained(str(folder), save_embedding_layers=with_tables)
    ids = torch.arange(4, 14)[None]
    with torch.no_grad():
        expected = trained(ids).logits
        without = AutoModelForCausalLM.from_pretrained(base)(ids).logits
        loaded: Any = load_model(folder).model
        assert torch.allclose(loaded(ids).logits, expected, atol=1e-4)
    assert not torch.allclose(without, expected[..., : without.shape[-1]], atol=1e-1)


def test_commands_take_an_adapter(base: Path, tmp_path: Path) -> None:
    folder, data = adapted(base, tmp_path / "a"), write(tmp_path / "d.jsonl", ROWS)
    ok("coverage", folder)
    target, preserve = tmp_path / "t.scores.safetensors", tmp_path / "p.scores.safetensors"
    ok("score", folder, "--data", data, "--keep", "0.5", "-o", target)
    ok("score", folder, "--data", data, "--reduction", "mean_of_abs", "--keep", "0.5",
       "-o", preserve)  # fmt: skip
    mask = tmp_path / "m.mask.safetensors"
    ok("select", target, preserve, "--q", "0.5", "--p", "0.1", "-o", mask)
    ok("prune", folder, mask, "-o", tmp_path / "cut")
    removed = Mask.load(mask)
    assert removed.count
    assert removed.meta["model_id"] == str(folder)
    cut, merged = (
        load_file(place / "model.safetensors")
        for place in (tmp_path / "cut", merged_folder(folder))
    )
    for name, entry in removed.tensors.items():
        assert not cut[name].view(-1)[entry.index].any()
        assert torch.equal(merged[name].view(-1)[entry.index], entry.value)


def test_another_base_is_merged_anew(base: Path, tmp_path: Path) -> None:
    copy = tiny.save("llama", tmp_path / "copy")
    folder = adapted(copy, tmp_path / "a")
    first = merged_folder(folder)
    assert merged_folder(folder) == first
    tiny.save("llama", copy, seed=3)
    assert merged_folder(folder) != first
    assert (first / RECORD).is_file()


def test_another_template_of_the_base_is_merged_anew(tmp_path: Path) -> None:
    base = tiny.save("llama", tmp_path / "m")
    folder = adapted(base, tmp_path / "a")
    merged_folder(folder)
    (base / "chat_template.jinja").write_text("{{ messages }} so", encoding="utf-8")
    assert (merged_folder(folder) / "chat_template.jinja").read_text("utf-8").endswith("so")


def settings(folder: Path, **changed: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changed), encoding="utf-8")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"base_model_name_or_path": "me/nowhere"}, "hf download me/nowhere"),
        ({"base_model_name_or_path": "./gone"}, "is not on this machine"),
        (
            {"base_model_name_or_path": "me/it cut with resect mask 0f"},
            "next step: write the place of the base into adapter_config.json; of a model that was "
            "cut, that of the cut checkpoint",
        ),
        ({"base_model_name_or_path": None}, "is not on this machine"),
        ({"task_type": "SEQ_CLS"}, "no adapter of a causal language model"),
        ({"peft_type": "IA3"}, "does not fit"),
        ({"target_modules": ["q_proj"]}, "no place for"),
        ({"target_modules": ["q_proj", "down_proj", "up_proj"]}, "nothing for"),
        ({"r": 3}, "cannot put the adapter"),
    ],
)
def test_an_adapter_that_cannot_be_merged_is_one_message(
    changed: dict[str, object], said: str, base: Path, cache: Path, tmp_path: Path
) -> None:
    folder = adapted(base, tmp_path / "a")
    settings(folder, **changed)
    done = call("coverage", folder)
    assert done.returncode == 2
    assert said in done.stderr
    assert not list(cache.glob("merged/*"))


def test_an_adapter_of_an_adapter_and_one_without_weights_are_refused(
    base: Path, tmp_path: Path
) -> None:
    folder = adapted(base, tmp_path / "a")
    settings(adapted(base, tmp_path / "b"), base_model_name_or_path=str(folder))
    with pytest.raises(InputError, match="an adapter of an adapter"):
        load_model(tmp_path / "b")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match="has no safetensors weights"):
        load_model(folder)


def test_a_quantised_base_is_refused(tmp_path: Path) -> None:
    base = tiny.save("llama", tmp_path / "m")
    folder = adapted(base, tmp_path / "a")
    config = json.loads((base / "config.json").read_text("utf-8"))
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(InputError, match=r"names a quantised base[\s\S]*plain checkpoint"):
        load_model(folder)


def test_dora_on_a_zeroed_row_is_refused_and_not_nan(tmp_path: Path) -> None:
    base = tiny.save("llama", tmp_path / "m")
    folder = adapted(base, tmp_path / "a", use_dora=True)
    name = "model.layers.0.self_attn.q_proj"
    tensors = load_file(base / "model.safetensors")
    tensors[f"{name}.weight"][3] = 0
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    low_rank = load_file(folder / "adapter_model.safetensors")
    low_rank[f"base_model.model.{name}.lora_B.weight"][3] = 0
    save_file(low_rank, folder / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"no numbers[\s\S]*q_proj[\s\S]*DoRA divides"):
        load_model(folder)
