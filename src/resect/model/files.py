"""The safetensors files of a checkpoint folder, read in pieces."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NamedTuple, TypedDict

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from resect import files
from resect.errors import InputError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
# Longer headers are refused by the package, too.
MOST_HEADER = 100_000_000
PIECE = 4 * 2**20
ADAPTER = "adapter_config.json"


class Description(TypedDict):
    """What the header of a file says of one tensor, if the file is whole."""

    dtype: str
    shape: list[int]
    data_offsets: list[int]


class Header(NamedTuple):
    """The header of a file, and the byte at which the data behind it begin."""

    tensors: dict[str, Description]
    end: int


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies.

    Attributes:
        path: Its file.
        code: Its dtype as the file names it.
        shape: Its shape.
        start: Its first byte in the file.
        size: Its bytes.
    """

    path: Path
    code: str
    shape: tuple[int, ...]
    start: int
    size: int

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the tensor.

        Raises:
            InputError: It is none of a weight that has gradients.
        """
        if self.code not in DTYPES:
            raise InputError(
                f"{self.path} holds weights that have no gradient",
                got=self.code,
                allowed=", ".join(DTYPES),
                fix="use the checkpoint from before it was quantised, or decode it: "
                "resect import FOLDER -o PLAIN",
            )
        return DTYPES[self.code]


def entries(paths: Iterable[Path]) -> dict[str, Entry]:
    """Return where each tensor of some safetensors files lies.

    Raises:
        InputError: A file is missing or broken.
    """
    by_name: dict[str, Entry] = {}
    for path in paths:
        try:
            header = _header(path)
            size = path.stat().st_size - header.end
            for name, description in header.tensors.items():
                if name != "__metadata__":
                    by_name[name] = _entry(path, description, header.end, size)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise InputError(f"{path} is not readable", got=str(error)) from error
    return by_name


def read_into(entry: Entry, target: Tensor, *, piece: int = PIECE) -> None:
    """Copy a tensor from disk.

    Args:
        entry: The tensor.
        target: [entry.shape], of any dtype, device and strides.
        piece: Most bytes to hold beside it, or one row if that is longer.

    Raises:
        InputError: Shapes differ, or the file cannot be read.
    """
    if entry.shape != tuple(target.shape):
        raise InputError(
            f"a weight of {entry.path} does not fit the configuration of its model",
            got=str(entry.shape),
            allowed=str(tuple(target.shape)),
        )
    dtype = entry.dtype
    # By single numbers where they lie in a row, else by what the first axis numbers.
    rows = target.view(-1) if target.is_contiguous() else target
    width = entry.size // max(1, rows.shape[0])
    step = max(1, piece // max(1, width))
    buffer = bytearray(min(step, rows.shape[0]) * width)
    try:
        with entry.path.open("rb", buffering=0) as file:
            file.seek(entry.start)
            for start in range(0, rows.shape[0], step):
                some = rows[start : start + step]
                view = memoryview(buffer)[: some.shape[0] * width]
                _fill(file, view)
                some.copy_(torch.frombuffer(view, dtype=dtype).view(some.shape))
    except (OSError, EOFError) as error:
        raise InputError(f"{entry.path} is not readable", got=str(error)) from error


def read(entry: Entry, name: str) -> Tensor:
    """Return a small tensor of any dtype, on the CPU.

    Args:
        entry: Where it lies.
        name: Its name in the file.

    Raises:
        InputError: The file cannot be read.
    """
    try:
        with safe_open(entry.path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{entry.path} is not readable", got=str(error)) from error
    return tensor


def _fill(file: io.FileIO, view: memoryview) -> None:
    done = 0
    while done < len(view):
        count = file.readinto(view[done:])
        if not count:
            raise EOFError("the file ends early")
        done += count


def _header(path: Path) -> Header:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= MOST_HEADER:
            raise ValueError(f"a header of {length} bytes")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise TypeError("the header is no object")
    return Header(header, 8 + length)


def _entry(path: Path, description: Description, start: int, size: int) -> Entry:
    """Return where a tensor lies; `size` bytes of data begin at byte `start` of the file."""
    code, shape = str(description["dtype"]), tuple(description["shape"])
    begin, end = description["data_offsets"]
    numbers = (begin, end, *shape)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("a shape or place that is no number")
    if not begin <= end <= size:
        raise ValueError(f"bytes {begin} to {end} of {size}")
    if code in DTYPES and end - begin != prod(shape) * DTYPES[code].itemsize:
        raise ValueError(f"{end - begin} bytes for {code} {list(shape)}")
    return Entry(path, code, shape, start + begin, end - begin)


def has_weights(folder: Path) -> bool:
    """Tell whether a checkpoint folder holds safetensors weights."""
    return any(
        (folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")
    )


def weight_files(source: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint folder.

    Raises:
        InputError: It is no folder, lacks them or holds two sets of them.
    """
    if not source.is_dir():
        raise InputError("no such checkpoint folder", got=str(source))
    refuse_adapter(source)
    index, whole = source / "model.safetensors.index.json", source / "model.safetensors"
    if index.is_file():
        with files.expecting(index, "index"):
            names = sorted(map(str, set(files.read_json(index)["weight_map"].values())))
        if whole.is_file() and whole.name not in names:
            # transformers reads the first and passes over the others, which are left of a save.
            raise InputError(
                f"{source} holds two sets of weights",
                got=f"{whole.name}, and {len(names)} shards of {index.name}",
                allowed="one of them",
                fix=f"remove the one that is not the model: transformers loads {whole.name}",
            )
    else:
        names = [whole.name]
    shards = [source / name for name in names]
    missing = [path.name for path in shards if path.parent != source or not path.is_file()]
    if missing:
        raise InputError(
            f"{source} lacks safetensors weights",
            got=f"no {', '.join(missing)}",
            allowed="model.safetensors, or shards with model.safetensors.index.json",
            fix="save the model with save_pretrained",
        )
    return shards


