"""Quantised checkpoints: what each kind needs to become plain weights, and the kinds decoded here.

Quantised weights have no gradient and hold no exact zero of their own, so nothing is scored or cut
in them. transformers decodes some kinds when it loads them, on any machine; `resect import` writes
those as an ordinary checkpoint. The precision from before the quantisation is gone: scores and
masks are of the decoded values.
"""

from __future__ import annotations

import copy
import importlib.util
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from resect import files
from resect.errors import InputError
from resect.files.reading import read_json, refuse_link_out
from resect.model.adapter import tokenizer_files
from resect.model.faults import load_whole, quiet
from resect.model.ollama import refuse_models_folder

# Kinds that transformers decodes without a GPU, by its class of settings.
DECODED = {
    "fp8": "FineGrainedFP8Config",
    "mxfp4": "Mxfp4Config",
    "compressed-tensors": "CompressedTensorsConfig",
}
# Kinds that are decoded on the CPU by the package of the same name, where that is installed.
PACKAGED = ("bitsandbytes", "torchao")
# Kinds that are not decoded here -> how to get plain weights.
_BY_HAND = {
    "gptq": "take the checkpoint that it was made from, which its card names as base_model",
    "awq": "take the checkpoint that it was made from, which its card names as base_model",
}
# How the names end under which compressed-tensors keeps what decodes a weight.
SETTINGS = ("_shape", "_scale", "_zero_point", "_g_idx")
_ELSE = "load the original checkpoint in bfloat16, or dequantise it and save it first"
USUAL = (torch.float32, torch.bfloat16, torch.float16)


class Decoded(NamedTuple):
    """What was decoded: the kind of quantisation, and the dtype now."""

    method: str
    dtype: str


def method_of(quantisation: object) -> str:
    """Return the kind of quantisation that a configuration names; "" for none."""
    if isinstance(quantisation, Mapping):
        method = quantisation.get("quant_method", "")
    else:
        method = getattr(quantisation, "quant_method", "")
    return str(getattr(method, "value", method) or "")


def plain_weights(method: str) -> str:
    """Return how to get plain weights of a quantised checkpoint, as a next step."""
    if method in DECODED:
        return f"resect import FOLDER -o PLAIN decodes {method} into an ordinary checkpoint"
    if method in PACKAGED:
        return (
            f"resect import FOLDER -o PLAIN decodes {method} into an ordinary checkpoint where its "
            f"package is installed: pip install {method}"
        )
    return _BY_HAND.get(method, _ELSE)


def quantised_folder(folder: Path) -> str:
    """Return the kind of quantisation of a checkpoint folder; "" for plain weights and no folder.

    Raises:
        InputError: Its configuration is not readable.
    """
    config = folder / "config.json"
    values = read_json(config) if config.is_file() else None
    if not isinstance(values, Mapping):
        return ""
    return method_of(values.get("quantization_config") or values.get("compression_config"))


def refuse_quantised_files(folder: Path) -> None:
    """Refuse a checkpoint folder whose files hold quantised weights, in which no cut can stand.

    Raises:
        InputError: It is one.
    """
    method = quantised_folder(folder)
    if method:
        raise InputError(
            f"the files of {folder} hold quantised weights, in which nothing is cut or mended",
            got=method,
            allowed="weights in float32, bfloat16 or float16",
            fix=f"{plain_weights(method)}; score and cut that",
        )


def import_quantised(source: Path, target: Path) -> Decoded:
    """Write a checkpoint folder with the values that quantised weights stand for.

    Args:
        source: Checkpoint folder of a kind of `DECODED`, or of one of `PACKAGED`.
        target: New folder.

    Raises:
        InputError: The source is not quantised, of another kind, or cannot be decoded; or the
            target is not empty.
    """
    files.refuse_full_folder(target)
    refuse_models_folder(source)
    method = quantised_folder(source)
    if method not in (*DECODED, *PACKAGED):
        raise InputError(
            f"{source} is quantised in a way that is not decoded here"
            if method
            else f"{source} holds nothing to import",
            got=method or "no quantization_config in a config.json",
            allowed=f"a GGUF file, or a folder quantised as {', '.join((*DECODED, *PACKAGED))}",
            fix=plain_weights(method) if method else "use a checkpoint of plain weights as it is",
        )
    model = _decoded(source, method)
    _drop_settings(model)
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if not dtypes <= set(USUAL):
        raise InputError(
            f"{source} was not decoded to plain weights",
            got=", ".join(sorted(map(str, dtypes))),
            allowed=", ".join(map(str, USUAL)),
            fix=_ELSE,
        )
    vars(model.config).pop("quantization_config", None)
    with files.atomic_folder(target) as unfinished, quiet():
        # In the original format they would be quantised again.
        model.save_pretrained(str(unfinished), save_original_format=False)
        for path in tokenizer_files(source):
            refuse_link_out(path, source)
            shutil.copyfile(path, unfinished / path.name)
    return Decoded(method, str(model.dtype).removeprefix("torch."))


def _drop_settings(model: Any) -> None:
    """Take away what a decoded model still holds of its quantisation: shapes, scales, zero points.

    Weights that were not decoded stay, since they have the names that they have in a plain model.
    """
    config = copy.deepcopy(model.config)
    vars(config).pop("quantization_config", None)
    with torch.device("meta"):
        plain = {name for name, _ in type(model)(config).named_parameters()}
    for name in {name for name, _ in model.named_parameters()} - plain:
        owner, _, last = name.rpartition(".")
        if last.endswith(SETTINGS):
            delattr(model.get_submodule(owner), last)


def _decoded(source: Path, method: str) -> Any:
    """Let transformers load a checkpoint with its weights decoded.

    Raises:
        InputError: It cannot.
    """
    import transformers

    message = f"transformers cannot decode {source}"
    if method in PACKAGED:
        if importlib.util.find_spec(method) is None:
            raise InputError(
                f"decoding {source} needs the package {method}, which is not installed",
                fix=f"pip install {method}",
            )
        packed = load_whole(source, message, fix=_ELSE, device_map={"": "cpu"})
        model = packed.dequantize(packed.dtype) if method == "bitsandbytes" else _unpacked(packed)
    else:
        settings = getattr(transformers, DECODED[method])(dequantize=True)
        model = load_whole(source, message, fix=_ELSE, quantization_config=settings)
    # What is saved is no longer quantised, and must not be asked to be.
    model.hf_quantizer = None
    return model


def _unpacked(model: Any) -> Any:
    """Put plain values in the place of torchao's packed tensors."""
    for name, parameter in list(model.named_parameters()):
        if type(parameter) is not torch.nn.Parameter:
            owner, _, last = name.rpartition(".")
            plain = torch.nn.Parameter(parameter.dequantize(), requires_grad=False)
            setattr(model.get_submodule(owner), last, plain)
    return model
