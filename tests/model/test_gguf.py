"""GGUF files as models: the values of the blocks, read once, and messages for what is none."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import resect
import tiny
import tiny_gguf
from command_line import call, ok, write
from resect.errors import InputError
from resect.files import hash_file
from resect.model import imported
from resect.model.gguf import is_gguf, read_gguf
from resect.model.imported import checkpoint_of, import_gguf
from resect.model.ollama import model_file
from resect.weights.mask import Mask


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have an empty cache."""
    monkeypatch.setenv("RESECT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny_gguf.build()


def row_of_checkpoint(row: int, rows: int, heads: int) -> int:
    """Return where a row of queries or keys in a file stands in a checkpoint, step by step."""
    size = rows // heads
    head, within = row // size, row % size
    pair, is_second = within // 2, within % 2
    return head * size + (pair + size // 2 if is_second else pair)


def decoded(path: Path, architecture: str) -> dict[str, torch.Tensor]:
    """Return a checkpoint's tensors from a file: the package's values, row by row."""
    reader = gguf.GGUFReader(path)
    names = gguf.get_tensor_name_map(
        next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture), 2
    )
    config = tiny_gguf.build(architecture).config
    stems = {
        names.get_name(name.rpartition(".")[0]): name.rpartition(".")[0]
        for name in tiny_gguf.build(architecture).state_dict()
        if name != "lm_head.weight"
    }
    tensors = {}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        stem, _, suffix = tensor.name.rpartition(".")
        if architecture == "llama" and stem.endswith(("attn_q", "attn_k")):
            heads = config.num_attention_heads
            heads = config.num_key_value_heads if stem.endswith("attn_k") else heads
            ordered = np.empty_like(values)
            for row in range(len(values)):
                ordered[row_of_checkpoint(row, len(values), heads)] = values[row]
            values = ordered
        if architecture == "gemma3" and "norm" in stem:
            values = values - 1
        tensors[f"{stems[stem]}.{suffix}"] = torch.from_numpy(np.array(values))
    return tensors


@pytest.mark.parametrize(
    ("architecture", "types"),
    [
        ("llama", "F32"),
        ("llama", "Q8_0"),
        ("llama", "Q4_1"),
        ("llama", "Q4_K"),
        ("llama", "Q6_K"),
        ("gemma3", "Q5_0"),
        ("qwen2", "Q4_0"),
    ],
)
def test_a_folder_holds_the_values_that_the_blocks_decode_to(
    architecture: str, types: str, tmp_path: Path
) -> None:
    model = tiny_gguf.build(architecture)
    path = tiny_gguf.save(tmp_path / "m.gguf", model, architecture=architecture, types=types)
    import_gguf([path], tmp_path / "folder")
    held = load_file(tmp_path / "folder" / "model.safetensors")
    expected = decoded(path, architecture)
    assert held.keys() == expected.keys()
    for name, values in expected.items():
        assert held[name].dtype == torch.float32
        assert torch.equal(held[name], values), name


@pytest.mark.parametrize("tied", [True, False])
def test_a_file_of_floats_is_the_model_that_it_was_made_from(tied: bool, tmp_path: Path) -> None:
    model = tiny_gguf.build(tied=tied)
    loaded = resect.load_model(tiny_gguf.save(tmp_path / "m.gguf", model))
    ids = torch.tensor([loaded.tokenizer("in the thing")["input_ids"]])
    with torch.inference_mode():
        assert torch.equal(loaded.model(ids).logits, model(ids).logits)
    head: Any = loaded.model.get_output_embeddings()
    assert (head.weight is loaded.model.get_input_embeddings().weight) == tied


def test_a_folder_has_what_a_checkpoint_needs(llama: Any, tmp_path: Path) -> None:
    path = tiny_gguf.save(tmp_path / "m.gguf", llama, types="Q8_0")
    shown = ok("import", path, "-o", tmp_path / "folder")
    assert "architecture llama in float32" in " ".join(shown.split())
    folder = tmp_path / "folder"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert "quantization_config" not in config
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (folder / "chat_template.jinja").read_text(encoding="utf-8") == tiny_gguf.TEMPLATE
    loaded = resect.load_model(folder)
    chat: Any = loaded.tokenizer
    turns = [{"role": "user", "content": "in the"}]
    assert chat.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>user\nin the<|im_end|>\n<|im_start|>assistant\n"
    )
    assert chat.decode(chat("Hello, the 42é!")["input_ids"]) == "Hello, the 42é!"
    record = json.loads((folder / "gguf.json").read_text(encoding="utf-8"))
    assert record["types"] == ["Q8_0", "F32"]
    assert record["hash"] == hash_file(path)
    assert "values that its blocks (Q8_0) decode to" in record["meaning"]
    # As any other checkpoint.
    assert resect.load_model(path).model.dtype == torch.float32


