"""Folders for the length of a block, which a later block removes where the first one was killed.

They lie in a folder that all share, the system's temporary one mostly. Each says which process owns
it; what a process left that has surely ended (`Owner.is_dead`) goes, and nothing else does.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from resect.files.locking import Owner, owner_of
from resect.files.writing import write_json

PREFIX = "resect-scratch-"
_OWNER = "owner.json"


@contextlib.contextmanager
def scratch_folder(parent: Path | None = None) -> Iterator[Path]:
    """Yield an empty folder but for `owner.json`, which is removed when the block ends.

    Args:
        parent: Where it is made; None for the system's temporary folder.
    """
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    _remove_orphans(parent)
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=parent) as name:
        folder = Path(name)
        write_json(folder / _OWNER, Owner.this())
        yield folder


def _remove_orphans(parent: Path) -> None:
    """Remove the folders of this user whose owners have ended."""
    for folder in parent.glob(f"{PREFIX}*"):
        # Other processes tidy up too, and what cannot be removed disturbs nobody.
        with contextlib.suppress(OSError):
            if folder.is_symlink() or not _is_mine(folder):
                continue
            owner = owner_of(folder / _OWNER)
            if owner is not None and owner.is_dead:
                shutil.rmtree(folder, ignore_errors=True)


def _is_mine(folder: Path) -> bool:
    """Return whether this user made a folder; on Windows nobody else sees them."""
    return not hasattr(os, "getuid") or folder.stat().st_uid == os.getuid()
