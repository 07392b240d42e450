"""A cut model as a GGUF file that llama.cpp reads, made of the file that it was imported from.

`keep` writes the same file with zeros in it: no other weight, and nothing else but two facts that
say what was cut, is another. Where a block cannot hold an exact zero (`resect.export.blocks`), that
is refused with the tensors named, and a file of floats is the way: every block is decoded, and the
values are written as F16, BF16 or F32. Tensors that the file holds in F32 stay so, because
llama.cpp wants norms in it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, cast

import numpy as np
import torch

from resect import files
from resect.edit.checkpoint import CutRecord
from resect.errors import InputError, MismatchError
from resect.export.blocks import Index, Zeroed, values_at, zeroed
from resect.export.card import Card, checkpoint_card
from resect.export.gate import Gate, gate_of
from resect.export.gguf_places import KNOWN, Placed, placed
from resect.export.gguf_writing import Kind, Piece, assembled
from resect.model.faults import some_of
from resect.model.files import DTYPES
from resect.model.gguf import SUFFIX, GgufFile, GgufTensor, dequantised, read_gguf
from resect.model.imported import CUT_FACT, cut_of
from resect.model.ollama import model_file
from resect.weights.fit import all_forced, forceable, forced_in, one_line
from resect.weights.mask import Mask, MaskTensor, agree

CARD_FACT = "resect.card"
FILE_TYPE = "general.file_type"
OutType = Literal["keep", "f16", "bf16", "f32"]


class _Out(NamedTuple):
    """What blocks are decoded to: the type, torch's dtype, and the number of files of that type."""

    kind: Kind
    dtype: torch.dtype
    file_type: int


OUT = {
    "f32": _Out(Kind("F32", 0, 4), torch.float32, 0),
    "f16": _Out(Kind("F16", 1, 2), torch.float16, 1),
    "bf16": _Out(Kind("BF16", 30, 2), torch.bfloat16, 32),
}
# What is not decoded: llama.cpp wants norms in F32, and integers are no weights.
_STAY = ("F32", "F64", "I8", "I16", "I32", "I64")


@dataclass(frozen=True)
class GgufCut:
    """What was written.

    Attributes:
        weights: Weights that were cut.
        tensors: Tensors that hold them.
        types: Types of the file's tensors now.
        values: Weights of the tensors whose type changed.
        rounded: How many of them have another value than before, the cut ones aside.
    """

    weights: int
    tensors: int
    types: tuple[str, ...]
    values: int
    rounded: int


@dataclass(frozen=True)
class _Cut:
    """The places of one tensor of the file that are cut.

    Attributes:
        tensor: The tensor.
        index: [p] flat indices in it.
    """

    tensor: GgufTensor
    index: Index


class _Checked(NamedTuple):
    """The places of a mask in a file by tensor, and what was forced."""

    cuts: dict[str, _Cut]
    forced: str


@dataclass
class _Rounding:
    """How many values were written in another type, and how many of them are others now."""

    values: int = 0
    rounded: int = 0


