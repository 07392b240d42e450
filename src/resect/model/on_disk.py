"""A model whose blocks stay on disk and are brought into memory one at a time.

Parameters outside of the blocks (embeddings, head, last norm) are in memory. Those of a block have
their shape, but no storage until it is asked for; they stay the same objects, so that hooks hold.
Where a checkpoint tensor lies in a parameter is what `resect.model.places` says.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from resect.errors import InputError
from resect.machine.devices import usual_device
from resect.machine.memory import returned
from resect.model.faults import refuse_encoder
from resect.model.files import Entry, entries, read, read_into, weight_files
from resect.model.imported import checkpoint_of, name_source
from resect.model.load import (
    DTYPES,
    folder_of,
    leave_weights,
    load_tokenizer,
    tokenizer_fingerprint,
)
from resect.model.places import RECORDED, Layouts, Place, checkpoint_places
from resect.model.prints import fingerprint_of
from resect.model.prunable import blocks
from resect.model.stored import (
    NOTE,
    Stored,
    dtype_asked_for,
    dtype_of,
    name_rounding,
    places_of_files,
)
from resect.records import CausalModel, Tokenizer


class Shelf:
    """The checkpoint of a model, and which of its blocks is in memory.

    Attributes:
        model: The model; its blocks are empty outside of `opened`.
        tokenizer: Its tokenizer.
        blocks: Its decoder blocks in order.
    """

    def __init__(
        self, model: CausalModel, tokenizer: Tokenizer, folder: Path, device: torch.device
    ) -> None:
        """Find the tensors of the checkpoint; read those that are not in a block.

        Args:
            model: A model on the meta device, buffers excepted.
            tokenizer: Its tokenizer.
            folder: A checkpoint folder with safetensors weights.
            device: Where the model runs.

        Raises:
            InputError: The folder lacks weights of the model.
            CoverageError: A weight on disk has no place of its own in a parameter.
        """
        self.model = model
        self.tokenizer = tokenizer
        self._device = device
        self._folder = folder
        self._files = entries(weight_files(folder))
        if all(name in self._files for name, _ in model.named_parameters()):
            # As if loaded from these files, which need no conversion.
            vars(model)[RECORDED] = []
        self._found = _found(model, self._files)
        _keep_wide(model)
        _without_storage(model, device)
        self.blocks = blocks(model)
        self._names = {id(p): name for name, p in model.named_parameters()}
        self._inside = {id(p) for block in self.blocks for p in block.parameters()}
        for name, parameter in model.named_parameters():
            if id(parameter) not in self._inside:
                self._fill(name, parameter)
        self._fill_buffers()

    @contextlib.contextmanager
    def opened(self, block: nn.Module) -> Iterator[None]:
        """Hold the weights of a block in memory while the code inside runs."""
        parameters = list(block.parameters())
        try:
            for parameter in parameters:
                self._fill(self._names[id(parameter)], parameter)
            yield
        finally:
            for parameter in parameters:
                parameter.untyped_storage().resize_(0)

    def fingerprint(self) -> str:
        """Return what `model_fingerprint` returns of the model when it is wholly in memory."""
        asked = dtype_asked_for(self._folder, self._files)
        fingerprint = fingerprint_of(self._each(asked))
        # What masks are made of these scores takes its values from the files.
        vars(self.model)[NOTE] = Stored(self._files, self._found, fingerprint, fingerprint)
        return fingerprint

    def _each(self, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.model.named_parameters():
            # A tensor of its own, because a storage that numpy has seen cannot be resized any more.
            apart = torch.empty(parameter.shape, dtype=dtype)
            self._read_into(name, apart)
            yield name, apart

    def _fill(self, name: str, parameter: Tensor) -> None:
        size = parameter.numel() * parameter.element_size()
        parameter.untyped_storage().resize_(size)
        with torch.no_grad():
            self._read_into(name, parameter)

    def _fill_buffers(self) -> None:
        """Read the buffers that a checkpoint holds, the biases of routers for instance.

        Raises:
            InputError: The files lack one.
        """
        module = dict(self.model.named_modules())[""]
        stored = module.state_dict().keys()
        for name, buffer in module.named_buffers():
            if name not in stored:
                continue
            if name not in self._found:
                raise _lacking(name)
            for place in self._found[name]:
                place.view(buffer).copy_(read(self._files[place.name], place.name))

    def _read_into(self, name: str, tensor: Tensor) -> None:
        for place in self._found[name]:
            read_into(self._files[place.name], place.view(tensor))


def _found(model: CausalModel, files: Mapping[str, Entry]) -> dict[str, list[Place]]:
    """Return for each parameter where the tensors of the files lie in it.

    Raises:
        InputError: A parameter is not filled by them.
        CoverageError: A weight on disk has no place of its own in a parameter.
    """
    module = dict(model.named_modules())[""]
    found = places_of_files(module, files)
    for name, parameter in model.named_parameters():
        if sum(place.size for place in found.get(name, [])) != parameter.numel():
            expected = [place.name for place in checkpoint_places(module, [name])[name]]
            lacking = [each for each in expected if each not in files] or [name]
            raise _lacking(lacking[0])
    _refuse_two_values(module, files, found)
    return found


def _refuse_two_values(
    model: nn.Module, files: Mapping[str, Entry], found: Mapping[str, Sequence[Place]]
) -> None:
    """Raise `InputError` if tensors of the files differ that are one parameter of the model.

    A model that is loaded keeps them apart, whatever its configuration says.
    """
    used = [place for places in found.values() for place in places]
    unused = files.keys() - {place.name for place in used}
    if not unused:
        return
    layouts, tensors = Layouts(model), model.state_dict(keep_vars=True)
    for name in sorted(unused):
        place = layouts.find(name, files[name].shape)
        parameter = tensors.get(place.parameter) if place else None
        if place is None or parameter is None:
            continue
        for twin in used:
            if tensors.get(twin.parameter) is not parameter or twin.offset != place.offset:
                continue
            if not torch.equal(read(files[name], name), read(files[twin.name], twin.name)):
                raise InputError(
                    "the configuration makes one weight of two that differ in the checkpoint",
                    got=f"{name} and {twin.name}",
                    fix='set "tie_word_embeddings": false in config.json: loading keeps the two '
                    "apart, and reading block by block goes by the configuration",
                )


def _lacking(name: str) -> InputError:
    return InputError(
        "the checkpoint lacks a weight of its model",
        got=f"no {name}",
        fix="save the model with save_pretrained",
    )


def open_shelf(folder: str | Path, *, dtype: str | None = None, device: str | None = None) -> Shelf:
    """Open a checkpoint folder without bringing its blocks into memory.

    Args:
        folder: A checkpoint folder with safetensors weights, or a GGUF file.
        dtype: Dtype of the weights in memory; None for that of the configuration.
        device: Where the model runs; None for a GPU if there is one, else the CPU.

    Raises:
        InputError: It is no such folder, or its weights do not fit its configuration.
        CoverageError: A weight on disk has no place of its own in a parameter.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    source = Path(checkpoint_of(folder))
    files = entries(weight_files(source))
    if dtype is not None and dtype not in DTYPES:
        raise InputError("unknown dtype", got=dtype, allowed=", ".join(DTYPES))
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        chosen = DTYPES[dtype] if dtype else dtype_of(config, files)
        # Each parameter has its memory for a moment, here and in `Shelf`, before it is taken away.
        with returned(), init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(config, dtype=chosen)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"cannot read the configuration of a causal language model from {folder}",
            got=str(error).strip().splitlines()[0],
        ) from error
    refuse_encoder(config, str(folder))
    leave_weights(model)
    if dtype:
        name_rounding(files, chosen)
    model.tie_weights()
    name_source(model, folder)
    tokenizer = load_tokenizer(source)
    with returned():
        return Shelf(model.eval(), tokenizer, source, torch.device(device or usual_device()))