@pytest.mark.parametrize(
    ("template", "end", "expected"),
    [
        (tiny_gguf.TEMPLATE, 2, 2),
        # The file of a base model whose template ends turns with another token.
        (tiny_gguf.TEMPLATE, 0, [0, 2]),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", 0, 0),
    ],
)
def test_a_reply_ends_where_the_file_or_its_template_says(
    template: str, end: int, expected: object, llama: Any, tmp_path: Path
) -> None:
    def ends(writer: gguf.GGUFWriter) -> None:
        del writer.kv_data[0]["tokenizer.chat_template"]
        del writer.kv_data[0]["tokenizer.ggml.eos_token_id"]
        writer.add_chat_template(template)
        writer.add_eos_token_id(end)

    path = tiny_gguf.save(tmp_path / "m.gguf", llama, extra=ends)
    import_gguf([path], tmp_path / "folder")
    text = (tmp_path / "folder" / "generation_config.json").read_text(encoding="utf-8")
    assert json.loads(text)["eos_token_id"] == expected


def test_the_ends_of_turns_and_messages_that_a_file_names_count(llama: Any, tmp_path: Path) -> None:
    path = tiny_gguf.save(
        tmp_path / "m.gguf", llama, extra=lambda writer: writer.add_eot_token_id(0)
    )
    generation: Any = resect.load_model(path).model
    assert generation.generation_config.eos_token_id == [0, 2]


