"""Whether the files that a model is read from were written to: by their sizes and times, unread.

A file of the size and the time of last change that it had is taken for the same. Somebody who puts
another one in its place and sets the time back is not seen; `resect.model.on_disk.prints_on_disk`
reads the files.
"""

from __future__ import annotations

from pathlib import Path

from resect.errors import InputError
from resect.model.adapter import base_of, is_adapter
from resect.model.load import folder_of
from resect.model.ollama import model_file

# Size in bytes, and time of last change in nanoseconds since 1970.
Stamp = list[int]
# Weights, configurations and the forms that tokenizers have.
SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".txt")


def stamps_of(checkpoint: str | Path) -> dict[str, Stamp]:
    """Return the stamp of each file that a model is read from, by its path; nothing is fetched.

    Args:
        checkpoint: Its folder, a GGUF file, a manifest of Ollama, a folder with an adapter, or a
            Hub id.

    Raises:
        InputError: It is not on this machine.
    """
    path = model_file(Path(checkpoint).expanduser())
    if not path.exists():
        folder = folder_of(checkpoint)
        if folder is None:
            raise InputError("the model is not on this machine", got=str(checkpoint))
        path = folder
    stamps = {}
    for file in [path] if path.is_file() else _files_in(path):
        status = file.stat()
        stamps[str(file)] = [status.st_size, status.st_mtime_ns]
    return stamps | (stamps_of(base_of(path)) if is_adapter(path) else {})


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())
