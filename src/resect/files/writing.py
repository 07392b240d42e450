"""Files written whole or not at all.

Every write of the package goes through `atomic` (a file) or `atomic_folder` (a folder): the
content is made in a sibling whose name ends in `.part`, flushed to disk and renamed. What has its
final name is complete.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from resect.errors import InputError
from resect.records import LEFT_OUT_BY_DEFAULT

if TYPE_CHECKING:
    from torch import Tensor

# JSON escapes the first 32 by itself.
_UNSEEN = re.compile("[\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")
# What file systems without hard links answer.
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}

_PIECE = 4 * 2**20


def _draft_of(path: Path) -> Path:
    """Return a sibling to write in, under a name that nobody else has."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(path: Path, error: OSError | SafetensorError) -> InputError:
    return InputError(
        f"cannot write {path}",
        got=(error.strerror if isinstance(error, OSError) else "") or str(error),
        fix="free some space or choose another place with -o; what was there before is unchanged",
    )


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a `.part` path beside `path`; rename it to `path` when the block ends well.

    Raises:
        InputError: The place cannot be written (missing rights, full disk).
    """
    path = Path(path)
    draft = _draft_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        _sync(draft)
        draft.replace(path)
    except (OSError, SafetensorError) as error:
        # Safetensors has an error of its own, for a full disk too.
        raise _unwritable(path, error) from error
    finally:
        # The parent may be a file or gone; the error above says so already.
        with contextlib.suppress(OSError):
            draft.unlink()


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a fresh sibling folder; rename it to `path` when the block ends well.

    Raises:
        InputError: `path` exists and is not empty, or the place cannot be written.
    """
    path = Path(path)
    refuse_full_folder(path)
    draft = _draft_of(path)
    try:
        draft.mkdir(parents=True)
        yield draft
        _open_to_others(draft)
        for file in draft.rglob("*"):
            if file.is_file():
                _sync(file)
        if path.exists():
            path.rmdir()
        draft.replace(path)
    except (OSError, SafetensorError) as error:
        # Safetensors has an error of its own, for a full disk too.
        raise _unwritable(path, error) from error
    finally:
        _remove_tree(draft)


def refuse_full_folder(path: Path) -> None:
    """Raise `InputError` if `path` is a file or a folder with something in it."""
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise InputError(
            "the output folder is not empty", got=str(path), fix="choose a new folder with -o"
        )


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    with atomic(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], header: object) -> None:
    """Write safetensors, whole or not at all, with a header of ours as JSON in its metadata.

    The library makes a file of its own beside the one that it is asked for and renames it (since
    0.8.0; their pull request 764), under a name that tells nobody whose it is. Here it does so in a
    folder that goes when the file has its place, or is known as unfinished when we are killed.

    Raises:
        InputError: The place cannot be written.
    """
    from safetensors.torch import save_file

    path = Path(path)
    with atomic(path) as draft, _folder_beside(path) as folder:
        whole = folder / path.name
        save_file(dict(tensors), whole, {"resect": json.dumps(plain(header))})
        _open_to_others(folder)
        whole.replace(draft)


def _open_to_others(folder: Path) -> None:
    """Give files of safetensors the rights that any other new file of this process has.

    The library makes them for their owner alone since 0.8.0 (their issue 782), whatever the umask,
    so that a colleague, or the user that serves a model, finds a folder and no weights in it.
    """
    written = sorted(folder.rglob("*.safetensors"))
    if not written:
        return
    usual = folder / f"{uuid.uuid4().hex}.mode"
    usual.touch()
    mode = usual.stat().st_mode
    usual.unlink()
    for file in written:
        if not file.is_symlink():
            file.chmod(mode)


@contextlib.contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    folder = _draft_of(path)
    folder.mkdir()
    try:
        yield folder
    finally:
        _remove_tree(folder)