def hold_same(ours: Path, theirs: Path) -> bool | None:
    """Tell whether two checkpoint folders hold the same weights, but for zeros and rounding.

    Of each tensor that both name the first row is compared. Weights that are zero in ours may have
    been cut, and a dtype of 16 bits rounds by 2⁻⁸ of a value at most.

    Args:
        ours: A folder.
        theirs: Another one.

    Returns:
        None where they name no tensor in common.

    Raises:
        InputError: A folder lacks weights, or a file cannot be read.
    """
    tensors, twins = (entries(weight_files(folder)) for folder in (ours, theirs))
    shared = [name for name in tensors if name in twins and tensors[name].shape]
    return all(_same_row(tensors[name], twins[name], name) for name in shared) if shared else None


def _same_row(entry: Entry, twin: Entry, name: str) -> bool:
    """Tell whether the first rows of a tensor in two files are the same."""
    rows = []
    for path in (entry.path, twin.path):
        with safe_open(path, framework="pt") as file:
            rows.append(file.get_slice(name)[:1].double())
    row, twin_row = rows
    if row.shape != twin_row.shape:
        return False
    return bool(((row - twin_row).abs() <= 2**-7 * twin_row.abs()).logical_or(row == 0).all())


def refuse_adapter(folder: Path) -> None:
    """Refuse a folder with a low-rank adapter where a model is asked for.

    Raises:
        InputError: It holds one.
    """
    if (folder / ADAPTER).is_file():
        raise adapter_instead(folder, f"{ADAPTER} in it")


def adapter_instead(checkpoint: str | Path, got: str) -> InputError:
    """Return the message for a low-rank adapter where a model is asked for."""
    return InputError(
        f"{checkpoint} is an adapter and not a model",
        got=got,
        allowed="a checkpoint, or an adapter in a folder without config.json and its base on this "
        "machine",
        fix="merge it into its base and save that: PeftModel.from_pretrained(base, adapter)"
        ".merge_and_unload().save_pretrained(folder), and the tokenizer beside it",
    )