class PrintsOnDisk(NamedTuple):
    """What `model_fingerprint` and `tokenizer_fingerprint` return of a checkpoint once loaded."""

    fingerprint: str
    tokenizer: str


def prints_on_disk(checkpoint: str | Path) -> PrintsOnDisk:
    """Return the fingerprints of a checkpoint, of which one block at a time is in memory.

    Args:
        checkpoint: As for `load_model`; nothing is fetched.

    Raises:
        InputError: It is not on this machine, or its weights do not fit its configuration.
        CoverageError: A weight on disk has no place of its own in a parameter.
    """
    folder = folder_of(checkpoint)
    if folder is None:
        raise InputError("the model is not on this machine", got=str(checkpoint))
    shelf = open_shelf(folder, device="cpu")
    return PrintsOnDisk(shelf.fingerprint(), tokenizer_fingerprint(shelf.tokenizer))


def _keep_wide(model: CausalModel) -> None:
    """Give float32 to what loading a model in half precision leaves in it, as its class says.

    Most are biases of routers: rounded ones choose other experts.
    """
    halves: dict[torch.dtype, tuple[str, ...]] = {
        torch.float16: ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"),
        torch.bfloat16: ("_keep_in_fp32_modules_strict",),
    }
    for module_name, module in model.named_modules():
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is None or tensor.dtype not in halves:
                continue
            named = f".{module_name}.{name}."
            words = [w for key in halves[tensor.dtype] for w in getattr(model, key, None) or ()]
            if not any(f".{word}." in named for word in words):
                continue
            wide = tensor.detach().float()
            if name in module._buffers:
                module._buffers[name] = wide
            else:
                module._parameters[name] = nn.Parameter(wide, requires_grad=False)


def _without_storage(model: CausalModel, device: torch.device) -> None:
    """Move parameters from the meta device to another one, with a shape and no memory yet."""
    moved: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            if id(parameter) not in moved:
                fresh = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
                fresh.untyped_storage().resize_(0)
                moved[id(parameter)] = nn.Parameter(fresh, requires_grad=False)
            module._parameters[name] = moved[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)