def write_pieces(path: str | Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Write bytes that need not be in memory together, whole or not at all."""
    with atomic(path) as draft, draft.open("wb") as file:
        for piece in pieces:
            file.write(piece)


def join_files(parts: Iterable[Path], path: str | Path) -> None:
    """Write one file that holds the bytes of others, in order.

    Raises:
        InputError: One of them cannot be read, or the place cannot be written.
    """
    write_pieces(path, (piece for part in parts for piece in _pieces(part)))


def _pieces(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                yield piece
    except OSError as error:
        raise InputError(f"cannot read {path}", got=error.strerror or str(error)) from error


def plain(value: object) -> Any:
    """Turn dataclasses, tuples, sets and paths into what JSON can hold."""
    if is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name))
            for field in fields(value)
            if field.metadata != LEFT_OUT_BY_DEFAULT or getattr(value, field.name) != field.default
        }
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return [plain(item) for item in sorted(value)]
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def write_json(path: str | Path, value: object) -> None:
    """Write JSON with sorted keys, whole or not at all; NaN is refused by `json`.

    Control and direction-changing characters are written as escapes: people look at such files in
    terminals.
    """
    text = json.dumps(plain(value), indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
    write_text(path, _UNSEEN.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n")


def append_line(path: str | Path, value: object) -> None:
    """Append a line of JSON in one write, which local file systems keep whole among others."""
    with Path(path).open("ab", buffering=0) as file:
        file.write((json.dumps(plain(value), sort_keys=True, allow_nan=False) + "\n").encode())


def remove_folder(path: str | Path) -> None:
    """Remove a folder of unfinished work whose content has its final place elsewhere.

    It loses its name first, so that a kill in the middle leaves no folder that looks whole.
    """
    path = Path(path)
    draft = _draft_of(path)
    try:
        path.replace(draft)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        _remove_tree(draft)


def _remove_tree(draft: Path) -> None:
    try:
        shutil.rmtree(draft, ignore_errors=True)
    finally:
        # A signal in the middle of it: what is left goes before the process does.
        shutil.rmtree(draft, ignore_errors=True)


def is_unfinished(path: Path) -> bool:
    """Return whether a file or folder is what a killed process left of one it was writing."""
    return path.name.startswith(".") and path.name.endswith(".part")


def remove_unfinished(folder: Path, *, before: int) -> None:
    """Remove what killed processes left in a folder.

    Args:
        folder: The folder, with all below it.
        before: Remove only what was last changed before this time, in nanoseconds since 1970.
    """
    # What cannot be removed disturbs nobody, and other processes may tidy up too.
    with contextlib.suppress(OSError):
        for path in sorted(folder.rglob(".*.part")):
            if path.is_symlink() or path.stat().st_mtime_ns >= before:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def remove_stale(folder: Path, *, quiet_for: float = 3600.0) -> None:
    """Remove what killed processes left in a folder that live ones may be writing in.

    Args:
        folder: The folder; what lies deeper is part of what is written.
        quiet_for: Seconds in which nothing of it has changed. A process that writes a checkpoint
            changes something every few minutes.
    """
    before = time.time() - quiet_for
    with contextlib.suppress(OSError):
        for path in sorted(folder.glob(".*.part")):
            if not path.is_symlink() and _last_change(path) < before:
                shutil.rmtree(path, ignore_errors=True)
                with contextlib.suppress(OSError):
                    path.unlink()


def _last_change(path: Path) -> float:
    """Return when a file, or anything in a folder, was last changed, in seconds since 1970."""
    return max(inner.lstat().st_mtime for inner in (path, *path.rglob("*")))


def create_json(path: str | Path, value: object) -> bool:
    """Write JSON under a name that is not taken; return false if it is.

    Of several processes that try at once, on one host or on many, exactly one is told true.

    Raises:
        InputError: The place cannot be written.
    """
    path = Path(path)
    draft = _draft_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(plain(value), sort_keys=True), encoding="utf-8")
        _sync(draft)
        os.link(draft, path)
    except FileExistsError:
        return False
    except OSError as error:
        if path.exists() or not draft.exists() or error.errno not in _NO_LINKS:
            raise _unwritable(path, error) from error
        # A file system without second names: made empty, which counts as owned, then replaced.
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            draft.replace(path)
        except FileExistsError:
            return False
        except OSError as failure:
            raise _unwritable(path, failure) from failure

    finally:
        with contextlib.suppress(OSError):
            draft.unlink()
    return True
