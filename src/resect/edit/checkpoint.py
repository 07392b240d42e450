"""Cut and restore checkpoint folders, tensor by tensor, without loading the model.

Every file but the weights is copied as it is; weights keep their shards, names, dtypes and file
metadata. The source is never written to. A cut folder says in `resect.json` which mask cut it,
where that mask comes from and what was forced. A folder that was restored without force has no such
file, as the folder before the cut had none.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypedDict, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from resect import files
from resect.edit.layouts import carried_to_files
from resect.errors import InputError, MismatchError
from resect.files.reading import refuse_link_out
from resect.model.adapter import is_adapter
from resect.model.decoded import refuse_quantised_files
from resect.model.files import entries, read, weight_files
from resect.model.imported import checkpoint_of
from resect.weights.fit import all_forced, fitted, forceable, forced_in, marked, one_line
from resect.weights.mask import Mask, MaskTensor, same_bits

Change = Callable[[str, Tensor], Tensor]
# Called last, when all tensors are done; None for no record.
Record = Callable[[], Mapping[str, object] | None]
RECORD = "resect.json"


class CutRecord(TypedDict, total=False):
    """What a folder says of how it was cut or, with force, restored; beside the provenance.

    Attributes:
        mask: Hash of the mask that it was cut with.
        weights: Number of weights that were cut.
        alpha: Their factor.
        source: The checkpoint that was cut.
        origin: What the mask says of where it comes from.
        forced: What was forced; "" for nothing.
        before: The record of the source, if that had been cut before.
        restored: Hash of the mask that it was restored with.
        rounded: The mask holds the values of the folder rounded to another dtype, so it cannot
            bring them back; missing where it can.
    """

    mask: str
    weights: int
    alpha: float
    source: str
    origin: dict[str, object]
    forced: str
    before: CutRecord | None
    restored: str
    rounded: bool


def prune_checkpoint(
    source: str | Path,
    mask: Mask,
    target: str | Path,
    *,
    alpha: float = 0.0,
    force: bool = False,
    extra: Mapping[str, str | None] | None = None,
) -> dict[str, int]:
    """Write a checkpoint whose masked weights are multiplied by `alpha`.

    Args:
        source: Checkpoint folder with safetensors weights, in one file or shards, or a GGUF file.
        mask: What to cut.
        target: New folder.
        alpha: Factor; 0 removes.
        force: Cut at the mask's places although dtype or values differ; the folder then says so.
        extra: Texts to write beside the weights by file name; None leaves a file out.

    Returns:
        Counts of changed `weights` and of `tensors` that hold them.

    Raises:
        InputError: The source has no safetensors weights, the target is not empty, or alpha is not
            finite.
        MismatchError: The mask belongs to another checkpoint; the first mismatch is named.
    """
    if not math.isfinite(alpha):
        raise InputError("alpha is no number to multiply by", got=str(alpha), allowed="0, 0.5, ...")
    forced = [forced_in(mask.meta), forced_of(source)]
    rounded: list[bool] = []

    files.refuse_full_folder(Path(target))
    folder = Path(checkpoint_of(source))
    in_files = _in_files(folder, mask)

    def cut(name: str, tensor: Tensor) -> Tensor:
        checked = _checked(name, in_files.tensors[name], tensor, force=force)
        forced.append(checked.forced)
        rounded.append(checked.rounded)
        index = in_files.tensors[name].index
        changed = tensor.clone()
        changed.view(-1)[index] = _cut_to(tensor.view(-1)[index], alpha)
        return changed

    def record() -> Mapping[str, object]:
        written: CutRecord = {
            "mask": mask.hash,
            "weights": mask.count,
            "alpha": alpha,
            "source": str(source),
            "origin": dict(mask.meta),
            "forced": all_forced(*forced),
            "before": cut_record(source),
        }
        if any(rounded):
            written["rounded"] = True
        return {**written, **files.provenance()}

    return _rewrite(folder, in_files, Path(target), cut, record, extra or {})


def cut_record(checkpoint: str | Path) -> CutRecord | None:
    """Return what a folder or GGUF file that was cut says of its cut; None for all others.

    Raises:
        InputError: The record is not readable.
    """
    # An adapter has no record, and is not merged for that.
    place = Path(checkpoint).expanduser()
    path = (place if is_adapter(place) else Path(checkpoint_of(checkpoint))) / RECORD
    if not path.is_file():
        return None
    record = files.read_json(path)
    if not isinstance(record, dict):
        raise InputError(f"{path} does not say how the folder was cut", got=type(record).__name__)
    return cast("CutRecord", record)


def forced_of(checkpoint: str | Path) -> str:
    """Return what was forced when a checkpoint was made; "" for nothing and for a Hub id."""
    return forced_in(cut_record(checkpoint) or {})


def restore_checkpoint(
    source: str | Path,
    mask: Mask,
    target: str | Path,
    *,
    force: bool = False,
    extra: Mapping[str, str | None] | None = None,
) -> dict[str, int]:
    """Write a checkpoint with the values that the mask holds back in their places.

    Args:
        source: A folder that `prune_checkpoint` wrote, or a GGUF file that was cut.
        mask: The mask that it was cut with.
        target: New folder.
        force: Go on although the folder was not cut with this mask; the new one then says so.
        extra: Texts to write beside the weights by file name; None leaves a file out.

    Returns:
        Counts of changed `weights` and of `tensors` that hold them.

    Raises:
        InputError: The source has no safetensors weights, or the target is not empty.
        MismatchError: A tensor is missing or has another shape than in the mask, the
            folder was cut with another mask or by force, or a masked weight is not as it was cut.
    """
    pruned = cut_record(source) or {}
    forced = [forced_in(pruned)]

    def refuse(error: MismatchError) -> None:
        if not force:
            raise forceable(error)
        forced.append(one_line(error))

    for objection in _objections(pruned, mask):
        refuse(objection)
    alpha, rounded = float(pruned.get("alpha", 0.0)), pruned.get("rounded", False)
    files.refuse_full_folder(Path(target))
    folder = Path(checkpoint_of(source))
    in_files = _in_files(folder, mask)

    def mend(name: str, tensor: Tensor) -> Tensor:
        entry = in_files.tensors[name]
        _refuse_misfit(name, tensor, entry)
        changed = tensor.clone()
        value = entry.value.to(tensor.dtype)
        uncut = ~_is_cut(changed.view(-1)[entry.index], value, alpha)
        if uncut.any() and not rounded:  # else the mask does not hold what was cut
            index = int(entry.index[uncut][0])
            refuse(_uncut(name, index))
        changed.view(-1)[entry.index] = value
        return changed

    def record() -> Mapping[str, object] | None:
        written: CutRecord = {"restored": mask.hash, "forced": all_forced(*forced)}
        if written["forced"]:
            return {**written, **files.provenance()}
        # A folder that was cut twice and restored once has been cut once.
        return pruned.get("before")

    return _rewrite(folder, in_files, Path(target), mend, record, extra or {})


def fitted_to_files(source: str | Path, mask: Mask, *, force: bool = False) -> Mask:
    """Return a mask by the names and shapes of a checkpoint's tensors, for who cuts while it loads.

    Args:
        source: Checkpoint folder with safetensors weights, an adapter or a GGUF file.
        mask: What is to be cut.
        force: Cut at the mask's places although dtype or values differ; its origin then says so.

    Raises:
        InputError: The source has no safetensors weights.
        MismatchError: The mask belongs to another checkpoint; the first mismatch is named.
    """
    folder = Path(checkpoint_of(source))
    in_files, tensors = _in_files(folder, mask), entries(weight_files(folder))
    forced = [forced_in(mask.meta), forced_of(source)]
    for name, entry in in_files.tensors.items():
        if name not in tensors:
            in_files.check(name, None)
        forced.append(_checked(name, entry, read(tensors[name], name), force=force).forced)
    return marked(in_files, all_forced(*forced))


class _Checked(NamedTuple):
    """What a tensor has to do with its entry in a mask: what was forced, and what was rounded."""

    forced: str
    rounded: bool


def _checked(name: str, entry: MaskTensor, tensor: Tensor, *, force: bool) -> _Checked:
    """Refuse a tensor that the mask was not made from, or say what is forced.

    Raises:
        MismatchError: It does not fit, and that is not forced or cannot be.
    """
    fitting = fitted(Mask({name: entry}, {}), {name: tensor}, force=force)
    value = fitting.tensors[name].value
    error = _rounding(name, fitting.tensors[name], tensor)
    if error is not None and not force:
        raise forceable(error)
    same = _same(value.to(tensor.dtype), tensor.view(-1)[entry.index])
    forced = all_forced(forced_in(fitting.meta), "" if error is None else one_line(error))
    return _Checked(forced, not bool(same.all()))


def _same(values: Tensor, expected: Tensor) -> Tensor:
    return same_bits(values, expected) | (values.isnan() & expected.isnan())


def _rounding(name: str, entry: MaskTensor, tensor: Tensor) -> MismatchError | None:
    """Tell a folder of rounded copies from one that was scored in a wider dtype."""
    back = entry.value.to(tensor.dtype).to(entry.value.dtype)
    exact = bool((same_bits(back, entry.value) | entry.value.isnan()).all())
    if exact or torch.promote_types(tensor.dtype, entry.value.dtype) != entry.value.dtype:
        return None
    return MismatchError(
        f"{name} has another dtype than in the mask, which holds more digits",
        got=str(tensor.dtype),
        allowed=str(entry.value.dtype),
        fix="use the checkpoint that the mask was made from, and not a rounded copy",
    )


def _uncut(name: str, index: int) -> MismatchError:
    got = f"another value at flat index {index}"
    return MismatchError(f"{name} is not as this mask cuts it", got=got, fix=_FIX)


def _objections(pruned: CutRecord, mask: Mask) -> Iterator[MismatchError]:
    """Yield why a folder with this record cannot be restored with a mask."""
    if pruned.get("mask", mask.hash) != mask.hash:
        got = str(pruned["mask"])
        what = "the folder was cut with another mask"
        yield MismatchError(what, got=got, allowed=mask.hash, fix=_FIX)
    elif forced_in(pruned):
        what = "the folder was cut by force, so the mask lacks its values"
        yield MismatchError(what, got=forced_in(pruned), fix=_FIX)
    if pruned.get("rounded"):
        yield MismatchError(
            "the mask holds rounded values",
            got="values of another dtype than the folder has",
            fix="take the folder that was cut, or score it again for a mask with its own values",
        )


def _cut_to(values: Tensor, alpha: float) -> Tensor:
    """Return what stands in place of values [k]; inf and NaN are removed as other values are."""
    # The product is taken in the weights' own dtype, as `removed` does in memory.
    return values * alpha if alpha else torch.zeros_like(values)


def _is_cut(held: Tensor, values: Tensor, alpha: float) -> Tensor:
    """Tell where weights [k] are as a cut leaves values [k]."""
    expected = _cut_to(values, alpha)
    # A block of a GGUF file may hold the zero of the other sign.
    return _same(expected, held) | ((expected == 0) & (held == 0))


_FIX = "use the mask that this folder was cut with"


def _refuse_misfit(name: str, tensor: Tensor, entry: MaskTensor) -> None:
    if tuple(tensor.shape) != entry.shape:
        raise MismatchError(
            f"{name} does not fit the mask",
            got=str(tuple(tensor.shape)),
            allowed=str(entry.shape),
            fix=_FIX,
        )


def _rewrite(
    source: Path,
    mask: Mask,
    target: Path,
    change: Change,
    record: Record,
    extra: Mapping[str, str | None],
) -> dict[str, int]:
    shards = weight_files(source)
    masked = {name for name, entry in mask.tensors.items() if entry.index.numel()}
    with files.atomic_folder(target) as folder:
        for path in source.iterdir():
            if path in shards or path.name in {*extra, RECORD} or path.name.endswith(".part"):
                continue
            if path.is_file():
                refuse_link_out(path, source)
                shutil.copy2(path, folder / path.name)
        for path in shards:
            _rewrite_file(path, folder / path.name, masked, change)
        for name, text in extra.items():
            if text is not None:
                files.write_text(folder / name, text)
        written = record()
        if written is not None:
            files.write_json(folder / RECORD, written)
    return {"weights": mask.count, "tensors": len(masked)}


def _in_files(source: Path, mask: Mask) -> Mask:
    """Return a mask by the names and shapes of the tensors in a folder.

    Raises:
        InputError: The folder has no safetensors weights, or they are quantised or not readable.
        MismatchError: A masked tensor is not there.
    """
    refuse_quantised_files(source)
    tensors = entries(weight_files(source))
    masked = {name: entry for name, entry in mask.tensors.items() if entry.index.numel()}
    names = {}
    for name, entry in masked.items():
        # Old checkpoints (the first GPT-2 files, for instance) lack the prefix of the wrapped
        # model.
        for candidate in (name, name.partition(".")[2]):
            if candidate in tensors and tensors[candidate].shape == entry.shape:
                names[name] = candidate
                break
    if len(names) == len(masked):
        return Mask({names[name]: entry for name, entry in masked.items()}, mask.meta)
    lacking = next(name for name in masked if name not in names)
    if lacking in tensors or not (source / "config.json").is_file():
        return Mask(masked, mask.meta)
    return carried_to_files(mask, source, tensors)


def _rewrite_file(source: Path, target: Path, names: set[str], change: Change) -> None:
    try:
        with safe_open(source, framework="pt") as file:
            metadata = file.metadata()
            tensors = {}
            for name in list(file.keys()):  # safe_open has keys(), but is no mapping
                tensor = file.get_tensor(name)
                tensors[name] = change(name, tensor) if name in names else tensor
    except (SafetensorError, OSError) as error:
        raise InputError(f"{source} is not readable", got=str(error)) from error
    save_file(tensors, target, metadata)
