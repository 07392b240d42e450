"""Cards: what was cut from which model, how it was chosen and measured, what it does not show.

A number stands in a card only if it was measured with the very mask: `measured` in the mask's
origin, which `resect run` writes, or a run folder among whose masks it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import yaml

from resect import files
from resect.errors import InputError
from resect.export.gate import Gate, refuse_another_run
from resect.files.reading import read_yaml
from resect.report.measured import UNKNOWN, measured_by, worded
from resect.report.results import read_results
from resect.report.words import bounds_of, cell
from resect.weights.mask import OF_RUN, Mask

# What a card takes over from the card of the model that was cut, since it still holds.
KEPT = (
    "license", "license_name", "license_link", "language", "pipeline_tag", "library_name",
    "extra_gated_prompt", "extra_gated_fields",
)  # fmt: skip
MARK = "resect"
# Whose scores a mask was selected by.
_SCORED_ON = ("target", "preserve", "contrast")
# What a mask says of its origin in several values each.
_DETAILED = (*_SCORED_ON, OF_RUN)


@dataclass(frozen=True)
class Card:
    """What a card needs to know beside the mask.

    Attributes:
        mask: What was cut.
        mask_name: Name of the mask's file, for the reader.
        alpha: Factor of the masked weights.
        original: The text of the model's own card; empty if it has none.
        original_name: Under which name that text is kept.
        run: Folder of the run in which the mask was measured.
        gate: What was required of the cut; None says that nothing was.
    """

    mask: Mask
    mask_name: str
    alpha: float = 0.0
    original: str = ""
    original_name: str = ""
    run: Path | None = None
    gate: Gate | None = None


@dataclass(frozen=True)
class _Origin:
    """One mask in the ancestry of a cut, for the template."""

    depth: int
    what: str
    facts: Mapping[str, object] = field(default_factory=dict)


def checkpoint_card(card: Card) -> str:
    """Return the README of a cut checkpoint folder, Markdown with metadata for the Hub.

    Raises:
        MismatchError: `run` did not measure this mask.
    """
    mask, gate = card.mask, card.gate or Gate()
    claims = _claims_of(mask, card.run)
    original = _metadata(card.original)
    metadata = {key: original[key] for key in KEPT if key in original} | {
        "base_model": _base_model(mask),
        "tags": sorted({*_texts(original.get("tags")), MARK, "pruned"}),
        MARK: {
            "mask": mask.hash,
            "removed": mask.count,
            "alpha": card.alpha,
            "original": card.original_name or None,
            **gate.facts(),
        },
    }
    return _render("checkpoint.md", metadata, mask, card=card, gate=gate, **claims)


def mask_card(
    mask: Mask, repository: str, file: str, *, run: Path | None = None, gate: Gate | None = None
) -> str:
    """Return the README of a repository that holds a mask alone.

    Args:
        mask: The mask.
        repository: `owner/name`.
        file: Name of the mask's file there.
        run: Folder of the run in which the mask was measured.
        gate: What was required of the cut; None says that nothing was.

    Raises:
        MismatchError: `run` did not measure this mask.
    """
    gate = gate or Gate()
    metadata = {
        "base_model": _base_model(mask),
        "library_name": MARK,
        "tags": [MARK, "mask"],
        MARK: {"mask": mask.hash, "removed": mask.count, **gate.facts()},
    }
    claims = _claims_of(mask, run)
    return _render("mask.md", metadata, mask, repository=repository, file=file, gate=gate, **claims)


def _claims_of(mask: Mask, run: Path | None) -> dict[str, object]:
    """Return what the template says of the claims of a run; None for `run` if there is none.

    Raises:
        MismatchError: `run` did not measure this mask.
    """
    if run is None:
        return {"run": None, "bounds": "", "scored": UNKNOWN.line}
    written = read_results(run)
    measured = measured_by(run, written.provenance)
    refuse_another_run(mask, run)
    results = worded(written, measured)
    bounds = bounds_of(claim.effect for claim in results.claims)
    return {"run": results, "bounds": bounds, "scored": measured.line}


def our_facts(text: str) -> Mapping[str, object] | None:
    """Return what `checkpoint_card` wrote into a README's metadata; None if it wrote nothing."""
    facts = _metadata(text).get(MARK)
    return facts if isinstance(facts, Mapping) else None


def _render(name: str, metadata: Mapping[str, object], mask: Mask, **values: object) -> str:
    # Not HTML, so nothing to escape; what comes from outside stands in code or in a table cell.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("resect.export", "templates"),
        autoescape=False,  # noqa: S701
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["cell"] = _cell
    stated = {key: value for key, value in metadata.items() if value not in (None, "", [])}
    return environment.get_template(name).render(
        metadata=yaml.safe_dump(stated, sort_keys=False, allow_unicode=True).strip(),
        mask=mask,
        base=mask.meta.get("model_id") or "the model that the mask was made from",
        where=_where(mask),
        origins=list(_origins(mask.meta)),
        measured=mask.meta.get("measured"),
        software=files.provenance(),
        **values,
    )


def _cell(value: object) -> str:
    """Return a value for a table cell of Markdown: one line, no bar, a truth value as in Python."""
    text = cell(str(value) if isinstance(value, bool) else value)
    return " ".join(text.replace("|", "\\|").split())


def _metadata(text: str) -> dict[str, object]:
    """Return the YAML between the first two lines of dashes; nothing if it is broken."""
    if not text.startswith("---"):
        return {}
    try:
        metadata = read_yaml(text.split("\n---", 1)[0].removeprefix("---"), "the card")
    except InputError:
        return {}
    return metadata if isinstance(metadata, dict) else {}


def _texts(value: object) -> Iterable[str]:
    return map(str, value) if isinstance(value, list) else ()


def _base_model(mask: Mask) -> str | None:
    """Return the Hub id of the model; a local folder means nothing to a reader elsewhere."""
    name = str(mask.meta.get("model_id") or "").partition("@")[0]
    return name if name.count("/") == 1 and not name.startswith((".", "/", "~")) else None


class _Removed(NamedTuple):
    """How many weights of one kind of module are removed."""

    module: str
    removed: int
    size: int


def _where(mask: Mask) -> list[_Removed]:
    """Return a row for each kind of module, the most affected first."""
    removed: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for name, tensor in mask.tensors.items():
        words = [word for word in name.split(".") if word != "weight" and not word.isdigit()]
        module = ".".join(words[-2:])
        removed[module] += tensor.index.numel()
        sizes[module] += tensor.size
    rows = [_Removed(module, removed[module], size) for module, size in sizes.items()]
    return sorted(rows, key=lambda row: -row.removed / max(row.size, 1))


def _told(value: object) -> object:
    """Return a detail; requirements as they are asked for."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={inner}" for name, inner in value.items())
    return value


def _origins(meta: Mapping[str, Any], depth: int = 0, name: str = "this mask") -> Iterable[_Origin]:
    """Return the origin of a mask and of all its parents, depth first."""
    facts = {
        key: value
        for key, value in meta.items()
        if key not in (*_DETAILED, "parents", "measured") and value not in (None, "")
    }
    for role in _DETAILED:
        details = meta.get(role)
        if isinstance(details, Mapping):
            facts |= {
                f"{role}: {key}": _told(value) for key, value in details.items() if value != ""
            }
    yield _Origin(depth, name, facts)
    for parent in meta.get("parents", ()):
        label = f"{Path(parent['name']).name} ({parent['hash']}, {parent['count']:,} weights)"
        yield from _origins(parent["meta"], depth + 1, label)
