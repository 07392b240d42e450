"""A map of all causal LMs of transformers: what of each can be cut, and what is left alone and why.

    python benchmarks/architectures.py                       every type; half an hour of one core
    python benchmarks/architectures.py --without-trials      shapes alone; what was tried is kept
    python benchmarks/architectures.py llama mamba           print these types, and write nothing

It writes docs/architectures.json and the marked place in docs/architectures.md. What is said of
shapes is read from models without weights, at the widths of their defaults, with few layers
(model_types.py); what was tried was tried at small size (model_trials.py). A test builds every type
and holds the file to it.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import model_types

from resect.errors import ResectError
from resect.files.reading import read_json
from resect.files.writing import write_json, write_text
from resect.model import Coverage, find_prunable
from resect.model.blocks import Decoder
from resect.planted.verdicts.text import filled

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- architectures: begin -->", "<!-- architectures: end -->"
Row = dict[str, Any]


def row(model_type: str) -> Row:
    """Return what is known of a type without its weights."""
    about: Row = {"class": model_types.model_types()[model_type]}
    try:
        model = model_types.empty(model_type)
    except Exception as error:  # noqa: BLE001 - a configuration may fail in any way; it is named
        return about | {"state": "not built", "reason": said(error)}
    about |= {"state": "covered", "reason": "", "layers": _layers(model)}
    about["decoder_only_if_said"] = model_types.reads_both_ways(model_type)
    try:
        coverage = find_prunable(model)
    except ResectError as error:
        about |= {"state": "refused", "reason": said(error)}
        try:
            coverage = find_prunable(model, allow_partial=True)
        except ResectError as second:
            return about | {"reason": said(second)}
    return about | _covered(model, coverage)


def _covered(model: Any, coverage: Coverage) -> Row:
    modules = dict(model.named_modules())
    decoder = Decoder(model, modules)
    inside = sum(p.numel() for n, p in model.named_parameters() if decoder.layer(n) is not None)
    alone: dict[str, set[str]] = {}
    outside = set()
    for skipped in coverage.skipped:
        if decoder.layer(skipped.name) is not None:
            alone.setdefault(skipped.reason, set()).add(pattern(skipped.name))
        elif not _is_embedding(model, modules, skipped.name):
            outside.add(_top(skipped.name))
    names = {
        pattern(weight.name): sorted({pattern(place.name) for place in weight.places})
        for weight in coverage.weights
        if [place.name for place in weight.places] != [weight.name]
    }
    return {
        "share": round(coverage.total / inside, 5),
        "units": list(dict.fromkeys(weight.kind for weight in coverage.weights)),
        "left_alone": {reason: sorted(alone[reason]) for reason in sorted(alone)},
        "unknown": sorted({pattern(weight.name) for weight in coverage.unknown}),
        "outside": sorted(outside),
        "on_disk": dict(sorted(names.items())),
        "experts": _experts(coverage),
        "tied": _tied(model),
        "shared": sorted({pattern(w.name) for w in coverage.weights if w.name in _shared(model)}),
    }


def _layers(model: Any) -> list[str]:
    """Return the kinds of layers that a configuration names, as it calls them."""
    config = model.config.get_text_config()
    kinds = []
    for name in model_types.KINDS:
        value = getattr(config, name, None)
        if isinstance(value, list | tuple):
            kinds += [str(kind) for kind in value if isinstance(kind, str)]
    return sorted(set(kinds))


def _experts(coverage: Coverage) -> str:
    """Return how the experts of a type lie in memory and on disk; "" without experts."""
    together = [w for w in coverage.weights if "experts" in w.name.split(".")]
    if not together:
        return ""
    if any(len(weight.shape) == 3 for weight in together):
        memory = "one parameter for all"
    else:
        memory = "a module each" if len({w.kind for w in together}) else ""
    split = any(len(weight.places) > 1 for weight in together)
    return f"{memory}; on disk {'a tensor each' if split else 'as in memory'}"


def _tied(model: Any) -> list[str]:
    """Return the parameters that are another one under a second name."""
    shown = {name for name, _ in model.named_parameters()}
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return sorted({pattern(name) for name in every - shown})


def _shared(model: Any) -> set[str]:
    """Return the names of parameters that stand in a model more than once."""
    by_id: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        by_id.setdefault(id(parameter), []).append(name)
    return {name for names in by_id.values() if len(names) > 1 for name in names}


def _is_embedding(model: Any, modules: Mapping[str, Any], name: str) -> bool:
    owner = modules[name.rpartition(".")[0]]
    return "Embedding" in type(owner).__name__ or owner is model.get_output_embeddings()


def _top(name: str) -> str:
    """Return the part of a model outside of its blocks that a parameter belongs to."""
    words = [word for word in name.split(".") if word != "model"]
    return ".".join(words[:2])


def pattern(name: str) -> str:
    """Return a name with N for each number in it, so that all layers have one."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "N", name)


def said(error: Exception) -> str:
    """Return an error's message in one line, without what depends on the machine."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 400 else f"{text[:400]}…"
