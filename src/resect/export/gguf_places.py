"""Where a weight of a checkpoint lies in the GGUF file that the checkpoint was imported from.

llama.cpp's converter renames tensors, joins the experts of a layer, turns GPT-2's matrices around
and, for the architecture `llama`, reorders the rows of queries and keys: within a head of d rows,
transformers rotates row i together with row i + d/2, and llama.cpp with the next one. So row
(head, half, i) of a checkpoint is row (head, i, half) of the file. transformers' reader undoes all
that; here a place is followed back. What stands there is compared with the mask before it is cut,
so a layout that is not known here is refused and not guessed.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from resect.errors import InputError, MismatchError
from resect.export.blocks import Index
from resect.model.gguf import GgufFile, GgufTensor

if TYPE_CHECKING:
    from gguf import TensorNameMap

# Architectures whose layouts are known here, beside `llama`: names alone differ.
PLAIN = ("gemma2", "gemma3", "phi3", "qwen2", "qwen3")
KNOWN = ("llama", *PLAIN)
_TURNED = ("attn_qkv", "attn_output", "ffn_up", "ffn_down")
_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(.*)")


@dataclass(frozen=True)
class Placed:
    """A tensor of a checkpoint, and where it lies.

    Attributes:
        tensor: The tensor of the file that holds it.
        index: [p] flat indices in it of the places that were asked for.
    """

    tensor: GgufTensor
    index: Index


def placed(file: GgufFile, name: str, shape: tuple[int, ...], index: Index) -> Placed:
    """Follow places of a checkpoint's tensor into a file.

    Args:
        file: The file that the checkpoint was imported from.
        name: Name of the tensor in the checkpoint.
        shape: Its shape there.
        index: [p] flat indices in it.

    Raises:
        InputError: The architecture is none that the package gguf has names for, or its rows are
            ordered by a number of heads that the file does not state.
        MismatchError: The file has no such tensor, or one of another shape.
    """
    expert = _EXPERT.fullmatch(name)
    path, offset = (f"{expert[1]}.{expert[3]}", int(expert[2])) if expert else (name, 0)
    tensor = file.tensors.get(_name_in(file, path))
    if tensor is None:
        raise MismatchError(
            f"{file.path} has no tensor for {name}",
            got=f"architecture {file.architecture}, {len(file.tensors)} tensors",
            fix="use the file that the mask's model was imported from",
        )
    held = tensor.shape[1:] if expert else tensor.shape
    turned = file.architecture == "gpt2" and tensor.name.split(".")[-2] in _TURNED
    if held != (shape[::-1] if turned else shape) or (expert and offset >= tensor.shape[0]):
        raise MismatchError(
            f"{name} has another shape in {file.path}",
            got=f"{tensor.shape} of {tensor.name}",
            allowed=str(shape),
            fix="use the file that the mask's model was imported from",
        )
    size = int(np.prod(shape, dtype=np.int64))
    if turned:
        rows, columns = np.divmod(index, shape[1])
        return Placed(tensor, columns * shape[0] + rows)
    heads = _heads(file, tensor.name)
    if heads:
        rows, columns = np.divmod(index, size // shape[0])
        index = _row_in_file(rows, shape[0], heads) * (size // shape[0]) + columns
    return Placed(tensor, offset * size + index)


def _row_in_file(rows: Index, count: int, heads: int) -> Index:
    """Return where rows [p] of queries or keys stand in a file of the architecture `llama`.

    Args:
        rows: [p] rows in the checkpoint, which holds the halves of a head one after the other.
        count: Rows of the matrix.
        heads: Heads that share them evenly.
    """
    head, within = np.divmod(rows, count // heads)
    half, pair = np.divmod(within, count // heads // 2)
    row: Index = head * (count // heads) + 2 * pair + half
    return row


def _heads(file: GgufFile, name: str) -> int:
    """Return by how many heads the rows of a tensor are reordered, 0 if they are not.

    Raises:
        InputError: The file does not say how many.
    """
    if file.architecture != "llama" or not re.fullmatch(r"blk\.\d+\.attn_[qk]\.\w+", name):
        return 0
    key = "llama.attention.head_count" + "_kv" * (".attn_k." in name)
    heads = file.facts.get(key)
    if not isinstance(heads, int) or heads < 1:
        raise InputError(
            f"{file.path} does not say how many heads {name} has",
            got=f"{key}: {heads}",
            fix="cut the original checkpoint, and convert that",
        )
    return heads


def _name_in(file: GgufFile, name: str) -> str:
    """Return the name in a file of a checkpoint's tensor, "" if there is none."""
    blocks = file.facts.get(f"{file.architecture}.block_count")
    names = _names(file.architecture, blocks if isinstance(blocks, int) else 0)
    path, _, kind = name.rpartition(".")
    inner = names.get_name(path) if kind in ("weight", "bias") else None
    return f"{inner}.{kind}" if inner else ""


@functools.cache
def _names(architecture: str, blocks: int) -> TensorNameMap:
    """Return the names of an architecture's tensors in checkpoints and in files.

    Raises:
        InputError: The package gguf does not know the architecture.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    for number, known in MODEL_ARCH_NAMES.items():
        if known == architecture:
            return get_tensor_name_map(number, blocks)
    raise InputError(
        "the package gguf has no names for the tensors of this architecture",
        got=architecture,
        fix="install a newer one",
    )
