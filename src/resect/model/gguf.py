"""What a GGUF file holds: facts by name, and tensors as values or in quantised blocks.

A file has a header with facts (`general.architecture`, the vocabulary, a chat template), a table of
tensors and their data. Shapes are given here in torch's order, which is the reverse of the file's;
the last axis is the one that blocks run along.

Legend: r rows of a tensor and c columns; a row holds c / n blocks of n weights each.
"""

from __future__ import annotations

import importlib.util
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from resect.errors import InputError
from resect.model.faults import first_line, some_of

MAGIC = b"GGUF"
SUFFIX = ".gguf"
# Types that hold values and no blocks.
FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
# Facts begin behind the magic, the version and two counts.
_FACTS = 24
# What the reader of the package raises for files that are cut off or broken.
READ_FAULTS = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    ArithmeticError,
    MemoryError,
    struct.error,
)
Bytes = npt.NDArray[np.uint8]
Values = npt.NDArray[np.float32]


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of a file.

    Attributes:
        name: Its name, as `blk.0.attn_q.weight`.
        type: How its values are held: F32, F16, BF16, Q8_0, Q4_K, …
        shape: Its shape in torch's order, [r, c] for a matrix.
        data: Its bytes as they lie in the file, mapped and not read.
        block: Weights in a block, 1 where there are none.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    data: Bytes
    block: int

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def blocks(self) -> Bytes:
        """Its bytes [blocks, bytes of a block]."""
        return self.data.reshape(self.size // self.block, -1)


class Sections(NamedTuple):
    """Where the facts of a file begin and end, in bytes; the table of its tensors follows."""

    facts: int
    table: int


@dataclass(frozen=True)
class GgufFile:
    """A file that has been read but for its tensors.

    Attributes:
        path: Where it is.
        facts: What its header says in numbers and texts; lists are left out.
        spans: For each fact the bytes [from, to) that it takes in the file.
        tensors: Its tensors by name, in the file's order.
        sections: Where its facts lie.
        alignment: Tensors begin at multiples of so many bytes of the data.
    """

    path: Path
    facts: Mapping[str, str | int | float | bool]
    spans: Mapping[str, range]
    tensors: Mapping[str, GgufTensor]
    sections: Sections
    alignment: int

    @property
    def architecture(self) -> str:
        """The architecture that it names, "" for none."""
        return str(self.facts.get("general.architecture", ""))

    @property
    def types(self) -> list[str]:
        """The types of its tensors, each once, in order."""
        return list(dict.fromkeys(tensor.type for tensor in self.tensors.values()))

    @property
    def quantised(self) -> list[str]:
        """Those types of its tensors that hold blocks."""
        return [name for name in self.types if name not in FLOATS]


def is_gguf(path: Path) -> bool:
    """Tell whether a path is a GGUF file, by its name or by its first bytes."""
    if not path.is_file():
        return False
    if path.suffix.lower() == SUFFIX:
        return True
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_gguf(path: str | Path, *, named: str = "") -> GgufFile:
    """Read what a GGUF file says of itself; its tensors are mapped and not read.

    Args:
        path: The file.
        named: What messages call it; "" for its path.

    Raises:
        InputError: The package is not installed, or this is no whole GGUF file that it can read.
    """
    path = Path(path).expanduser()
    named = named or str(path)
    _refuse_missing(path, named)
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        file = _described(path, reader)
    except READ_FAULTS as error:
        raise InputError(
            f"{named} is not a whole GGUF file",
            got=f"{path.stat().st_size:,} bytes, of which its reader says: {first_line(error)}",
            fix="fetch it again; if it is one of several parts, join them: "
            "resect import PART1 PART2 … -o DIR",
        ) from error
    if reader.byte_order != "I":
        raise InputError(f"{named} was written for machines of another byte order")
    parts = file.facts.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        raise InputError(
            f"{named} is one of {parts} files, each with a header of its own",
            allowed="one file",
            fix="merge them with llama.cpp's tool: llama-gguf-split --merge FIRST WHOLE.gguf",
        )
    if not file.architecture or not file.tensors:
        raise InputError(
            f"{named} holds no model",
            got=f"{len(file.tensors)} tensors, architecture {file.architecture!r}",
        )
    return file


def dequantised(data: Bytes, type_name: str, shape: tuple[int, ...]) -> Values:
    """Return the values that bytes decode to, as the package `gguf` decodes them.

    Args:
        data: Bytes of whole blocks.
        type_name: Their type.
        shape: Shape of the result.

    Raises:
        InputError: The package cannot decode this type.
    """
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    try:
        kind = GGMLQuantizationType[type_name]
        values = dequantize(_viewed(data, type_name), kind)
    except (KeyError, NotImplementedError) as error:
        raise InputError(
            "the package gguf cannot decode this type of block",
            got=type_name,
            fix="convert the file with llama.cpp's llama-quantize, to F16 for instance",
        ) from error
    return np.ascontiguousarray(values, dtype=np.float32).reshape(shape)


def _viewed(data: Bytes, type_name: str) -> npt.NDArray[Any]:
    """Return bytes as the decoder wants them: numbers for F32 and F16, else bytes in one row."""
    flat = np.ascontiguousarray(data).reshape(-1)
    if type_name in ("F32", "F16"):
        return flat.view(np.float32 if type_name == "F32" else np.float16)
    return flat


def _refuse_missing(path: Path, named: str) -> None:
    """Raise `InputError` if the package is not there, or the file is none of its kind."""
    if not path.is_file():
        raise InputError("no such GGUF file", got=named)
    try:
        with path.open("rb") as file:
            begin = file.read(len(MAGIC))
    except OSError as error:
        raise InputError(f"cannot read {named}", got=error.strerror or str(error)) from error
    if begin != MAGIC:
        raise InputError(
            f"{named} is not a GGUF file",
            got=f"a file that begins with {begin!r}",
            allowed=f"one that begins with {MAGIC!r}; of several parts that is the first",
        )
    if importlib.util.find_spec("gguf") is None:
        raise InputError(
            "GGUF files are read with the package gguf, which is not installed",
            fix="pip install 'resect[gguf]'",
        )


def _described(path: Path, reader: Any) -> GgufFile:
    """Return what the reader of the package knows of a file."""
    facts, spans = {}, {}
    for name, field in reader.fields.items():
        if name.startswith("GGUF."):
            continue
        length = sum(int(part.nbytes) for part in field.parts)
        spans[name] = range(field.offset, field.offset + length)
        if len(field.types) == 1:
            facts[name] = field.contents()
    tensors = {tensor.name: _tensor(tensor) for tensor in reader.tensors}
    sections = Sections(_FACTS, max((span.stop for span in spans.values()), default=_FACTS))
    return GgufFile(path, facts, spans, tensors, sections, int(reader.alignment))


def _tensor(tensor: Any) -> GgufTensor:
    from gguf import GGML_QUANT_SIZES

    shape = tuple(int(side) for side in reversed(tensor.shape.tolist()))
    data = tensor.data.reshape(-1).view(np.uint8)
    block = int(GGML_QUANT_SIZES[tensor.tensor_type][0])
    return GgufTensor(str(tensor.name), tensor.tensor_type.name, shape, data, block)


def read_by_nobody(file: GgufFile, weights: int, scaled: bool) -> str:
    """Say what of a file a model that was read from it lacks; "" for nothing that is known.

    Args:
        file: The file.
        weights: Number of weights of the model, tied ones once.
        scaled: Whether the model scales its positions.
    """
    lacks = []
    held = sum(tensor.size for tensor in file.tensors.values())
    if held > weights:
        lacks.append(f"{held - weights:,} of {held:,} numbers")
    scaling = [name for name in file.tensors if name.startswith("rope_f")]
    scaling += [
        name
        for name, value in file.facts.items()
        if name.endswith(".rope.scaling.type") and value != "none"
    ]
    if scaling and not scaled:
        lacks.append(f"the scaling of positions ({some_of(scaling)})")
    return " and ".join(lacks)
