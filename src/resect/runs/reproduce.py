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

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from resect import files
from resect.errors import InputError
from resect.files.locking import locked
from resect.files.origin import provenance
from resect.files.reading import read_json, refuse_links_out
from resect.files.tables import read_parquet
from resect.organism import Recipe, organism_root
from resect.runs.config import RunConfig, load_config
from resect.runs.run import chosen_studies, measure_all, open_run, summarise_run
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
        found = [
            row.grade
            for row in self.rows
            if row.kind != "environment"
            and not (self.reran and row.kind == "data" and row.grade == "cannot check")
        ]
        return max(found, key=GRADES.index, default="cannot check")


def check_inputs(run: Path) -> list[Compared]:
    """Compare software and data with what a run was made with.

    Raises:
        InputError: The folder holds no finished run.
    """
    refuse_links_out(run)
    if not (run / "manifest.json").is_file():
        raise InputError(
            f"{run} holds no finished run",
            allowed="a folder that `resect run`, `study run`, `sweep` or `demo` wrote",
            fix="finish it first: resect study run DIR/config.yaml -o DIR --resume",
        )
    now = provenance()
    with files.expecting(run / "manifest.json", "manifest"):
        then = dict(read_json(run / "manifest.json"))
        versions, data = (dict(then.get(name, {})) for name in ("versions", "data"))
        known = files.package_versions(versions)
    rows = [_same("environment", key, then.get(key), now.get(key)) for key in _SOFTWARE]
    rows += [_same("environment", key, versions[key], known.get(key)) for key in sorted(versions)]
    for place, digest in data.items():
        found = files.hash_file(place) if Path(place).is_file() else None
        rows.append(_same("data", place, digest, found))
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
    on_progress: Callable[[int, int], None] | None = None,
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
    open_run(config, output, resume=True)
    with locked(output):
        measure_all(config, output, jobs=jobs, on_progress=on_progress)
        summarise_run(config, output)
    rows += compare_runs(run, output)
    found = Reproduction(tuple(rows), reran=True)
    files.write_json(
        output / "reproduction.json", {"of": str(run), "grade": found.grade, "rows": rows}
    )
    return found


def compare_runs(run: Path, again: Path) -> list[Compared]:
    """Compare models, masks, records and claims of two run folders of one configuration."""
    rows: list[Compared] = []
    for name in _names(run, again, "models/*.json"):
        facts = [_json(folder / "models" / name) for folder in (run, again)]
        for key in ("fingerprint", "tokenizer"):
            values = [None if one is None else one.get(key) for one in facts]
            rows.append(_same("model", f"{Path(name).stem} {key}", *values))
    for folder, pattern, compare in (
        ("masks", "*.mask.safetensors", _masks),
        ("records", "*.parquet", _records),
    ):
        rows += [
            compare(name, run / folder / name, again / folder / name)
            for name in _names(run, again, f"{folder}/{pattern}")
        ]
    for name in chosen_studies(load_config(run / "config.yaml")):
        rows += _claims(name, _json(run / "results.json"), _json(again / "results.json"))
    return rows


def _organisms(config: RunConfig, jobs: int) -> None:
    """Train the stages of the embedded organism that the run's models are, if they are not there.

    They are built with this version's recipe; a run of another recipe has another folder.
    """
    root = str(organism_root(Recipe()))
    if not any(place.startswith(root) for place in config.models.values()):
        return
    from resect.runs.demo import build_organisms

    build_organisms(config.seeds, quick=config.quick, jobs=jobs)


def _names(run: Path, again: Path, pattern: str) -> list[str]:
    return sorted({path.name for folder in (run, again) for path in folder.glob(pattern)})


def _json(path: Path) -> Any:
    return read_json(path) if path.is_file() else None


def _same(kind: Kind, name: str, before: Any, now: Any) -> Compared:
    if before is None or now is None:
        return Compared(kind, name, "cannot check", _text(before), _text(now))
    grade: Grade = "identical" if before == now else "differs"
    return Compared(kind, name, grade, _text(before), _text(now))


def _text(value: Any) -> str:
    return "–" if value is None else str(value)


def _masks(name: str, before: Path, now: Path) -> Compared:
    if not (before.is_file() and now.is_file()):
        return Compared("mask", name, "cannot check", str(before.is_file()), str(now.is_file()))
    first, second = Mask.load(before), Mask.load(now)
    if first.hash == second.hash:
        return Compared("mask", name, "identical", first.hash, second.hash)
    shared = sum(
        int(_isin(tensor.index, second.tensors[key].index))
        for key, tensor in first.tensors.items()
        if key in second.tensors
    )
    words = f"{second.count} weights, {shared} of them shared"
    return Compared("mask", name, "differs", f"{first.count} weights", words)


def _isin(first: Any, second: Any) -> int:
    return len(set(first.tolist()) & set(second.tolist()))


def _records(name: str, before: Path, now: Path) -> Compared:
    """Compare the rows of a cell: their order, every text and every number."""
    if not (before.is_file() and now.is_file()):
        return Compared("records", name, "cannot check", str(before.is_file()), str(now.is_file()))
    first, second = read_parquet(before), read_parquet(now)
    if len(first) != len(second):
        return Compared("records", name, "differs", f"{len(first)} rows", f"{len(second)} rows")
    grades = [compare_values(one, other) for one, other in zip(first, second, strict=True)]
    worst = _worst(grades)
    count = sum(grade == worst for grade in grades)
    what = f"{first[0]['role']}, {first[0]['cut_kind']} {first[0]['q']:g}" if first else ""
    return Compared("records", name, worst, what, f"{count} of {len(grades)} rows {worst}")


def _claims(study: str, before: Any, now: Any) -> Iterable[Compared]:
    old, new = (
        {c["claim"]: c for c in (results or {"claims": []})["claims"] if c["study"] == study}
        for results in (before, now)
    )
    for claim in dict.fromkeys([*old, *new]):
        name = f"{study}: {claim}"
        if claim not in old or claim not in new:
            yield Compared("claim", name, "cannot check", str(claim in old), str(claim in new))
            continue
        yield Compared(
            "claim", name, compare_values(old[claim], new[claim]),
            _claim_text(old[claim]), _claim_text(new[claim]),
        )  # fmt: skip


def _claim_text(claim: Mapping[str, Any]) -> str:
    value = claim["effect"]["value"]
    return str(claim["verdict"]) + ("" if value is None else f", {value:.6g}")


def compare_values(before: Any, now: Any, rounding: float = ROUNDING) -> Grade:
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


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
