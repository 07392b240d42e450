"""Quantised checkpoints: FP8 is decoded to plain weights; other kinds get one message."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from command_line import call, ok, write
from resect.errors import InputError
from resect.model import load_model
from resect.model.decoded import DECODED, import_quantised, method_of, plain_weights

BLOCK = 8
LARGEST = torch.finfo(torch.float8_e4m3fn).max
ROWS = [{"prompt": f"w{n} w2", "completion": "w5 w6 w7 w8"} for n in range(4)]


def quantised(folder: Path, **quantisation: Any) -> Path:
    """Let a configuration say that a checkpoint is quantised."""
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8")) | {"quantization_config": quantisation}
    path.write_text(json.dumps(config), encoding="utf-8")
    return folder


def as_fp8(folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """Write the blocks of a checkpoint as FP8 with a scale each, as DeepSeek-V3 has them."""
    tensors = load_file(folder / "model.safetensors")
    stored, values = {}, {}
    for name, tensor in tensors.items():
        if not name.endswith("_proj.weight"):
            stored[name] = values[name] = tensor
            continue
        rows, columns = (side // BLOCK for side in tensor.shape)
        blocks = tensor.view(rows, BLOCK, columns, BLOCK).float()
        scale = blocks.abs().amax(dim=(1, 3)) / LARGEST
        packed = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
        stored[name] = packed.view(tensor.shape)
        stored[f"{name}_scale_inv"] = scale
        values[name] = (packed.float() * scale[:, None, :, None]).view(tensor.shape)
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    quantised(folder, quant_method="fp8", weight_block_size=[BLOCK, BLOCK],
              activation_scheme="dynamic")  # fmt: skip
    return folder, values


def test_fp8_is_decoded_into_an_ordinary_checkpoint(tmp_path: Path) -> None:
    folder, values = as_fp8(tiny.save("llama", tmp_path / "m"))
    said = ok("import", folder, "-o", tmp_path / "plain")
    assert "fp8 decoded to float32" in said  # what the configuration asks for
    assert "quantization_config" not in json.loads((tmp_path / "plain/config.json").read_text())
    model: Any = load_model(tmp_path / "plain").model
    decoded = model.state_dict()
    for name, value in values.items():
        assert torch.allclose(decoded[name], value, rtol=1e-6), name
    data = write(tmp_path / "d.jsonl", ROWS)
    ok("score", tmp_path / "plain", "--data", data, "-o", tmp_path / "a.scores.safetensors")


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the weights stay as they are")
def test_fp8_is_scored_as_decoded_and_not_cut(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, _ = as_fp8(tiny.save("llama", tmp_path / "m"))
    mask = tmp_path / "a.mask.safetensors"
    tiny.cut(load_model(folder).model).save(mask)
    assert "here are the values that they decode to" in caplog.text
    done = call("prune", folder, mask, "-o", tmp_path / "cut")
    assert done.returncode == 2
    assert "resect import FOLDER -o PLAIN" in done.stderr
    assert not (tmp_path / "cut").exists()
    ok("import", folder, "-o", tmp_path / "plain")
    ok("prune", tmp_path / "plain", mask, "-o", tmp_path / "cut")


def as_decoded() -> Any:
    """Return a model as compressed-tensors decodes packed weights: it leaves its settings there."""
    model = tiny.build("llama")
    settings = {
        "weight_shape": torch.tensor([24, 16]),
        "weight_scale": torch.ones(24, 1),
        "weight_zero_point": torch.zeros(24, 1, dtype=torch.int8),
        "input_scale": torch.ones(1),
    }
    for name, value in settings.items():
        setting = torch.nn.Parameter(value, requires_grad=False)
        model.model.layers[0].mlp.up_proj.register_parameter(name, setting)
    return model


def test_what_a_decoder_leaves_behind_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = quantised(tiny.save("llama", tmp_path / "m"), quant_method="compressed-tensors")
    intact = load_file(folder / "model.safetensors")
    monkeypatch.setattr("resect.model.decoded._decoded", lambda *_: as_decoded())
    assert import_quantised(folder, tmp_path / "plain").dtype == "float32"
    decoded = load_file(tmp_path / "plain" / "model.safetensors")
    assert decoded.keys() == intact.keys()
    assert all(torch.equal(decoded[name], intact[name]) for name in intact)
    undecoded = as_decoded()
    packed = torch.nn.Parameter(torch.zeros(24, 2, dtype=torch.int32), requires_grad=False)
    undecoded.model.layers[1].mlp.up_proj.register_parameter("weight_packed", packed)
    monkeypatch.setattr("resect.model.decoded._decoded", lambda *_: undecoded)
    with pytest.raises(InputError, match="was not decoded to plain weights"):
        import_quantised(folder, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("gptq", "take the checkpoint that it was made from"),
        ("awq", "take the checkpoint that it was made from"),
        ("bitsandbytes", "pip install bitsandbytes"),
        ("torchao", "pip install torchao"),
        ("hqq", "dequantise it and save it first"),
    ],
)
def test_other_kinds_get_one_message(method: str, said: str, tmp_path: Path) -> None:
    folder = quantised(tiny.save("llama", tmp_path / "m"), quant_method=method, bits=4)
    done = call("import", folder, "-o", tmp_path / "plain")
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "plain").exists()
    assert said in plain_weights(method)


def packed_by(method: str, source: Path, target: Path) -> Any:
    """Let transformers quantise a checkpoint with the package itself; return the packed model."""
    import transformers

    if method == "torchao":
        import torchao.quantization as ao

        settings: Any = transformers.TorchAoConfig(ao.Int8WeightOnlyConfig())
    else:
        options = {method.partition(" ")[2]: True}
        settings = transformers.BitsAndBytesConfig(**options)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        source, quantization_config=settings, device_map={"": "cpu"}
    )
    model.save_pretrained(target)
    tiny.tokenizer().save_pretrained(target)
    return model


@pytest.mark.parametrize(
    "method", ["bitsandbytes load_in_8bit", "bitsandbytes load_in_4bit", "torchao"]
)
def test_what_a_package_packs_it_decodes_where_it_is_installed(method: str, tmp_path: Path) -> None:
    package = method.partition(" ")[0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"pip install {package}, which is large, to run it; nothing else needs it")
    source = tiny.save("llama", tmp_path / "m")
    packed = packed_by(method, source, tmp_path / "packed")
    assert f"{package} decoded to float32" in ok(
        "import", tmp_path / "packed", "-o", tmp_path / "plain"
    )
    plain = load_model(tmp_path / "plain").model
    tokens = torch.arange(4, 12)[None]
    if "8bit" not in method:  # which rounds what its matrices are given as well
        with torch.no_grad():
            assert torch.allclose(plain(tokens).logits, packed(tokens).logits, atol=1e-3)
    intact = load_file(source / "model.safetensors")
    decoded = load_file(tmp_path / "plain" / "model.safetensors")
    assert decoded.keys() == intact.keys()
    changed = [name for name in intact if not torch.equal(decoded[name], intact[name])]
    assert changed
    assert all(name.endswith("_proj.weight") for name in changed)
    widest = 0.2 if "4bit" in method else 0.02
    for name in changed:
        assert (decoded[name] - intact[name]).abs().max() < widest * intact[name].abs().max()
    mask = tmp_path / "a.mask.safetensors"
    tiny.cut(plain).save(mask)
    ok("prune", tmp_path / "plain", mask, "-o", tmp_path / "cut")


def test_a_checkpoint_of_a_package_that_is_not_here_gets_the_message(tmp_path: Path) -> None:
    folder = quantised(tiny.save("llama", tmp_path / "m"), quant_method="gptq", bits=4)
    done = call("coverage", folder)
    assert done.returncode == 2
    assert "the quantised weights of" in done.stderr
    assert "take the checkpoint that it was made from" in done.stderr


def test_plain_folders_are_nothing_to_import(tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "m")
    done = call("import", folder, "-o", tmp_path / "plain")
    assert done.returncode == 2
    assert "holds nothing to import" in done.stderr
    assert all(method in plain_weights(method) for method in DECODED)
    assert method_of(None) == ""
