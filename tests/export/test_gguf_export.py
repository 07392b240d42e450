"""Cut GGUF files: the cut folder's values, nothing else changed, and llama.cpp replies alike."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import llama_cpp
import resect
import tiny
import tiny_gguf
from command_line import call, ok
from resect.edit.checkpoint import cut_record
from resect.errors import InputError, MismatchError
from resect.export import export_checkpoint, export_gguf
from resect.export.gguf_places import placed
from resect.model.gguf import GgufFile, GgufTensor, Sections, read_gguf
from resect.model.imported import checkpoint_of
from resect.weights.mask import Mask, MaskTensor

SHARE = 0.02


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have an empty cache."""
    monkeypatch.setenv("RESECT_CACHE", str(tmp_path / "cache"))


def made(folder: Path, types: Any, architecture: str = "llama", **options: Any) -> Path:
    model = tiny_gguf.build(architecture, **options)
    return tiny_gguf.save(folder / "m.gguf", model, architecture=architecture, types=types)


def mask_of(path: Path, share: float = SHARE) -> Mask:
    return tiny.cut(resect.load_model(path).model, share)


def tensors_of(place: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = load_file(Path(checkpoint_of(place)) / "model.safetensors")
    return tensors


@pytest.mark.parametrize(
    ("architecture", "types", "outtype"),
    [
        ("llama", "F32", "keep"),
        ("llama", "F16", "keep"),
        ("llama", "BF16", "keep"),
        ("llama", "Q4_0", "keep"),
        ("llama", "Q6_K", "keep"),
        ("gemma3", "Q5_0", "keep"),
        ("qwen2", "Q8_0", "keep"),
        ("llama", "Q4_1", "f32"),
        ("llama", "BF16", "f32"),
        ("gemma3", "Q4_K", "f32"),
    ],
)
def test_the_file_of_a_cut_is_the_folder_of_the_cut(
    architecture: str, types: str, outtype: Any, tmp_path: Path
) -> None:
    path = made(tmp_path, types, architecture)
    mask = mask_of(path)
    written = export_gguf(path, mask, tmp_path / "cut.gguf", outtype=outtype)
    export_checkpoint(path, mask, tmp_path / "cut")
    assert (written.weights, written.tensors) == (mask.count, len(mask.tensors))
    assert written.rounded == 0
    folder, file = load_file(tmp_path / "cut/model.safetensors"), tensors_of(tmp_path / "cut.gguf")
    assert folder.keys() == file.keys()
    for name, tensor in folder.items():
        assert torch.equal(tensor.float(), file[name].float()), name
    # The mask did something.
    assert any(not torch.equal(folder[name], value) for name, value in tensors_of(path).items())


def test_heads_without_a_matrix_of_their_own_are_left_tied(tmp_path: Path) -> None:
    for tied in (True, False):
        folder = tmp_path / str(tied)
        folder.mkdir()
        path = made(folder, "Q8_0", tied=tied)
        export_gguf(path, mask_of(path), folder / "cut.gguf")
        assert ("output.weight" in read_gguf(folder / "cut.gguf").tensors) != tied
        loaded: Any = resect.load_model(folder / "cut.gguf").model
        assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied


def test_rounding_to_a_narrower_type_is_counted(tmp_path: Path) -> None:
    path = made(tmp_path, "Q4_1")
    mask = mask_of(path)
    words = ("prune", path, tmp_path / "m.mask.safetensors", "-o", tmp_path / "cut.gguf")
    mask.save(words[2])
    done = call(*words, "--outtype", "f16")
    assert done.returncode == 0, done.stderr
    before, after = tensors_of(path), tensors_of(tmp_path / "cut.gguf")
    matrices = [name for name, tensor in before.items() if tensor.dim() > 1]
    changed = 0
    for name, tensor in before.items():
        expected = tensor.half().float() if name in matrices else tensor.clone()
        changed += int((expected != tensor).sum())
        if name in mask.tensors:
            index = mask.tensors[name].index
            changed -= int((expected.view(-1)[index] != tensor.view(-1)[index]).sum())
            expected.view(-1)[index] = 0
        assert torch.equal(after[name], expected), name
    values = sum(before[name].numel() for name in matrices)
    told = " ".join(done.stderr.split())
    assert f"{values:,} weights are in another type than before, and {changed:,} of them" in told
    facts = read_gguf(tmp_path / "cut.gguf").facts
    assert facts["general.file_type"] == gguf.LlamaFileType.MOSTLY_F16


def test_places_are_followed_through_the_rows_of_heads(tmp_path: Path) -> None:
    """Each weight has a value of its own here, so a wrong row is seen."""
    model = tiny_gguf.build()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "embed" not in name:
                numbers = torch.arange(parameter.numel(), dtype=torch.float32)
                parameter.copy_(numbers.view(parameter.shape))
    file = read_gguf(tiny_gguf.save(tmp_path / "m.gguf", model))
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or "embed" in name:
            continue
        index = np.arange(parameter.numel(), dtype=np.int64)
        where = placed(file, name, tuple(parameter.shape), index)
        values = where.tensor.data.view(np.float32)
        assert np.array_equal(values[where.index], index.astype(np.float32)), name
        moved = not np.array_equal(where.index, index)
        assert moved == name.endswith(("q_proj.weight", "k_proj.weight"))


@pytest.mark.parametrize(
    ("architecture", "name", "inner", "turned"),
    [
        ("gpt2", "transformer.h.0.attn.c_attn.weight", "blk.0.attn_qkv.weight", True),
        ("gpt2", "transformer.h.0.attn.c_proj.weight", "blk.0.attn_output.weight", True),
        ("qwen3moe", "model.layers.0.mlp.experts.2.up_proj.weight", "blk.0.ffn_up_exps.weight", 0),
    ],
)
def test_places_in_turned_matrices_and_among_joined_experts(
    architecture: str, name: str, inner: str, turned: bool
) -> None:
    weight = np.arange(8 * 24, dtype=np.float32).reshape(8, 24)
    held = weight.T if turned else np.stack([np.full_like(weight, -1)] * 2 + [weight])
    data = np.ascontiguousarray(held).reshape(-1).view(np.uint8)
    facts: dict[str, str | int] = {
        "general.architecture": architecture,
        f"{architecture}.block_count": 1,
    }
    tensors = {inner: GgufTensor(inner, "F32", held.shape, data, 1)}
    file = GgufFile(Path("x.gguf"), facts, {}, tensors, Sections(24, 24), 32)
    index = np.array([0, 1, 24, 100, 8 * 24 - 1])
    where = placed(file, name, weight.shape, index)
    assert np.array_equal(where.tensor.data.view(np.float32)[where.index], index)
    other = name.replace("experts.2", "experts.3")
    if other != name:
        with pytest.raises(MismatchError, match="has another shape"):
            placed(file, other, weight.shape, index)


def test_nothing_is_forced_into_a_layout_that_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made(tmp_path, "Q8_0")
    mask = tiny.cut(tiny_gguf.build(), SHARE)
    monkeypatch.setattr("resect.export.gguf.KNOWN", ())
    with pytest.raises(MismatchError, match="another value") as caught:
        export_gguf(path, mask, tmp_path / "cut.gguf", force=True)
    assert "--force" not in str(caught.value)
    assert not (tmp_path / "cut.gguf").exists()


def test_nothing_but_the_cut_and_what_is_said_of_it_changes(tmp_path: Path) -> None:
    path = made(tmp_path, lambda name: "Q8_0" if "ffn" in name else "Q5_0")
    mask = mask_of(path, 0.001)
    export_gguf(path, mask, tmp_path / "cut.gguf", mask_name="x.mask.safetensors")
    before, after = gguf.GGUFReader(path), gguf.GGUFReader(tmp_path / "cut.gguf")
    new = {"resect.cut", "resect.card"}
    for name, field in before.fields.items():
        if name != "GGUF.kv_count":
            assert after.fields[name].contents() == field.contents(), name
    assert set(after.fields) - set(before.fields) == new
    changed = 0
    for old, cut in zip(before.tensors, after.tensors, strict=True):
        assert (old.name, old.tensor_type, list(old.shape)) == (
            cut.name, cut.tensor_type, list(cut.shape)
        )  # fmt: skip
        values = [
            gguf.quants.dequantize(each.data, each.tensor_type).reshape(-1) for each in (old, cut)
        ]
        different = values[0] != values[1]
        assert not values[1][different].any()
        changed += int(different.sum())
    zeros = sum(int((entry.value == 0).sum()) for entry in mask.tensors.values())
    assert changed == mask.count - zeros
    assert "x.mask.safetensors" in after.fields["resect.card"].contents()
    record: Any = cut_record(tmp_path / "cut.gguf")
    assert record["mask"] == mask.hash
    assert record["before"] is None
    assert record["source"] == str(path)


def test_a_file_may_be_cut_again_and_each_cut_undone(tmp_path: Path) -> None:
    path = made(tmp_path, "Q4_0")
    first = mask_of(path, 0.01)
    export_gguf(path, first, tmp_path / "once.gguf")
    second = tiny.cut(resect.load_model(tmp_path / "once.gguf").model, 0.01, seed=1)
    export_gguf(tmp_path / "once.gguf", second, tmp_path / "twice.gguf")
    record: Any = cut_record(tmp_path / "twice.gguf")
    assert (record["mask"], record["before"]["mask"]) == (second.hash, first.hash)
    masks = [tmp_path / f"{number}.mask.safetensors" for number in (1, 2)]
    for mask, file in zip((first, second), masks, strict=True):
        mask.save(file)
    ok("restore", tmp_path / "twice.gguf", masks[1], "-o", tmp_path / "once")
    ok("restore", tmp_path / "once", masks[0], "-o", tmp_path / "whole")
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    assert all(torch.equal(whole[name], tensor) for name, tensor in tensors_of(path).items())


@pytest.mark.parametrize("types", ["F16", "BF16", "F32"])
def test_a_factor_needs_a_type_without_blocks(types: str, tmp_path: Path) -> None:
    path = made(tmp_path, types)
    mask = mask_of(path)
    export_gguf(path, mask, tmp_path / "half.gguf", alpha=0.5)
    before, after = tensors_of(path), tensors_of(tmp_path / "half.gguf")
    for name, entry in mask.tensors.items():
        # The product is rounded as the file's own type rounds it.
        own = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}[types]
        expected = before[name].to(own)
        expected.view(-1)[entry.index] *= 0.5
        assert torch.equal(after[name].float(), expected.float())


