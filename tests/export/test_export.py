"""What leaves resect: folders, cards, masks on the Hub. Each is read by the ecosystem's loaders."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub
import pytest
import torch
import yaml
from safetensors.torch import load_file

import resect
import tiny
from command_line import ok
from masked import make, same, state
from resect.errors import InputError, MismatchError
from resect.export import export_checkpoint, load_mask, unexport_checkpoint
from resect.files.writing import write_json
from resect.model import find_prunable, load_model, prunable_tensors
from resect.model.shapes import empty_model
from resect.records import Claim, Interval, Results
from resect.stats import rng
from resect.weights.controls import random_mask
from resect.weights.mask import Mask, MaskTensor

IDS = [[5, 9, 17, 33, 8, 4]]
# What a user writes who has never heard of resect, and at the end what one writes who has.
FRESH = """
import sys, torch
from pathlib import Path
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
def logits(model):
    with torch.no_grad():
        return model.eval()(torch.tensor(IDS)).logits.contiguous()
for place in map(Path, sys.argv[1:]):
    model = AutoModelForCausalLM.from_pretrained(place / "cut")
    found = {"auto": logits(model)}
    found["peft"] = logits(PeftModel.from_pretrained(model, place / "adapter"))
    if "llama" in place.name:  # experts are one parameter in memory and many on disk
        fresh = AutoModelForCausalLM.from_pretrained(place / "m")
        fresh.load_state_dict(load_file(place / "cut" / "model.safetensors"), strict=False)
        found["safetensors"] = logits(fresh)
    save_file(found, place / "out.safetensors")
assert "resect" not in sys.modules
import resect
for place in map(Path, sys.argv[1:]):
    model = resect.from_pretrained(place / "m", place / "a.mask.safetensors").model
    save_file({"resect": logits(model)}, place / "ours.safetensors")
