"""Where things come from: hashes, provenance, versions, the cache folder."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path

import platformdirs

from resect.errors import InputError
from resect.files.writing import plain
from resect.records import SCHEMA_VERSION

# Set by `machine.portable` where results do not depend on the processor's instructions.
PORTABLE = "RESECT_PORTABLE"
# Set by `machine.products`.
PRODUCTS = "RESECT_PRODUCTS"


def hash_text(*texts: str) -> str:
    """Return 16 hex digits that name the given texts in order."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(len(text).to_bytes(8, "little"))
        digest.update(text.encode())
    return digest.hexdigest()[:16]


def hash_value(value: object) -> str:
    """Return 16 hex digits that name a plain value, whatever the order of its keys."""
    return hash_text(json.dumps(plain(value), sort_keys=True))


def hash_file(path: str | Path) -> str:
    """Return 16 hex digits that name a file's content."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def same_print(fingerprint: object, twin: object) -> bool:
    """Return whether two fingerprints are of one model, as far as both say.

    Versions up to 0.1.0 wrote the first 16 of the 32 digits, which are over a sample of the values.
    """
    short, long = sorted((str(fingerprint), str(twin)), key=len)
    return short == long or (len(short) == 16 and len(long) == 32 and long.startswith(short))


def cache_folder() -> Path:
    """Return the folder for rebuildable things: $RESECT_CACHE, else the user's cache folder."""
    folder = os.environ.get("RESECT_CACHE")
    return Path(folder) if folder else platformdirs.user_cache_path("resect")


@functools.cache
def _git_state() -> dict[str, str | bool | None]:
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()

    try:
        return {
            "git_commit": git("rev-parse", "HEAD"),
            "git_dirty": bool(git("status", "--porcelain", "--", str(folder))),
        }
    except (OSError, subprocess.SubprocessError):
        return {"git_commit": None, "git_dirty": None}


def package_versions(names: Iterable[str] = ("torch", "transformers", "numpy")) -> dict[str, str]:
    """Return installed versions without importing the packages."""
    versions = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def provenance() -> dict[str, object]:
    """Return what every artefact says about the software that made it."""
    return {
        "schema_version": SCHEMA_VERSION,
        "resect_version": importlib.metadata.version("resect"),
        "python": platform.python_version(),
        "versions": package_versions(),
        "portable": PORTABLE in os.environ,
        **_products(),
        **_git_state(),
    }


def _products() -> dict[str, str]:
    """Return what multiplies float32 matrices on a CPU, where that is not torch's own choice."""
    products = os.environ.get(PRODUCTS, "")
    return {"products": products} if products == "onednn" and PORTABLE not in os.environ else {}


def check_schema(version: object, path: str | Path) -> None:
    """Raise `InputError` if an artefact was written by an incompatible version."""
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path} has a schema that this version cannot read",
            got=f"schema version {version!r}",
            allowed=str(SCHEMA_VERSION),
            fix="make it again with this version of resect",
        )
