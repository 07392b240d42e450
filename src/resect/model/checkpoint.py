"""Cut and restore checkpoint folders, tensor by tensor, without loading the model.

Every file but the weights is copied as it is; weights keep their shards, names, dtypes and file
metadata. The source is never written to.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from resect import store
from resect.errors import InputError, MismatchError
from resect.mask import Mask

Change = Callable[[str, Tensor], Tensor]


def prune_checkpoint(
    source: str | Path, mask: Mask, target: str | Path, *, alpha: float = 0.0
) -> dict[str, int]:
    """Write a checkpoint whose masked weights are multiplied by `alpha`.

    Args:
        source: Checkpoint folder with safetensors weights, in one file or in shards.
        mask: What to cut.
        target: New folder.
        alpha: Factor; 0 removes.

    Returns:
        Counts of changed `weights` and of `tensors` that hold them.

    Raises:
        InputError: The source has no safetensors weights, or the target is not empty.
        MismatchError: The mask belongs to another checkpoint; the first mismatch is named.
    """

    def cut(name: str, tensor: Tensor) -> Tensor:
        mask.check(name, tensor)
        entry = mask.tensors[name]
        changed = tensor.clone()
        # The product is taken in the weights' own dtype, as `removed` does in memory.
        changed.view(-1)[entry.index] = entry.value * alpha if alpha else 0.0
        return changed

    return _rewrite(Path(source), mask, Path(target), cut)


def restore_checkpoint(source: str | Path, mask: Mask, target: str | Path) -> dict[str, int]:
    """Write a checkpoint with the values that the mask holds back in their places.

    Args:
        source: A folder that `prune_checkpoint` wrote.
        mask: The mask that it was cut with.
        target: New folder.

    Returns:
        Counts of changed `weights` and of `tensors` that hold them.

    Raises:
        InputError: The source has no safetensors weights, or the target is not empty.
        MismatchError: A tensor is missing or has another shape or dtype than in the mask.
    """

    def mend(name: str, tensor: Tensor) -> Tensor:
        entry = mask.tensors[name]
        if tuple(tensor.shape) != entry.shape or tensor.dtype != entry.value.dtype:
            raise MismatchError(
                f"{name} does not fit the mask",
                got=f"{tuple(tensor.shape)} {tensor.dtype}",
                allowed=f"{entry.shape} {entry.value.dtype}",
                fix="use the mask that this folder was cut with",
            )
        changed = tensor.clone()
        changed.view(-1)[entry.index] = entry.value
        return changed

    return _rewrite(Path(source), mask, Path(target), mend)


def weight_files(source: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint folder.

    Raises:
        InputError: It is no folder, or lacks them.
    """
    if not source.is_dir():
        raise InputError("no such checkpoint folder", got=str(source))
    index = source / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(store.read_json(index)["weight_map"].values()))
    else:
        names = ["model.safetensors"]
    files = [source / name for name in names]
    missing = [path.name for path in files if path.parent != source or not path.is_file()]
    if missing:
        raise InputError(
            f"{source} lacks safetensors weights",
            got=f"no {', '.join(missing)}",
            allowed="model.safetensors, or shards with model.safetensors.index.json",
            fix="save the model with save_pretrained",
        )
    return files


def _rewrite(source: Path, mask: Mask, target: Path, change: Change) -> dict[str, int]:
    files = weight_files(source)
    store.refuse_full_folder(target)
    wanted = {name for name, entry in mask.tensors.items() if entry.index.numel()}
    names = _names_on_disk(files, wanted, mask)
    with store.atomic_folder(target) as folder:
        for path in source.iterdir():
            if path not in files and path.is_file() and not path.name.endswith(".part"):
                shutil.copy2(path, folder / path.name)
        for path in files:
            _rewrite_file(path, folder / path.name, names, change)
    return {"weights": mask.count, "tensors": len(wanted)}


def _names_on_disk(files: list[Path], wanted: set[str], mask: Mask) -> dict[str, str]:
    """Return name on disk to name in the mask.

    Old checkpoints (the first GPT-2 files, for instance) lack the prefix of the wrapped model.
    """
    found = set()
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                found |= set(file.keys())
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is not readable", got=str(error)) from error
    names = {}
    for name in wanted:
        short = name.partition(".")[2]
        if name not in found and short not in found:
            mask.check(name, None)
        names[name if name in found else short] = name
    return names


def _rewrite_file(source: Path, target: Path, names: dict[str, str], change: Change) -> None:
    with safe_open(source, framework="pt") as file:
        metadata = file.metadata()
        tensors = {}
        for name in list(file.keys()):  # safe_open has keys(), but is no mapping
            tensor = file.get_tensor(name)
            tensors[name] = change(names[name], tensor) if name in names else tensor
    save_file(tensors, target, metadata)
