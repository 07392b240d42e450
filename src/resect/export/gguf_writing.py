"""The bytes of a GGUF file that is another one with other facts and other data.

The header of the file is taken over byte by byte but for facts that are replaced, so that what no
reader of Python understands stays as it is. Layout: magic, version, counts of tensors and facts;
facts; the table with name, shape, type and offset of each tensor; the data of each tensor, which
begins at a multiple of the alignment. All numbers are little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from resect.errors import InputError
from resect.model.gguf import GgufFile

_UINT32, _STRING = 4, 8
Piece = bytes | memoryview


@dataclass(frozen=True)
class Kind:
    """How the values of a tensor are held, in a type without blocks.

    Attributes:
        name: Name of the type.
        number: Its number in files.
        width: Bytes of a value.
    """

    name: str
    number: int
    width: int


def assembled(
    file: GgufFile,
    facts: Mapping[str, str | int],
    kinds: Mapping[str, Kind],
    data: Iterable[Piece],
) -> Iterator[Piece]:
    """Yield the bytes of a new file.

    Args:
        file: The file that it is made from.
        facts: Facts to add, or to put in the place of those of the same names.
        kinds: New types of tensors by name; the others keep theirs.
        data: The data of each tensor in the file's order, each whole.

    Raises:
        InputError: The file cannot be read any more.
    """
    header = _header(file, facts) + _table(file, kinds)
    yield header
    yield bytes(-len(header) % file.alignment)
    for piece in data:
        yield piece
        yield bytes(-len(piece) % file.alignment)


def _header(file: GgufFile, facts: Mapping[str, str | int]) -> bytes:
    begin, end = file.sections
    try:
        with file.path.open("rb") as opened:
            raw = opened.read(end)
    except OSError as error:
        raise InputError(f"cannot read {file.path}", got=error.strerror or str(error)) from error
    stay = [span for name, span in file.spans.items() if name not in facts]
    unchanged = b"".join(raw[span.start : span.stop] for span in stay)
    added = b"".join(_fact(name, value) for name, value in facts.items())
    counts = struct.pack("<QQ", len(file.tensors), len(stay) + len(facts))
    return raw[: begin - len(counts)] + counts + unchanged + added


def _fact(name: str, value: str | int) -> bytes:
    if isinstance(value, str):
        return _text(name) + struct.pack("<I", _STRING) + _text(value)
    return _text(name) + struct.pack("<II", _UINT32, value)


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _table(file: GgufFile, kinds: Mapping[str, Kind]) -> bytes:
    from gguf import GGMLQuantizationType

    entries, offset = [], 0
    for name, tensor in file.tensors.items():
        kind = kinds.get(name)
        number = GGMLQuantizationType[tensor.type].value if kind is None else kind.number
        size = len(tensor.data) if kind is None else tensor.size * kind.width
        sides = len(tensor.shape)
        shape = struct.pack(f"<I{sides}Q", sides, *reversed(tensor.shape))
        entries.append(_text(name) + shape + struct.pack("<IQ", number, offset))
        offset += size + -size % file.alignment
    return b"".join(entries)
