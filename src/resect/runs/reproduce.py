"""Do a run again and say of every fact whether it is the same: what `resect reproduce` does.

A run folder says with which software, on which data and on which models it was made. Each of these
is checked, the run is made again from its `config.yaml` into a new folder, and masks, replies,
verdicts and claims are compared one by one. Every comparison gets one of four grades:

- identical: the same bits, or the same text
- within rounding: numbers that differ by no more than `ROUNDING` of their size
- differs
- cannot check: one side is missing or says nothing

Differences of the environment explain differences of results and are none themselves; the word for
the whole is about inputs and results.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

from torch import Tensor

from resect import files
from resect.data.load import file_of
from resect.files.folders import no_run
from resect.files.origin import provenance
from resect.files.reading import read_json, refuse_links_out
from resect.files.tables import read_parquet
from resect.organism import Recipe, organism_root
from resect.runs.config import RunConfig, load_config
from resect.runs.run import Watch, carry_out, chosen_studies, unwatched
from resect.runs.workers import OnProgress
from resect.studies.cells import judged_records
from resect.weights.mask import Mask

Grade = Literal["identical", "within rounding", "differs", "cannot check"]
Kind = Literal["environment", "data", "model", "mask", "records", "claim"]

# fp32 sums in another order differ by about 1e-6 of their size; losses are means of many.
ROUNDING = 1e-4
# From the best to the worst, for the word on several comparisons.
GRADES: tuple[Grade, ...] = ("identical", "within rounding", "cannot check", "differs")
_SOFTWARE = ("resect_version", "git_commit", "git_dirty", "python")


@dataclass(frozen=True)
class Compared:
    """One fact of a run beside the same fact now.

    Attributes:
        kind: What sort of fact.
        name: Which.
        grade: How they compare.
        before: What the run says.
        now: What was found.
    """

    kind: Kind
    name: str
    grade: Grade
    before: str = ""
    now: str = ""


@dataclass(frozen=True)
class Reproduction:
    """All comparisons of a run with its repetition.

    Attributes:
        rows: The comparisons.
        reran: Whether the run was made again.
    """

    rows: tuple[Compared, ...]
    reran: bool

    @property
    def grade(self) -> Grade:
        """The worst grade of inputs and results; the environment's are reasons and not results.

        Data that are no local file cannot be hashed; the records of a repetition hold their rows.
        """
        grades = [
            row.grade
            for row in self.rows
            if row.kind != "environment"
            and not (self.reran and row.kind == "data" and row.grade == "cannot check")
        ]
        return max(grades, key=GRADES.index, default="cannot check")


def check_inputs(run: Path) -> list[Compared]:
    """Compare software and data with what a run was made with.

    Raises:
        InputError: The folder holds no finished run.
    """
    refuse_links_out(run)
    if not (run / "manifest.json").is_file():
        raise no_run(run)
    now = provenance()
    with files.expecting(run / "manifest.json", "manifest"):
        then = dict(read_json(run / "manifest.json"))
        versions, data = (dict(then.get(name, {})) for name in ("versions", "data"))
        installed = files.package_versions(versions)
    rows = [_same("environment", key, then.get(key), now.get(key)) for key in _SOFTWARE]
    rows += [
        _same("environment", key, versions[key], installed.get(key)) for key in sorted(versions)
    ]
    for spec, digest in data.items():
        path = file_of(spec)
        content = None if path is None else files.hash_file(path)
        rows.append(_same("data", spec, digest, content))
    config = load_config(run / "config.yaml")
    spoken = set(data)
    for name, spec in config.data.items():
        if not {spec.replace("{seed}", str(seed)) for seed in config.seeds} <= spoken:
            rows.append(Compared("data", f"{name}: {spec}", "cannot check", "no file", ""))
    return rows


def reproduce(
    run: Path,
    output: Path,
    *,
    jobs: int = 1,
    on_progress: OnProgress | None = None,
) -> Reproduction:
    """Check a run's inputs, make it again and compare everything.

    Nothing is made again if a data file is missing or another one: that would be another run.

    Args:
        run: Folder of a finished run; it is not written to.
        output: New folder for the repetition and `reproduction.json`; an unfinished repetition of
            the same run is gone on with.
        jobs: Worker processes.
        on_progress: Called with cells done and cells in all.

    Raises:
        InputError: There is no finished run, or the folder for the repetition is in use.
    """
    rows = check_inputs(run)
    data = {row.name for row in rows if row.kind == "data" and row.before != "no file"}
    stale = [row for row in rows if row.name in data and row.grade != "identical"]
    if stale:
        return Reproduction(tuple(rows), reran=False)
    config = load_config(run / "config.yaml")
    _organisms(config, jobs)
    watch: Watch = unwatched if on_progress is None else lambda: contextlib.nullcontext(on_progress)
    carry_out(config, output, resume=True, jobs=jobs, watch=watch, report=False)
    rows += compare_runs(run, output)
    reproduction = Reproduction(tuple(rows), reran=True)
    files.write_json(
        output / "reproduction.json", {"of": str(run), "grade": reproduction.grade, "rows": rows}
    )
    return reproduction


def compare_runs(run: Path, again: Path) -> list[Compared]:
    """Compare models, masks, records and claims of two run folders of one configuration."""
    rows: list[Compared] = []
    for name in _names(run, again, "models/*.json"):
        models = [_json(folder / "models" / name) for folder in (run, again)]
        for key in ("fingerprint", "tokenizer"):
            values = [None if model is None else model.get(key) for model in models]
            rows.append(_same("model", f"{Path(name).stem} {key}", *values))
    rows += [
        _masks(name, run / "masks" / name, again / "masks" / name)
        for name in _names(run, again, "masks/*.mask.safetensors")
    ]
    records = {path.name for folder in (run, again) for path in judged_records(folder)}
    rows += [
        _records(name, run / "records" / name, again / "records" / name) for name in sorted(records)
    ]
    for name in chosen_studies(load_config(run / "config.yaml")):
        rows += _claims(name, *(_claims_of(name, folder) for folder in (run, again)))
    return rows


def _organisms(config: RunConfig, jobs: int) -> None:
    """Train the stages of the embedded organism that the run's models are, if they are not there.

    They are built with this version's recipe; a run of another recipe has another folder.
    """
    root = str(organism_root(Recipe()))
    if not any(model_place.startswith(root) for model_place in config.models.values()):
        return
    from resect.runs.demo import build_organisms

    build_organisms(config, jobs=jobs)


def _names(run: Path, again: Path, pattern: str) -> list[str]:
    return sorted({path.name for folder in (run, again) for path in folder.glob(pattern)})


def _json(path: Path) -> dict[str, object] | None:
    """Return what a JSON file says; None without one."""
    return dict(read_json(path)) if path.is_file() else None


def _same(kind: Kind, name: str, before: object, now: object) -> Compared:
    if before is None or now is None:
        return Compared(kind, name, "cannot check", _text(before), _text(now))
    same = before == now or (kind == "model" and files.same_print(before, now))
    return Compared(kind, name, "identical" if same else "differs", _text(before), _text(now))


def _text(value: object) -> str:
    return "–" if value is None else str(value)


def _masks(name: str, before: Path, now: Path) -> Compared:
    if not (before.is_file() and now.is_file()):
        return Compared("mask", name, "cannot check", str(before.is_file()), str(now.is_file()))
    old, new = Mask.load(before), Mask.load(now)
    if old.hash == new.hash:
        return Compared("mask", name, "identical", old.hash, new.hash)
    shared = sum(
        _shared(tensor.index, new.tensors[key].index)
        for key, tensor in old.tensors.items()
        if key in new.tensors
    )
    words = f"{new.count} weights, {shared} of them shared"
    return Compared("mask", name, "differs", f"{old.count} weights", words)


def _shared(old: Tensor, new: Tensor) -> int:
    """Return how many places two lists [*] share."""
    return len(set(old.tolist()) & set(new.tolist()))


def _records(name: str, before: Path, now: Path) -> Compared:
    """Compare the rows of a cell: their order, every text and every number."""
    if not (before.is_file() and now.is_file()):
        return Compared("records", name, "cannot check", str(before.is_file()), str(now.is_file()))
    old, new = read_parquet(before), read_parquet(now)
    if len(old) != len(new):
        return Compared("records", name, "differs", f"{len(old)} rows", f"{len(new)} rows")
    grades = [compare_values(old_row, new_row) for old_row, new_row in zip(old, new, strict=True)]
    worst = _worst(grades)
    count = sum(grade == worst for grade in grades)
    variant = f"{old[0]['role']}, {old[0]['cut_kind']} {old[0]['q']:g}" if old else ""
    return Compared("records", name, worst, variant, f"{count} of {len(grades)} rows {worst}")


class _ClaimRow(TypedDict):
    """What is read of a claim of `results.json`; the rest is compared as it is."""

    study: str
    claim: str
    verdict: str
    effect: Mapping[str, float | None]


def _claims_of(study: str, run: Path) -> dict[str, _ClaimRow]:
    """Return the claims of a study by their words; none without results."""
    path = run / "results.json"
    rows: list[_ClaimRow] = read_json(path)["claims"] if path.is_file() else []
    return {row["claim"]: row for row in rows if row["study"] == study}


def _claims(
    study: str, old: Mapping[str, _ClaimRow], new: Mapping[str, _ClaimRow]
) -> Iterable[Compared]:
    for claim in dict.fromkeys([*old, *new]):
        name = f"{study}: {claim}"
        if claim not in old or claim not in new:
            yield Compared("claim", name, "cannot check", str(claim in old), str(claim in new))
            continue
        yield Compared(
            "claim", name, compare_values(old[claim], new[claim]),
            _claim_text(old[claim]), _claim_text(new[claim]),
        )  # fmt: skip


def _claim_text(claim: _ClaimRow) -> str:
    value = claim["effect"]["value"]
    return claim["verdict"] + ("" if value is None else f", {value:.6g}")


def compare_values(before: object, now: object, rounding: float = ROUNDING) -> Grade:
    """Compare two plain values, mappings and lists by their parts.

    Args:
        before: One value.
        now: The other.
        rounding: Largest difference of two floats, over the larger of their sizes and one.

    Returns:
        The worst grade of the parts.
    """
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        if before.keys() != now.keys():
            return "differs"
        parts = [compare_values(before[key], now[key], rounding) for key in before]
        return _worst(parts)
    if isinstance(before, list) and isinstance(now, list):
        if len(before) != len(now):
            return "differs"
        parts = [compare_values(a, b, rounding) for a, b in zip(before, now, strict=True)]
        return _worst(parts)
    if before == now or (_is_nan(before) and _is_nan(now)):
        return "identical"
    if isinstance(before, float) and isinstance(now, float):
        size = max(abs(before), abs(now), 1.0)
        return "within rounding" if abs(before - now) <= rounding * size else "differs"
    return "differs"


def _worst(grades: Iterable[Grade]) -> Grade:
    return max(grades, key=GRADES.index, default="identical")


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)
