"""Models as Ollama keeps them: a manifest that names layers, of which one is a GGUF file.

A manifest is MODELS/manifests/registry.ollama.ai/library/NAME/TAG, JSON with the kind and the
digest of each layer; a layer is a file MODELS/blobs/sha256-<64 hex digits>, whatever it holds.
"""

from __future__ import annotations

import functools
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from resect.errors import InputError

MANIFESTS, BLOBS = "manifests", "blobs"
REGISTRY, LIBRARY = "registry.ollama.ai", "library"
KINDS = "application/vnd.ollama.image."
MODEL, ADAPTER, PROJECTOR = f"{KINDS}model", f"{KINDS}adapter", f"{KINDS}projector"
# A manifest has a line for each of a few layers, or of some thousand tensors.
_MOST_BYTES = 2**22
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_log = logging.getLogger(__name__)


class _Layer(NamedTuple):
    """A layer of a manifest."""

    kind: str
    digest: str


def model_file(path: Path) -> Path:
    """Return the GGUF file that a manifest of Ollama leads to, and any other path as it is.

    A projector beside it, through which a model sees, is not part of it, and that is logged.

    Raises:
        InputError: A manifest names no model that is one GGUF file, or its file is missing; or the
            path is a folder of such models, which does not say which is meant.
    """
    if path.is_dir():
        refuse_models_folder(path)
        return path
    layers = _layers(path)
    if layers is None:
        return path
    _refuse_kinds(path, layers)
    digest = next(layer.digest for layer in layers if layer.kind == MODEL)
    if not _DIGEST.fullmatch(digest):
        raise InputError(
            f"the manifest {path} names no blob", got=digest, allowed="sha256: and 64 hex digits"
        )
    models = next(
        (above.parent for above in path.absolute().parents if above.name == MANIFESTS), None
    )
    if models is None:
        raise InputError(
            f"{path} is a manifest of Ollama, and where its file is cannot be told",
            got=f"no folder `{MANIFESTS}` above it",
            fix=f"name it where it lies, MODELS/{MANIFESTS}/{REGISTRY}/{LIBRARY}/NAME/TAG, or give "
            "the file blobs/sha256-… itself",
        )
    blob = models / BLOBS / digest.replace(":", "-")
    if not blob.is_file():
        raise InputError(
            f"the file of {path} is not there",
            got=f"no {blob}",
            fix="fetch the model again with ollama pull, and give the manifest of a whole folder",
        )
    if any(layer.kind == PROJECTOR for layer in layers):
        _tell_of_projector(path)
    return blob


@functools.cache
def _tell_of_projector(path: Path) -> None:
    """Log that a projector is left out, once for a manifest, which is followed several times."""
    _log.warning(
        "%s: its projector, through which the model sees, is left out; here is the language model "
        "alone",
        path,
    )


def name_of_ollama(place: str | Path) -> str:
    """Return the next step for a name as Ollama has them (`NAME:TAG`); "" for any other text."""
    *before, last = str(place).split("/")
    name, _, tag = last.partition(":")
    if not name or not tag:
        return ""
    registry = REGISTRY
    if len(before) == 2 and "." in before[0].strip("."):
        registry, owner = before
    elif len(before) == 1 and not Path(before[0]).exists():
        owner = before[0]
    else:  # in front of it stands nothing, or a folder of models
        owner = LIBRARY
    manifest = f"MODELS/{MANIFESTS}/{registry}/{owner}/{name}/{tag}"
    return (
        f"a model of Ollama is named by its manifest: {manifest}, where MODELS is OLLAMA_MODELS or "
        "~/.ollama/models"
    )


def _layers(path: Path) -> list[_Layer] | None:
    """Return the layers of a manifest; None for all other files and for none."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            return None
        with path.open("rb") as file:
            if file.read(1) != b"{":
                return None
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    listed = content.get("layers") if isinstance(content, Mapping) else None
    if not isinstance(listed, list):
        return None
    layers = [
        _Layer(str(layer.get("mediaType")), str(layer.get("digest")))
        for layer in listed
        if isinstance(layer, Mapping)
    ]
    return layers if any(layer.kind.startswith(KINDS) for layer in layers) else None


def _refuse_kinds(path: Path, layers: list[_Layer]) -> None:
    """Raise `InputError` unless one layer is the model and none changes it."""
    kinds = [layer.kind for layer in layers]
    if kinds.count(MODEL) != 1:
        raise InputError(
            f"the manifest {path} has no model that is one GGUF file",
            got=f"layers of the kinds {', '.join(dict.fromkeys(kinds))}",
            allowed=f"one layer of the kind {MODEL}",
            fix="take the checkpoint that the model was made from",
        )
    if ADAPTER in kinds:
        raise InputError(
            f"the manifest {path} puts an adapter on its model",
            got=ADAPTER,
            fix="give the blob of the model for the model alone, or a checkpoint with the adapter "
            "merged",
        )


def refuse_models_folder(folder: Path) -> None:
    """Refuse a folder of Ollama's models, which does not say which of them is meant.

    Raises:
        InputError: It is one.
    """
    manifests = folder / MANIFESTS
    if not (manifests.is_dir() and (folder / BLOBS).is_dir()):
        return
    found = sorted(path for path in manifests.rglob("*") if path.is_file())
    raise InputError(
        f"{folder} holds models of Ollama",
        got=f"{len(found)} manifests",
        allowed="the manifest of one",
        fix=f"name one, for instance {found[0]}" if found else "fetch one with ollama pull",
    )