def refused(folder: Path, *words: Any) -> str:
    before = sorted(path.name for path in folder.rglob("*"))
    done = call("prune", *words)
    assert done.returncode == 2, done.stderr
    assert sorted(path.name for path in folder.rglob("*")) == before
    return " ".join(done.stderr.split())


def test_what_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    path = made(tmp_path, lambda name: "Q4_1" if "attn_q" in name else "Q8_0")
    mask, file, new = mask_of(path), tmp_path / "m.mask.safetensors", tmp_path / "new.gguf"
    mask.save(file)
    told = refused(tmp_path, path, file, "-o", new)
    count = mask.tensors["model.layers.0.self_attn.q_proj.weight"].index.numel()
    assert re.search(rf"blk.0.attn_q.weight \(Q4_1, [\d,]+ of {count:,} weights\)", told)
    assert "--outtype f16" in told
    assert "blk.0.attn_k" not in told
    assert "alpha 0.5, type Q" in refused(tmp_path, path, file, "-o", new, "--alpha", "0.5")
    (tmp_path / "there.gguf").write_text("", encoding="utf-8")
    assert "is there already" in refused(tmp_path, path, file, "-o", tmp_path / "there.gguf")
    folder = checkpoint_of(path)
    assert "made of the one that the model was imported from" in refused(
        tmp_path, folder, file, "-o", new
    )
    assert "--outtype is of GGUF files" in refused(
        tmp_path, path, file, "-o", tmp_path / "new", "--outtype", "f16"
    )
    assert "is not a GGUF file" in refused(tmp_path, file, file, "-o", new)
    done = call("restore", path, file, "-o", new)
    assert done.returncode == 2
    assert "undone into a checkpoint folder" in " ".join(done.stderr.split())