def export_gguf(
    source: str | Path,
    mask: Mask,
    target: str | Path,
    *,
    outtype: OutType = "keep",
    alpha: float = 0.0,
    mask_name: str = "",
    run: Path | Gate | None = None,
    force: bool = False,
) -> GgufCut:
    """Write the GGUF file of a cut model.

    Args:
        source: The GGUF file that the mask's model was imported from, or Ollama's manifest of it.
        mask: What to cut.
        target: New file, `*.gguf`.
        outtype: "keep" for the file's own types, or what its blocks are decoded to.
        alpha: Factor of the masked weights; 0 removes, and others need a type without blocks.
        mask_name: Name of the mask's file, for the card.
        run: Folder of a run that measured this mask, whose claims the card repeats; or what
            `pass_gate` returned of it.
        force: Cut at the mask's places although values differ; the file then says so.

    Raises:
        InputError: The source is no GGUF file, the target is there, a block cannot hold what is
            asked for, or a value does not fit the type.
        MismatchError: The mask belongs to another model, or the run is not one of this mask.
    """
    source, target = Path(source).expanduser(), Path(target)
    _refuse(source, target, alpha)
    gate = gate_of(mask, run, alpha)
    file = read_gguf(model_file(source))
    cuts, forced = _checked(file, mask, force=force)
    out = OUT.get(outtype)
    changed = _changed(file, out)
    patches = {name: _patch(cut, alpha) for name, cut in cuts.items() if name not in changed}
    _refuse_blocks(file, cuts, patches)
    facts: dict[str, str | int] = {
        CUT_FACT: json.dumps(files.plain(_record(file, mask, alpha, forced)), sort_keys=True),
        CARD_FACT: checkpoint_card(
            Card(mask, mask_name or "unnamed", alpha, run=gate.run, gate=gate)
        ),
    }
    if out is not None:
        facts[FILE_TYPE] = out.file_type
    rounding = _Rounding()

    def data() -> Iterator[Piece]:
        for name, tensor in file.tensors.items():
            if name in changed and out is not None:
                yield _as_floats(tensor, cuts.get(name), alpha, out, rounding)
            else:
                yield _patched(tensor, patches.get(name))

    files.write_pieces(target, assembled(file, facts, changed, data()))
    types = _types(file, changed)
    return GgufCut(mask.count, len(cuts), types, rounding.values, rounding.rounded)


def _refuse(source: Path, target: Path, alpha: float) -> None:
    """Raise `InputError` for a source or target that is no GGUF file, and for no factor."""
    if not math.isfinite(alpha):
        raise InputError("alpha is no number to multiply by", got=str(alpha), allowed="0, 0.5, ...")
    if target.suffix.lower() != SUFFIX:
        raise InputError("a GGUF file is written as *.gguf", got=str(target))
    if source.is_dir():
        raise InputError(
            "a cut GGUF file is made of the one that the model was imported from",
            got=str(source),
            allowed="a GGUF file",
            fix="write the cut model as a folder, and convert that with llama.cpp's "
            "convert_hf_to_gguf.py",
        )
    if target.exists():
        raise InputError("the output is there already", got=str(target), fix="choose a new name")


def _changed(file: GgufFile, out: _Out | None) -> dict[str, Kind]:
    """Return the new type of each tensor that is decoded."""
    if out is None:
        return {}
    stay = (*_STAY, out.kind.name)
    return {name: out.kind for name, tensor in file.tensors.items() if tensor.type not in stay}


def _types(file: GgufFile, changed: Mapping[str, Kind]) -> tuple[str, ...]:
    """Return the types of a new file's tensors, each once."""
    types = [
        changed[name].name if name in changed else tensor.type
        for name, tensor in file.tensors.items()
    ]
    return tuple(dict.fromkeys(types))


def _checked(file: GgufFile, mask: Mask, *, force: bool) -> _Checked:
    """Find the places of a mask in a file, and compare what stands there with it.

    Raises:
        InputError: The architecture is not known to the package gguf.
        MismatchError: A tensor is not there, or a value differs and is not or cannot be forced.
    """
    places: dict[str, list[Index]] = {}
    forced: list[str] = []
    for name, entry in mask.tensors.items():
        if not entry.index.numel():
            continue
        where = placed(file, name, entry.shape, entry.index.numpy())
        error = _other_values(file, name, entry, where)
        if error is not None:
            if file.architecture not in KNOWN:
                raise error
            if not force:
                raise forceable(error)
            forced.append(one_line(error))
        places.setdefault(where.tensor.name, []).append(where.index)
    cuts = {name: _Cut(file.tensors[name], np.concatenate(each)) for name, each in places.items()}
    # The first mismatch stands for all of them.
    return _Checked(cuts, "".join(forced[:1]))


def _other_values(
    file: GgufFile, name: str, entry: MaskTensor, where: Placed
) -> MismatchError | None:
    values = torch.from_numpy(values_at(where.tensor, where.index))
    different = (~agree(entry.value, values)).nonzero()
    if not different.numel():
        return None
    row = int(different[0])
    return MismatchError(
        f"{name} has another value in {file.path} than in the mask, flat index "
        f"{int(entry.index[row])}",
        got=f"{float(values[row]):.9g} ({len(different)} values of this tensor differ)",
        allowed=f"{float(entry.value[row]):.9g}",
        fix="use the file that the mask's model was imported from",
    )