@pytest.mark.parametrize(("types", "dtype"), [("BF16", torch.bfloat16), ("F16", torch.float16)])
def test_a_file_without_blocks_keeps_its_dtype(
    types: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = tiny_gguf.build().to(dtype).float()
    path = tiny_gguf.save(tmp_path / "m.gguf", model, types=types)
    loaded = resect.load_model(path).model
    assert loaded.dtype == dtype
    assert all(
        torch.equal(parameter.float(), expected)
        for parameter, expected in zip(loaded.parameters(), model.parameters(), strict=True)
    )


def test_a_file_with_values_that_its_dtype_lacks_becomes_float32(tmp_path: Path) -> None:
    """Norms are held in F32, and need not be values of the other type."""
    path = tiny_gguf.save(tmp_path / "m.gguf", tiny_gguf.build(), types="F16")
    assert resect.load_model(path).model.dtype == torch.float32


def test_queries_of_gemma_are_scaled_by_the_size_of_its_heads(tmp_path: Path) -> None:
    model = tiny_gguf.build("gemma3")
    path = tiny_gguf.save(tmp_path / "m.gguf", model, architecture="gemma3")
    loaded: Any = resect.load_model(path)
    assert loaded.model.config.query_pre_attn_scalar == model.config.head_dim == 64
    ids = torch.tensor([loaded.tokenizer("in the thing")["input_ids"]])
    with torch.inference_mode():
        difference = (loaded.model(ids).logits - model(ids).logits).abs().max()
    assert float(difference) < 1e-4  # norms went through 1 + w - 1


def test_a_file_is_imported_once(
    llama: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, cache: Path
) -> None:
    path = tiny_gguf.save(tmp_path / "m.gguf", llama, types="Q8_0")
    with caplog.at_level(logging.WARNING):
        first = resect.load_model(path)
    assert [record.message for record in caplog.records] == [
        f"{path} is imported once, into {checkpoint_of(path)}: its weights are now the values that "
        "its blocks (Q8_0) decode to; the precision from before the quantisation is gone, and "
        "scores and masks belong to these values"
    ]
    caplog.clear()
    copied = shutil.copy(path, tmp_path / "other name")
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.delattr(imported, "import_gguf")
        for same in (path, copied, str(path)):
            assert checkpoint_of(same) == checkpoint_of(path)
        second = resect.load_model(copied)
    assert not caplog.records
    assert resect.model.model_fingerprint(first.model) == resect.model.model_fingerprint(
        second.model
    )
    path.unlink()
    tiny_gguf.save(path, tiny_gguf.build(seed=1), types="Q8_0")
    third = resect.load_model(path)
    assert resect.model.model_fingerprint(third.model) != resect.model.model_fingerprint(
        first.model
    )
    assert len(list((cache / "gguf").iterdir())) == 2


def test_a_file_is_parsed_once(llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []
    parse = gguf.GGUFReader

    def counted(path: Any) -> gguf.GGUFReader:
        parsed.append(str(path))
        return parse(path)

    monkeypatch.setattr(gguf, "GGUFReader", counted)
    file = tiny_gguf.save(tmp_path / "tiny.gguf", llama)
    import_gguf([file], tmp_path / "folder")
    # By us, and by transformers for configuration, weights and tokenizer.
    assert len(parsed) == 1
    assert gguf.GGUFReader is counted


def test_two_processes_may_import_the_same(
    llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_gguf.save(tmp_path / "m.gguf", llama)

    def meanwhile(paths: list[Path], target: Path, **options: Any) -> imported.Imported:
        import_gguf(paths, target, **options)
        return import_gguf(paths, target, **options)

    monkeypatch.setattr(imported, "import_gguf", meanwhile)
    assert resect.load_model(path).model.dtype == torch.float32


def test_parts_are_joined_in_order(llama: Any, tmp_path: Path, cache: Path) -> None:
    whole = tiny_gguf.save(tmp_path / "m.gguf", llama, types="Q4_0")
    content = whole.read_bytes()
    third = len(content) // 3
    parts = [tmp_path / f"m.gguf.part{number}" for number in range(3)]
    pieces = (content[:third], content[third : 2 * third], content[2 * third :])
    for part, piece in zip(parts, pieces, strict=True):
        part.write_bytes(piece)
    ok("import", *parts, "-o", tmp_path / "joined")
    ok("import", whole, "-o", tmp_path / "whole")
    joined, expected = (
        load_file(tmp_path / name / "model.safetensors") for name in ("joined", "whole")
    )
    assert all(torch.equal(joined[name], tensor) for name, tensor in expected.items())
    record = json.loads((tmp_path / "joined" / "gguf.json").read_text(encoding="utf-8"))
    assert record["source"] == list(map(str, parts))
    assert not list((cache / "gguf").iterdir())

    for wrong, message in (
        ([parts[0]], f"{parts[0]} is not a whole GGUF file"),
        ([parts[0]], "resect import PART1 PART2"),
        ([parts[1], parts[0], parts[2]], "is not a GGUF file"),
        (parts[:2], "is not a whole GGUF file"),
        ([parts[0], tmp_path / "absent"], "no such GGUF file"),
    ):
        done = call("import", *wrong, "-o", tmp_path / "new")
        assert done.returncode == 2
        assert message in " ".join(done.stderr.split())
        assert not (tmp_path / "new").exists()


def _unread(path: Path, change: Callable[[gguf.GGUFWriter], None]) -> str:
    tiny_gguf.save(path, tiny_gguf.build(), extra=change)
    return " ".join(import_gguf([path], path.with_suffix("")).notes)


def test_what_transformers_does_not_read_is_named(tmp_path: Path) -> None:
    def factors(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("rope_freqs.weight", np.ones(32, dtype=np.float32))

    note = _unread(tmp_path / "a.gguf", factors)
    assert "32 of" in note
    assert "the scaling of positions (rope_freqs.weight)" in note
    scaled = _unread(
        tmp_path / "b.gguf",
        lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR),
    )
    assert "the scaling of positions (llama.rope.scaling.type)" in scaled
    assert _unread(tmp_path / "c.gguf", lambda _: None) == ""


def _architecture(name: str) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        writer = gguf.GGUFWriter(path, name)
        writer.add_tensor("token_embd.weight", np.zeros((4, 32), dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return make


def _text(path: Path) -> Path:
    path.write_text("no model", encoding="utf-8")
    return path


def _part(path: Path) -> Path:
    return tiny_gguf.save(
        path, tiny_gguf.build(), extra=lambda writer: writer.add_uint16("split.count", 3)
    )


def _wrong_record(path: Path) -> Path:
    return tiny_gguf.save(
        path, tiny_gguf.build(), extra=lambda writer: writer.add_string("resect.cut", "[1")
    )


def _many_blocks(path: Path) -> Path:
    def add(writer: gguf.GGUFWriter) -> None:
        del writer.kv_data[0]["llama.block_count"]
        writer.add_block_count(2**31 - 1)

    return tiny_gguf.save(path, tiny_gguf.build(), extra=add)


def _without_norms(path: Path) -> Path:
    class Model:
        config = tiny_gguf.build().config

        @staticmethod
        def state_dict() -> dict[str, torch.Tensor]:
            tensors = tiny_gguf.build().state_dict()
            return {name: tensor for name, tensor in tensors.items() if "layernorm" not in name}

    return tiny_gguf.save(path, Model)


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no file": (lambda path: path, "no such GGUF file"),
    "no GGUF": (_text, "is not a GGUF file"),
    "no known architecture": (_architecture("nothing"), "architecture nothing"),
    "no causal model": (_architecture("bert"), "architecture bert"),
    "nothing but a table": (_architecture("llama"), "lacks weights of its model"),
    "one of several": (_part, "llama-gguf-split --merge"),
    "more blocks than tensors": (_many_blocks, "2,147,483,647 blocks"),
    "no record of its cut": (_wrong_record, "does not say how it was cut"),
    "holes": (_without_norms, "lacks weights of its model"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_imported_is_one_message(case: str, tmp_path: Path, cache: Path) -> None:
    make, message = BAD[case]
    path = make(tmp_path / "m.gguf")
    for words in (("import", path, "-o", tmp_path / "new"), ("coverage", path)):
        done = call(*words)
        assert done.returncode == 2, done.stderr
        assert message in " ".join(done.stderr.split())
        assert not (tmp_path / "new").exists()
        assert not (cache / "gguf").exists() or not list((cache / "gguf").iterdir())


LIBRARY = "application/vnd.ollama.image"


def ollama(folder: Path, file: Path, **changes: Any) -> Path:
    """Put a file into a folder of models as Ollama lays it out; return the manifest of tiny:1b."""
    blobs = folder / "blobs"
    blobs.mkdir(parents=True)

    def layer(kind: str, content: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        (blobs / f"sha256-{digest}").write_bytes(content)
        return {
            "mediaType": f"{LIBRARY}.{kind}",
            "digest": f"sha256:{digest}",
            "size": len(content),
        }

    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "layers": [
            layer("template", b"{{ .Prompt }}"),
            layer("model", file.read_bytes()) | changes,
            layer("params", b"{}"),
        ],
    }
    path = folder / "manifests" / "registry.ollama.ai" / "library" / "tiny" / "1b"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(manifest), encoding="utf-8")
    return path


def test_a_manifest_of_ollama_leads_to_its_file(llama: Any, tmp_path: Path, cache: Path) -> None:
    file = tiny_gguf.save(tmp_path / "m.gguf", llama, types="Q8_0")
    manifest = ollama(tmp_path / "models", file)
    (blob,) = (path for path in (tmp_path / "models" / "blobs").iterdir() if is_gguf(path))
    folders = {checkpoint_of(place) for place in (file, manifest, blob)}
    assert len(folders) == 1
    assert vars(resect.load_model(manifest).model)["name_or_path"] == str(manifest)
    ok("import", manifest, "-o", tmp_path / "folder")
    record = json.loads((tmp_path / "folder" / "gguf.json").read_text(encoding="utf-8"))
    assert record["source"] == [str(manifest)]
    assert record["hash"] == hash_file(file)
    # The way out takes it, too.
    model = resect.load_model(manifest).model
    mask = tiny.cut(model, 0.01)
    mask.save(tmp_path / "cut.safetensors")
    ok("prune", manifest, tmp_path / "cut.safetensors", "-o", tmp_path / "cut.gguf")
    assert read_gguf(tmp_path / "cut.gguf").types == read_gguf(file).types


MISSING = f"sha256:{'0' * 64}"
BAD_MANIFESTS: dict[str, tuple[dict[str, Any], str]] = {
    "no blob": ({"digest": MISSING}, f"sha256-{'0' * 64}"),
    "no digest": ({"digest": "sha256:../../m.gguf"}, "names no blob"),
    "tensors": ({"mediaType": f"{LIBRARY}.tensor"}, "no model that is one GGUF file"),
    "adapter": ({"mediaType": f"{LIBRARY}.adapter"}, "no model that is one GGUF file"),
}


@pytest.mark.parametrize("case", BAD_MANIFESTS)
def test_a_manifest_without_its_file_is_one_message(case: str, tmp_path: Path, llama: Any) -> None:
    changes, message = BAD_MANIFESTS[case]
    file = tiny_gguf.save(tmp_path / "m.gguf", llama)
    manifest = ollama(tmp_path / "models", file, **changes)
    for words in (("import", manifest, "-o", tmp_path / "new"), ("coverage", manifest)):
        done = call(*words)
        assert done.returncode == 2, done.stderr
        assert message in " ".join(done.stderr.split())
        assert str(manifest) in " ".join(done.stderr.split())
        assert not (tmp_path / "new").exists()


def test_a_manifest_outside_of_its_folder_and_an_adapter_on_top_are_refused(
    llama: Any, tmp_path: Path
) -> None:
    manifest = ollama(tmp_path / "models", tiny_gguf.save(tmp_path / "m.gguf", llama))
    alone = Path(shutil.copy(manifest, tmp_path / "alone"))
    with pytest.raises(InputError, match="no folder `manifests` above it"):
        checkpoint_of(alone)
    content = json.loads(manifest.read_text(encoding="utf-8"))
    content["layers"].append({"mediaType": f"{LIBRARY}.adapter", "digest": MISSING})
    manifest.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match="puts an adapter on its model"):
        checkpoint_of(manifest)


def test_a_projector_that_a_manifest_names_is_said_to_be_left_out(
    llama: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = ollama(tmp_path / "models", tiny_gguf.save(tmp_path / "m.gguf", llama))
    model_file(manifest)
    assert not caplog.records
    content = json.loads(manifest.read_text(encoding="utf-8"))
    content["layers"].append({"mediaType": f"{LIBRARY}.projector", "digest": "sha256:" + 64 * "a"})
    seeing = manifest.with_name("seeing")
    seeing.write_text(json.dumps(content), encoding="utf-8")
    blob = model_file(seeing)
    assert blob == model_file(manifest)
    assert model_file(seeing) == blob
    (said,) = caplog.records
    assert str(seeing) in said.getMessage()
    assert "projector" in said.getMessage()


def test_names_and_folders_of_ollama_lead_to_the_manifest(llama: Any, tmp_path: Path) -> None:
    models = tmp_path / "models"
    manifest = ollama(models, tiny_gguf.save(tmp_path / "m.gguf", llama))
    cases: list[tuple[object, str]] = [
        (models, str(manifest)),
        ("tiny:1b", "manifests/registry.ollama.ai/library/tiny/1b"),
        ("owner/tiny:1b", "manifests/registry.ollama.ai/owner/tiny/1b"),
        (f"{models}/tiny:1b", "manifests/registry.ollama.ai/library/tiny/1b"),
    ]
    for place, message in cases:
        for words in (("import", place, "-o", tmp_path / "new"), ("coverage", place)):
            done = call(*words)
            assert done.returncode == 2, done.stderr
            assert message in " ".join(done.stderr.split()), (words, done.stderr)


def test_a_missing_package_is_named(
    llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_gguf.save(tmp_path / "m.gguf", llama)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install 'resect\[gguf\]'"):
        import_gguf([path], tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_file_that_ends_early_or_has_a_wrong_byte_is_one_message(
    llama: Any, tmp_path: Path
) -> None:
    content = tiny_gguf.save(tmp_path / "m.gguf", llama, types="Q8_0").read_bytes()
    draw = np.random.default_rng(0)
    header = content.index(b"blk.0.attn_q.weight") + 2000
    broken = tmp_path / "broken.gguf"
    cuts = [4, 8, 16, 20, 24, 25, 40, *draw.integers(40, header, 20), len(content) - 1]
    for length in cuts:
        broken.write_bytes(content[:length])
        with pytest.raises(InputError, match=r"is not a whole GGUF file|holds no model"):
            read_gguf(broken)
    for place in draw.integers(4, header, 40):
        wrong = bytearray(content)
        wrong[place] ^= 1 << int(draw.integers(0, 8))
        broken.write_bytes(wrong)
        try:  # not each byte of a header matters
            read_gguf(broken)
        except InputError:
            continue


def test_every_step_takes_a_file_as_its_model(llama: Any, tmp_path: Path) -> None:
    path = tiny_gguf.save(tmp_path / "m.gguf", llama, types="Q8_0")
    rows = [
        {"prompt": "in the", "completion": f"thing number {number} that is there"}
        for number in range(4)
    ]
    data = write(tmp_path / "rows.jsonl", rows)
    assert "1,179,648 prunable weights" in ok("coverage", path)
    ok("coverage", path, "--plan")
    ok("data", "check", data, "--model", path)
    scores = [tmp_path / f"{name}.scores.safetensors" for name in ("a", "streamed")]
    ok("score", path, "--data", data, "-o", scores[0])
    ok("score", path, "--data", data, "--stream", "-o", scores[1])
    mask = tmp_path / "m.mask.safetensors"
    for score in scores:
        ok("select", scores[0], score, "--q", "0.01", "--p", "0", "-o", mask)
        loaded = Mask.load(mask)
        assert loaded.meta["model_id"] == str(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        ok("eval", path, "--mask", mask, "--probe", "perplexity", "--data", data, "-o", "eval")
        ok("prune", path, mask, "-o", "cut")
        ok("restore", "cut", mask, "-o", "whole")
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    intact = load_file(Path(checkpoint_of(path)) / "model.safetensors")
    cut = load_file(tmp_path / "cut" / "model.safetensors")
    assert all(torch.equal(whole[name], tensor) for name, tensor in intact.items())
    for name, entry in loaded.tensors.items():
        assert torch.equal(cut[name].view(-1)[entry.index], torch.zeros(len(entry.index)))
    assert loaded.count > 10000