def test_a_value_beyond_the_range_of_a_type_is_refused(tmp_path: Path) -> None:
    model = tiny_gguf.build()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e5
    path = tiny_gguf.save(tmp_path / "m.gguf", model, types="BF16")
    mask = mask_of(path, 0.001)
    with pytest.raises(InputError, match=r"blk.0.ffn_up.weight has a value that F16 cannot hold"):
        export_gguf(path, mask, tmp_path / "cut.gguf", outtype="f16")
    assert not (tmp_path / "cut.gguf").exists()
    export_gguf(path, mask, tmp_path / "cut.gguf", outtype="f32")


def test_a_mask_of_another_model_is_refused_or_says_so_for_ever(tmp_path: Path) -> None:
    """The mask of the model before quantisation is of use, and by force alone."""
    model = tiny_gguf.build()
    path = tiny_gguf.save(tmp_path / "m.gguf", model, types="Q8_0")
    mask = tiny.cut(model, SHARE)
    with pytest.raises(MismatchError, match=r"another value in .*m.gguf(?s:.*)--force"):
        export_gguf(path, mask, tmp_path / "cut.gguf")
    export_gguf(path, mask, tmp_path / "cut.gguf", force=True)
    record: Any = cut_record(tmp_path / "cut.gguf")
    assert "another value" in record["forced"]
    after = tensors_of(tmp_path / "cut.gguf")
    for name, entry in mask.tensors.items():
        assert not after[name].view(-1)[entry.index].any()
    wrong = Mask({"model.layers.9.mlp.up_proj.weight": _entry((512, 256))}, {})
    with pytest.raises(MismatchError, match="has no tensor for"):
        export_gguf(path, wrong, tmp_path / "new.gguf", force=True)
    wrong = Mask({"model.layers.0.mlp.up_proj.weight": _entry((256, 512))}, {})
    with pytest.raises(MismatchError, match="has another shape"):
        export_gguf(path, wrong, tmp_path / "new.gguf", force=True)
    assert not (tmp_path / "new.gguf").exists()