def _record(file: GgufFile, mask: Mask, alpha: float, forced: str) -> Mapping[str, object]:
    """Return what the file says of its cut, as a cut folder says it."""
    earlier = cast("CutRecord | None", cut_of(file))
    written: CutRecord = {
        "mask": mask.hash,
        "weights": mask.count,
        "alpha": alpha,
        "source": str(file.path),
        "origin": dict(mask.meta),
        "forced": all_forced(forced_in(mask.meta), forced_in(earlier or {}), forced),
        "before": earlier,
    }
    return {**written, **files.provenance()}


def _patch(cut: _Cut, alpha: float) -> Zeroed:
    """Return the blocks of a tensor that a cut changes.

    Raises:
        InputError: Weights in blocks are to be anything but 0.
    """
    done = zeroed(cut.tensor, cut.index)
    if not alpha:
        return done
    if cut.tensor.type not in DTYPES:
        raise InputError(
            f"{cut.tensor.name} holds its weights in blocks, which cannot hold any value",
            got=f"alpha {alpha:g}, type {cut.tensor.type}",
            allowed="alpha 0, or a file of floats",
            fix="add --outtype f16, bf16 or f32",
        )
    values = torch.from_numpy(np.array(cut.tensor.blocks[done.rows])).view(DTYPES[cut.tensor.type])
    return done._replace(blocks=(values * alpha).view(torch.uint8).numpy())


def _refuse_blocks(file: GgufFile, cuts: Mapping[str, _Cut], patches: Mapping[str, Zeroed]) -> None:
    """Refuse a cut that a block cannot hold.

    Raises:
        InputError: There is such a block.
    """
    refused = {name: int(patch.refused.sum()) for name, patch in patches.items()}
    tensors = [
        f"{name} ({file.tensors[name].type}, {count:,} of {len(cuts[name].index):,} weights)"
        for name, count in refused.items()
        if count
    ]
    if tensors:
        everything = sum(len(cut.index) for cut in cuts.values())
        raise InputError(
            f"{sum(refused.values()):,} of {everything:,} weights cannot be exactly 0 in the "
            f"blocks of {file.path}, whose scale and minimum have no code for it",
            got=some_of(tensors),
            allowed="F32, F16, BF16, Q8_0, Q5_0, Q4_0, Q6_K, Q3_K and others without a minimum",
            fix="add --outtype f16 (or bf16, f32), which writes the decoded values",
        )


def _patched(tensor: GgufTensor, patch: Zeroed | None) -> Piece:
    """Return the bytes of a tensor with some blocks replaced."""
    if patch is None:
        return tensor.data.data
    blocks = np.array(tensor.blocks)
    blocks[patch.rows] = patch.blocks
    return blocks.reshape(-1).data


def _as_floats(
    tensor: GgufTensor, cut: _Cut | None, alpha: float, out: _Out, rounding: _Rounding
) -> Piece:
    """Return the values of a tensor as bytes of another type, those of a cut changed.

    Raises:
        InputError: A value is out of the range of the type.
    """
    values = torch.from_numpy(dequantised(tensor.data, tensor.type, (tensor.size,)))
    if cut is not None:
        index = torch.from_numpy(cut.index)
        values[index] = values[index] * alpha if alpha else torch.zeros(len(index))
    written = values.to(out.dtype)
    if bool((written.isinf() & values.isfinite()).any()):
        raise InputError(
            f"{tensor.name} has a value that {out.kind.name} cannot hold",
            got=f"{float(values.abs().max()):.4g}",
            fix="write --outtype bf16 or f32",
        )
    rounding.values += len(values)
    rounding.rounded += int(((written.float() != values) & ~values.isnan()).sum())
    return written.view(torch.uint8).numpy().data
