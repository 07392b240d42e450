"""A map of all causal LMs of transformers: what of each can be cut, and what is left alone and why.

    python benchmarks/architectures.py                       every type; four minutes of one core
    python benchmarks/architectures.py --without-trials      shapes alone; what was tried stays
    python benchmarks/architectures.py llama mamba           these types; the others stay

It writes docs/architectures.json and the marked place in docs/architectures.md. What is said of
shapes is read from models without weights, at the widths of their defaults, with few layers
(model_types.py); what was tried was tried at small size (model_trials.py). A test builds every type
and holds the file to it.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import model_trials
import model_types

from resect.errors import ResectError
from resect.files.reading import read_json
from resect.files.writing import write_json, write_text
from resect.model import Coverage, find_prunable, quiet
from resect.model.blocks import Decoder
from resect.model.faults import refuse_encoder
from resect.planted.verdicts.text import filled

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- architectures: begin -->", "<!-- architectures: end -->"
WORKED = ("exact", "same", "held", "all")
Row = dict[str, Any]


def row(model_type: str) -> Row:
    """Return what is known of a type without its weights."""
    about: Row = {"class": model_types.model_types()[model_type]}
    try:
        model = model_types.empty(model_type)
    except Exception as error:  # noqa: BLE001 - a configuration may fail in any way; it is named
        return about | {"state": "not built", "reason": said(error)}
    about |= {"state": "covered", "reason": "", "layers": _layers(model)}
    about["decoder_only_if_said"] = model_types.reads_both_ways(model_type) and bool(
        getattr(model.config, "is_decoder", False)
    )
    try:
        refuse_encoder(model.config, f"a model of type {model_type}")
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
        "unknown": {pattern(weight.name): weight.reason for weight in coverage.unknown},
        "outside": sorted(outside),
        "on_disk": dict(sorted(names.items())),
        "experts": _experts(coverage),
        "tied": _tied(model),
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
    """Return the parameters that are another one under a second name, outside of blocks or in."""
    shown = {name for name, _ in model.named_parameters()}
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return sorted({pattern(name) for name in every - shown})


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


def tried(model_type: str) -> dict[str, str]:
    """Return what became of a type at small size, by step."""
    with tempfile.TemporaryDirectory() as folder:
        return model_trials.trial(model_type, Path(folder))


def table(values: Mapping[str, Any]) -> str:
    """Return the marked place as Markdown: counts, a row a type, and what has no room in a row."""
    rows: dict[str, Row] = values["types"]
    by_state: dict[str, dict[str, str]] = {"covered": {}, "refused": {}, "not built": {}}
    for name, about in rows.items():
        by_state[state(about)][name] = reason(about)
    counts = {word: len(chosen) for word, chosen in by_state.items()}
    lines = [
        f"{len(rows)} model types of transformers {values['transformers']}: {counts['covered']} "
        f"are covered, {counts['refused']} are refused for a reason, and {counts['not built']} "
        "cannot be built from their own configuration.",
        "",
        "| model type | covered | left alone in blocks | names on disk "
        "| experts in memory; on disk | layers | tied or shared | cut and restored | `--stream` "
        "| HoldMask | LoRA | matrices |",
        "|---|--:|---|---|---|---|---|:-:|:-:|:-:|:-:|---|",
    ]
    lines += [_line(name, row) for name, row in rows.items() if row["state"] != "not built"]
    lines += _list("Refused", by_state["refused"])
    lines += _list("Not built", by_state["not built"])
    lines += _list("Not streamed", _not_streamed(rows))
    lines += _list("Parts outside of the blocks", _outside(rows))
    return "\n".join(lines) + "\n"


def state(row: Row) -> str:
    """Return whether a type is covered, refused, perhaps only when it is run, or not built."""
    refused = row["state"] == "covered" and row.get("tried", {}).get("cut", "exact") not in WORKED
    if row["state"] == "refused" and row.get("tried", {}).get("cut") in WORKED:
        return "covered"
    return "refused" if refused else str(row["state"])


def reason(row: Row) -> str:
    """Return why a type is not covered; "" if it is."""
    return "" if state(row) == "covered" else row["reason"] or row.get("tried", {}).get("cut", "")


def _line(name: str, row: Row) -> str:
    steps = row.get("tried", {})
    cells = [
        f"`{name}`" + ("¹" if row["decoder_only_if_said"] else ""),
        f"{100 * row['share']:.2f} %" if _is_measured(row) else state(row),
        ", ".join(row.get("left_alone", {})),
        _names(row),
        row.get("experts", ""),
        ", ".join(row["layers"]).replace("_attention", ""),
        _ties(row),
        _sign(steps, ("cut", "folder")) + (" ²" if "saved" in steps else ""),
        _sign(steps, ("stream",)),
        _sign(steps, ("hold",)),
        _share(steps.get("lora", "")),
        ", ".join(row.get("units", [])),
    ]
    return f"| {' | '.join(cells)} |"


def _is_measured(row: Row) -> bool:
    return "share" in row and state(row) == "covered"


def _names(row: Row) -> str:
    if "on_disk" not in row:
        return ""
    return "other than in memory" if row["on_disk"] else "as in memory"


def _ties(row: Row) -> str:
    """Return what of a type is one parameter under several names."""
    shared = any("shared by several blocks" in reason for reason in row.get("unknown", {}).values())
    words = ["head"] if row.get("tied") and not shared else []
    return ", ".join(words + ["blocks"] * shared)


def _sign(steps: Mapping[str, str], names: Sequence[str]) -> str:
    return "✓" if all(steps.get(name) in WORKED for name in names) else "–"


def _share(said_of_lora: str) -> str:
    if said_of_lora.startswith("0."):
        return f"{100 * float(said_of_lora):.0f} %"
    return said_of_lora if said_of_lora in WORKED else "–"


def _not_streamed(rows: Mapping[str, Row]) -> dict[str, str]:
    """Return by type why it is scored in memory alone."""
    reasons = {}
    for name, row in rows.items():
        message = row.get("tried", {}).get("stream", "same")
        if message != "same":
            reasons[name] = message.partition(" got: ")[2].partition(" allowed: ")[0] or message
    return reasons


def _outside(rows: Mapping[str, Row]) -> dict[str, str]:
    """Return by type the parts with matrices that are neither blocks nor embeddings."""
    return {name: ", ".join(row["outside"]) for name, row in rows.items() if row.get("outside")}


def _list(heading: str, reasons: Mapping[str, str]) -> list[str]:
    """Return a section with a line for each reason and the types that have it."""
    if not reasons:
        return []
    types: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        types.setdefault(reason, []).append(f"`{name}`")
    return ["", f"## {heading}", ""] + [
        f"- {', '.join(names)}: {reason.replace('|', '/')}" for reason, names in types.items()
    ]


def mapped(chosen: Sequence[str], values: Mapping[str, Any], *, trials: bool) -> dict[str, Any]:
    """Return the map with these types looked at anew.

    Args:
        chosen: The types.
        values: The map so far.
        trials: Whether they are tried, too.
    """
    rows = {name: row for name, row in values.get("types", {}).items() if name not in chosen}
    for name in chosen:
        rows[name] = row(name)
        before = values.get("types", {}).get(name, {}).get("tried")
        if rows[name]["state"] == "not built":
            continue
        if trials:
            rows[name]["tried"] = tried(name)
        elif before:
            rows[name]["tried"] = before
        print(name, rows[name]["state"], rows[name].get("tried", ""))
    types = {name: rows[name] for name in model_types.model_types() if name in rows}
    return {"transformers": version("transformers"), "types": types}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", help="model types; none for all")
    parser.add_argument("--without-trials", action="store_true", help="look at shapes alone")
    options = parser.parse_args(arguments)
    path, page = DOCS / "architectures.json", DOCS / "architectures.md"
    before = read_json(path) if path.exists() else {}
    chosen = options.types or list(model_types.model_types())
    with warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")
        values = mapped(chosen, before, trials=not options.without_trials)
    text = filled(page.read_text(encoding="utf-8"), table(values), page.name, BEGIN, END)
    write_json(path, values)
    write_text(page, text)


if __name__ == "__main__":
    main()
