"""The safetensors files of a checkpoint folder, read in pieces."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
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


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies.

    Attributes:
        path: Its file.
        kind: Its dtype as the file names it.
        shape: Its shape.
        start: Its first byte in the file.
        size: Its bytes.
    """

    path: Path
    kind: str
    shape: tuple[int, ...]
    start: int
    size: int

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the tensor.

        Raises:
            InputError: It is none of a weight that has gradients.
        """
        if self.kind not in DTYPES:
            raise InputError(
                f"{self.path} holds weights that have no gradient",
                got=self.kind,
                allowed=", ".join(DTYPES),
                fix="use the checkpoint from before it was quantised",
            )
        return DTYPES[self.kind]


def entries(paths: Iterable[Path]) -> dict[str, Entry]:
    """Return where each tensor of some safetensors files lies.

    Raises:
        InputError: A file is missing or broken.
    """
    found: dict[str, Entry] = {}
    for path in paths:
        try:
            header, start = _header(path)
            whole = path.stat().st_size - start
            for name, facts in header.items():
                if name != "__metadata__":
                    found[name] = _entry(path, facts, start, whole)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise InputError(f"{path} is not readable", got=str(error)) from error
    return found


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
            for at in range(0, rows.shape[0], step):
                part = rows[at : at + step]
                view = memoryview(buffer)[: part.shape[0] * width]
                _fill(file, view)
                part.copy_(torch.frombuffer(view, dtype=dtype).view(part.shape))
    except (OSError, EOFError) as error:
        raise InputError(f"{entry.path} is not readable", got=str(error)) from error


def _fill(file: Any, view: memoryview) -> None:
    done = 0
    while done < len(view):
        more = file.readinto(view[done:])
        if not more:
            raise EOFError("the file ends early")
        done += more


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header of a file, and where its data begin."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= MOST_HEADER:
            raise ValueError(f"a header of {length} bytes")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise TypeError("the header is no object")
    return header, 8 + length


def _entry(path: Path, facts: Mapping[str, Any], start: int, whole: int) -> Entry:
    kind, shape = str(facts["dtype"]), tuple(facts["shape"])
    first, last = facts["data_offsets"]
    numbers = (first, last, *shape)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("a shape or place that is no number")
    if not first <= last <= whole:
        raise ValueError(f"bytes {first} to {last} of {whole}")
    if kind in DTYPES and last - first != prod(shape) * DTYPES[kind].itemsize:
        raise ValueError(f"{last - first} bytes for {kind} {list(shape)}")
    return Entry(path, kind, shape, start + first, last - first)


def has_weights(folder: Path) -> bool:
    """Tell whether a checkpoint folder holds safetensors weights."""
    return any(
        (folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")
    )


def weight_files(source: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint folder.

    Raises:
        InputError: It is no folder, or lacks them.
    """
    if not source.is_dir():
        raise InputError("no such checkpoint folder", got=str(source))
    index = source / "model.safetensors.index.json"
    if index.is_file():
        with files.expecting(index, "index"):
            names = sorted(map(str, set(files.read_json(index)["weight_map"].values())))
    else:
        names = ["model.safetensors"]
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