"""


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model.eval()(torch.tensor(IDS)).logits
    return output


def exported(architecture: str, parent: Path) -> dict[str, torch.Tensor]:
    """Export a cut model in every way; return the logits that each has in memory."""
    from peft import LoraConfig, get_peft_model

    folder = tiny.save(architecture, parent / "m")
    model = load_model(folder).model
    mask = make(model)
    mask.save(parent / "a.mask.safetensors")
    export_checkpoint(folder, mask, parent / "cut")
    intact = logits(model)
    resect.apply(model, mask)
    cut = logits(model)
    assert not torch.allclose(intact, cut)
    setup = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    adapted = get_peft_model(model, setup)
    adapted.save_pretrained(parent / "adapter")
    ways = {"auto": cut, "resect": cut, "peft": logits(adapted)}
    return ways | ({"safetensors": cut} if architecture == "llama" else {})


def test_exports_load_elsewhere_with_the_logits_of_the_cut_model(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("llama", "mixtral")}
    expected = {name: exported(name, path) for name, path in folders.items()}
    done = subprocess.run(
        [sys.executable, "-c", f"IDS = {IDS}\n{FRESH}", *map(str, folders.values())],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name, path in folders.items():
        logits_of = load_file(path / "out.safetensors") | load_file(path / "ours.safetensors")
        assert logits_of.keys() == expected[name].keys()
        for way, value in expected[name].items():
            assert torch.equal(logits_of[way], value), (name, way)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def front_matter(text: str) -> Any:
    return yaml.safe_load(text.split("---")[1])


def test_the_card_keeps_the_first_one_and_goes_with_the_cut(tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "m")
    original = "---\nlicense: llama3.1\ntags: [chat]\nbase_model: other/base\n---\r\n# Théirs\n"
    (folder / "README.md").write_bytes(original.encode())
    mask = make(load_model(folder).model)
    # As if it had come from the Hub and had parents.
    parents = [{"name": "x/a.mask", "hash": "h" * 16, "count": 3, "meta": {"q": 0.25}}]
    mask = Mask(mask.tensors, {"model_id": "me/some-llama@main", "parents": parents})
    mask.save(tmp_path / "a.mask.safetensors")
    cut = tmp_path / "cut"
    output = ok("prune", folder, tmp_path / "a.mask.safetensors", "-o", cut)
    assert f"{mask.count:,} weights" in output
    text = (cut / "README.md").read_text("utf-8")
    metadata = front_matter(text)
    assert metadata["base_model"] == "me/some-llama"
    assert metadata["license"] == "llama3.1"
    assert metadata["tags"] == ["chat", "pruned", "resect"]
    assert metadata["resect"]["mask"] == mask.hash
    for words in (
        f"{mask.count:,} of its {mask.total:,} prunable weights", "a.mask.safetensors",
        "| q | 0.25 |", "a.mask (" + "h" * 16,
        "no run that measured the mask was named", "no complete defence", "README-original.md",
    ):  # fmt: skip
        assert words in text, words
    assert (cut / "README-original.md").read_bytes() == original.encode()
    assert not list(cut.glob("*.mask.safetensors"))  # a server would load it as weights
    ok("restore", cut, tmp_path / "a.mask.safetensors", "-o", tmp_path / "whole")
    assert files(tmp_path / "whole") == files(folder)
    # Cut twice, mended twice, and without a card of its own.
    (folder / "README.md").unlink()
    drawn = random_mask(mask, prunable_tensors(load_model(folder).model))
    remainder = drawn.subtract(mask)
    export_checkpoint(folder, mask, tmp_path / "c1", mask_name="first")
    assert "had no card" in (tmp_path / "c1" / "README.md").read_text("utf-8")
    export_checkpoint(tmp_path / "c1", remainder, tmp_path / "c2", alpha=0.5, mask_name="second")
    twice = (tmp_path / "c2" / "README.md").read_text("utf-8")
    assert "multiplied by 0.5" in twice
    unexport_checkpoint(tmp_path / "c2", remainder, tmp_path / "w1")
    assert files(tmp_path / "w1") == files(tmp_path / "c1")
    unexport_checkpoint(tmp_path / "w1", mask, tmp_path / "w2")
    assert files(tmp_path / "w2") == files(folder)


def test_a_card_repeats_the_claims_of_a_run_that_measured_the_mask_alone(tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "m")
    mask = make(load_model(folder).model)
    run = tmp_path / "run"
    mask.save(run / "masks" / "x.mask.safetensors")
    claim = Claim(
        "s", "Cuts | work.", "inconclusive", Interval("e", 0.123456, 0.1), (Interval("c", 0.0),),
        rule="", seeds=(0,), n=1, reason="",
    )  # fmt: skip
    spread = replace(claim, effect=Interval("e", 0.2, 0.1, 0.3, bounds="range"))
    write_json(run / "results.json", Results("n", True, (claim, spread), (), {"seeds": [0]}))
    export_checkpoint(folder, mask, tmp_path / "cut", run=run)
    text = (tmp_path / "cut" / "README.md").read_text("utf-8")
    assert "| s | Cuts \\| work. | inconclusive | 0.1235 | 0.1 to – |" in text
    assert "| verdict | effect | 95 % interval or range |" in text
    assert "| 0.2 | 0.1 to 0.3 (range) |" in text
    assert "(shortened)" in text
    drawn = random_mask(mask, prunable_tensors(load_model(folder).model))
    with pytest.raises(MismatchError, match="did not measure this mask"):
        export_checkpoint(folder, drawn, tmp_path / "no", run=run)
    assert not (tmp_path / "no").exists()


def test_a_mask_of_8b_weights_is_small_and_is_applied_in_seconds(tmp_path: Path) -> None:
    coverage = find_prunable(empty_model("llama-8b"))
    assert coverage.total == 6_979_321_856
    draw = rng("8b", 0)
    tensors = {}
    for weight in coverage.weights:
        size = weight.size
        index = torch.from_numpy(draw.choice(size, max(1, round(size * 1e-5)), replace=False))
        indices = index.sort().values
        value = torch.randn(len(indices)).bfloat16()
        rounds = torch.zeros(len(indices), dtype=torch.uint8)
        tensors[weight.name] = MaskTensor(weight.shape, indices, value, rounds)
    mask = Mask(tensors, {"model_id": "meta-llama/Llama-3.1-8B-Instruct"})
    assert mask.fraction == pytest.approx(1e-5, rel=1e-3)
    path = tmp_path / "big.mask.safetensors"
    mask.save(path)
    assert 69_000 * 7 < path.stat().st_size < 1_000_000
    # One block of its width in real memory; the whole model has 32 times as much.
    model = one_block()
    block = {n: e for n, e in Mask.load(path).tensors.items() if ".layers.0." in n}
    for name, tensor in prunable_tensors(model).items():
        tensor.view(-1)[block[name].index] = block[name].value
    before = {n: t.clone() for n, t in prunable_tensors(model).items()}
    start = time.perf_counter()
    cut = resect.apply(model, Mask(block, mask.meta))
    cut.revert()
    assert 32 * (time.perf_counter() - start) < 30
    assert all(torch.equal(t, before[n]) for n, t in prunable_tensors(model).items())


def one_block() -> Any:
    config: Any = empty_model("llama-8b").config
    config.num_hidden_layers, config.vocab_size = 1, 8
    with torch.device("meta"):
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.zero_()
    return model


class Hub:
    """What `HfApi` is asked, written down instead of sent."""

    calls: ClassVar[list[tuple[str, Any]]] = []
    kept: Path

    def __init__(self, token: str | None = None):
        self.calls.append(("token", token))

    def create_repo(self, name: str, **options: Any) -> None:
        self.calls.append(("create", (name, options)))

    def upload_folder(self, *, repo_id: str, folder_path: str, **_options: Any) -> str:
        for path in Path(folder_path).iterdir():
            (self.kept / path.name).write_bytes(path.read_bytes())
        return f"https://hub/{repo_id}/commit/1"


def test_a_mask_goes_to_the_hub_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.save("llama", tmp_path / "m")
    model = load_model(folder).model
    mask, before = make(model), state(model)
    mask.save(tmp_path / "a.mask.safetensors")
    Hub.kept, Hub.calls = tmp_path / "hub", []
    Hub.kept.mkdir()
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    output = ok("mask", "push", tmp_path / "a.mask.safetensors", "me/mask")
    assert "https://hub/me/mask/commit/1" in output
    assert ("create", ("me/mask", {"private": True, "exist_ok": True})) in Hub.calls
    assert {path.name for path in Hub.kept.iterdir()} == {"README.md", "resect.mask.safetensors"}
    card = (Hub.kept / "README.md").read_text("utf-8")
    assert front_matter(card)["resect"] == {"mask": mask.hash, "removed": mask.count}
    assert 'load_mask("me/mask")' in card

    def download(repository: str, name: str, revision: str | None) -> str:
        if (repository, revision) != ("me/mask", "abc"):
            raise huggingface_hub.errors.LocalEntryNotFoundError("no connection")
        return str(Hub.kept / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert load_mask("me/mask@abc").hash == mask.hash == load_mask(tmp_path).hash
    cut, _ = resect.from_pretrained(folder, "me/mask@abc")
    assert not same(cut, before)
    with resect.apply(model, mask):
        assert same(cut, state(model))
    with pytest.raises(InputError, match=r"cannot get resect\.mask\.safetensors"):
        load_mask("me/other")
    for wrong in ("no/such/place", "nowhere", "me/x.safetensors", folder):
        with pytest.raises(InputError, match=r"no such mask|holds 0 masks"):
            load_mask(wrong)
    nothing = mask.subtract(mask)
    for pushed, repository in ((nothing, "me/mask"), (mask, "nobody"), (mask, "a/b/c")):
        with pytest.raises(InputError):
            resect.push_mask(pushed, repository)


def test_templates_take_hostile_names(tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "m")
    mask = make(load_model(folder).model)
    evil = Mask(mask.tensors, {"model_id": "../x", "note": "a\n---\nlicense: mit\n| b"})
    export_checkpoint(folder, evil, tmp_path / "cut", mask_name="n")
    text = (tmp_path / "cut" / "README.md").read_text("utf-8")
    assert "base_model" not in front_matter(text)
    assert "license" not in front_matter(text)
    assert "a --- license: mit \\| b" in text
    assert json.loads(json.dumps(front_matter(text)["resect"]))["removed"] == mask.count