def _entry(shape: tuple[int, ...]) -> MaskTensor:
    return MaskTensor(shape, torch.tensor([0]), torch.ones(1), torch.zeros(1, dtype=torch.uint8))


def gaps(model: Any, prompt: list[int], reply: list[int], without: list[int]) -> list[float]:
    """Return by how many nats each token of a reply is less likely than the likeliest one."""
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1]
    logits = logits.clone()
    logits[:, without] = -torch.inf
    best = logits.max(dim=-1).values
    return [float(best[step] - logits[step, token]) for step, token in enumerate(reply)]


TEXTS = ["in the thing that is there", "Hello, 42 <x>  two\nlines é", "a"]
# Largest difference in log-probability, in nats. llama.cpp rounds what flows into matrices of F16
# and BF16 to these types and into those of blocks to 8 bits, which transformers does not.
NEAR = {"F32": 0.005, "F16": 0.02, "BF16": 0.1, "Q8_0": 0.5, "Q4_0": 0.5, "Q4_1": 0.5}


@pytest.mark.skipif(llama_cpp.interpreter() is None, reason=llama_cpp.ABSENT)
@pytest.mark.parametrize(
    ("architecture", "types", "outtype"),
    [
        ("llama", "F32", "keep"),
        ("llama", "F16", "keep"),
        ("llama", "BF16", "keep"),
        ("llama", "Q4_1", "f16"),
        ("llama", "Q8_0", "keep"),
        ("llama", "Q4_0", "keep"),
        ("gemma3", "F16", "keep"),
        ("gemma3", "F32", "keep"),
        ("qwen2", "BF16", "keep"),
    ],
)
def test_llama_cpp_replies_as_the_cut_folder_does(
    architecture: str, types: str, outtype: Any, tmp_path: Path
) -> None:
    path = made(tmp_path, types, architecture)
    mask = mask_of(path)
    export_gguf(path, mask, tmp_path / "cut.gguf", outtype=outtype)
    export_checkpoint(path, mask, tmp_path / "cut")
    cut = resect.load_model(tmp_path / "cut", dtype="float32")
    tokenizer: Any = cut.tokenizer
    prompts = [tokenizer(text)["input_ids"] for text in TEXTS]
    without = tiny_gguf.unsaid(architecture)
    answers = llama_cpp.ask(tmp_path / "cut.gguf", [*TEXTS, *prompts], 12, without=without)
    held = {"keep": types, "f16": "F16"}[outtype]
    for number, prompt in enumerate(prompts):
        # It splits a text into the same tokens.
        split, answer = answers[number], answers[len(TEXTS) + number]
        assert split == answer
        assert answer.prompt == len(prompt)
        with torch.inference_mode():
            expected = cut.model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        differences = [
            abs(float(expected[token]) - value) for token, value in answer.log_probabilities.items()
        ]
        assert len(differences) == len(expected)
        assert max(differences) < NEAR[held]
        # The same greedy token wherever two are not as near as the rounding is wide.
        apart = gaps(cut.model, prompt, answer.reply, without)
        assert max(apart) < 2 * NEAR[held]
        if held in ("F32", "F16"):
            assert max(apart) == 0
    # The cut is one that can be seen.
    intact = llama_cpp.ask(path, prompts[:1], 1, without=without)[0].log_probabilities
    cut_by = [abs(value - intact[token]) for token, value in answers[3].log_probabilities.items()]
    assert max(cut_by) > 2 * NEAR[held]


def test_the_record_in_a_file_is_json(tmp_path: Path) -> None:
    path = made(tmp_path, "Q8_0")
    export_gguf(path, mask_of(path, 0.001), tmp_path / "cut.gguf")
    assert json.loads(str(read_gguf(tmp_path / "cut.gguf").facts["resect.cut"]))["alpha"] == 0
