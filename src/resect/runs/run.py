"""A run from its configuration to its report, in one process or several: `carry_out`.

Workers are separate processes that each take a shard of the cells. They share nothing but the run
folder, so the same shards can be given to any scheduler with `--shard i/n`.
"""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from resect.data.load import file_of
from resect.errors import InputError
from resect.evaluation.coherence import floor_for
from resect.evaluation.judges import find_judge, kind_of_judge
from resect.files.locking import locked
from resect.files.origin import hash_file, hash_value, provenance
from resect.files.reading import read_json, refuse_links_out
from resect.files.tables import read_parquet
from resect.files.writing import is_unfinished, plain, write_json, write_text
from resect.records import StudyResult
from resect.runs.config import RunConfig, dump_config, load_config
from resect.runs.joint import facts_of
from resect.runs.judged import judge_error, refuse_another_judge, write_judge
from resect.runs.searching import (
    facts_of_search,
    is_searched,
    refuse_shared_search,
    search_all,
    with_searches,
)
from resect.runs.sets import refuse_no_data, refuse_other_data, tasks_of
from resect.runs.subject import refuse_replaced
from resect.runs.workers import OnProgress, Shard, measure_cells, silent
from resect.studies import STUDIES
from resect.studies.cells import (
    Cell,
    asked_path,
    lacks_verdicts,
    mask_path,
    merge,
    needed_keep,
    record_path,
)
from resect.studies.measurements import INSTRUMENT_FILE
from resect.studies.models import over_models
from resect.studies.partial import measurements_of
from resect.weights.fit import all_forced

if TYPE_CHECKING:
    from resect.report.traced import TracedMask

# Shows progress while its block runs, as `resect.cli.show.progress` does.
Watch = Callable[[], contextlib.AbstractContextManager[OnProgress]]


def parse_shard(text: str) -> Shard:
    """Read `i/n` with 1 ≤ i ≤ n.

    Raises:
        InputError: The text is something else.
    """
    index, _, count = text.partition("/")
    if index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count):
        return Shard(int(index) - 1, int(count))
    parts = count if count.isdecimal() and int(count) else "n"
    unset = "" if index else "; outside of an array that variable is empty"
    raise InputError(
        "cannot read the shard",
        got=repr(text),
        allowed="i/n with 1 ≤ i ≤ n",
        fix=f"in a Slurm array from 0: --shard $((SLURM_ARRAY_TASK_ID + 1))/{parts}; "
        f"from 1: --shard $SLURM_ARRAY_TASK_ID/{parts}{unset}",
    )


def chosen_studies(config: RunConfig) -> list[str]:
    """Return the names of the studies that the configuration asks for.

    Raises:
        InputError: It asks for none.
    """
    names = [name for name in STUDIES if getattr(config.studies, name) is not None]
    if not names:
        raise InputError(
            "no study is configured", allowed=", ".join(STUDIES), fix="add one under `studies`"
        )
    return names


def plan_run(config: RunConfig) -> list[Cell]:
    """Return the merged cells of all studies of the run."""
    studies = [STUDIES[name] for name in chosen_studies(config)]
    return merge(cell for study in studies for cell in study.plan(config, config.section(study)))


def open_run(config: RunConfig, run: Path, *, resume: bool) -> None:
    """Create a run folder, or check that an existing one is of the same configuration.

    Raises:
        InputError: The folder holds something else, or a run and `resume` is off, or judge or
            floor of coherence cannot be used.
        MismatchError: A model or a data file is not the one that the run began with.
    """
    find_judge(config.evaluation.judge)
    floor_for(config.evaluation.judge, config.evaluation.coherence)
    refuse_links_out(run)
    path = run / "config.yaml"
    if path.exists():
        if load_config(path) != config:
            raise InputError(
                f"{run} holds a run of another configuration",
                fix="choose a new folder with -o, or remove the old one",
            )
        refuse_taken(run, resume=resume)
        refuse_another_judge(config, run)
        refuse_replaced(config, run)
        refuse_other_data(config, run)
        _set_unjudged_apart(config, run)
        return
    refuse_taken(run, resume=resume)
    write_text(path, dump_config(config))


def refuse_taken(run: Path, *, resume: bool) -> None:
    """Refuse a folder that holds something else, or a run unless that is to go on.

    Raises:
        InputError: It does.
    """
    if (run / "config.yaml").exists():
        if not resume:
            raise InputError(
                f"{run} holds a run already", fix="continue it with --resume, or choose a new -o"
            )
        return
    # What a killed process was writing does not make a folder full.
    if run.exists() and (run.is_file() or any(not is_unfinished(inner) for inner in run.iterdir())):
        raise InputError(
            "the output folder is not empty and holds no run",
            got=str(run),
            fix="choose a new folder with -o",
        )


def _set_unjudged_apart(config: RunConfig, run: Path) -> None:
    """Give records without verdicts the name that says so.

    Version 0.1.0 wrote them under their final name and wrote them again when they were judged.
    """
    for cell in plan_run(config):
        path = record_path(run, cell)
        if path.exists() and lacks_verdicts(read_parquet(path), cell):
            # Another shard may open the run at the same time.
            with contextlib.suppress(FileNotFoundError):
                path.replace(asked_path(run, cell))


@contextlib.contextmanager
def unwatched() -> Iterator[OnProgress]:
    """Show no progress."""
    yield silent


@dataclass(frozen=True)
class Steps:
    """What a command adds to a run. The steps are called in this order.

    Attributes:
        check: Called once the folder is opened and not yet locked.
        prepare: Called before anything is measured; the folder is locked from here on. Models and
            data may come of it; without it, data must be there before there is a folder.
        measure: Takes the place of `measure_all`; returns whether all cells are done.
        conclude: Called with the path of `results.json`, before the report is built.
    """

    check: Callable[[], None] = lambda: None
    prepare: Callable[[], None] | None = None
    measure: Callable[[OnProgress], bool] | None = None
    conclude: Callable[[Path], None] = lambda _results: None


def carry_out(
    config: RunConfig,
    run: Path,
    *,
    resume: bool,
    jobs: int = 1,
    started: float | None = None,
    watch: Watch = unwatched,
    steps: Steps | None = None,
    report: bool = True,
) -> Path | None:
    """Open a run folder, lock it, measure every cell, weigh the claims and write the report.

    Args:
        config: The run's configuration.
        run: Its folder.
        resume: Go on with a run of the same configuration that the folder holds.
        jobs: Worker processes.
        started: When the command began, by `time.perf_counter`; the report then says how many
            seconds it took.
        watch: Opened around the measuring, which tells it of progress.
        steps: What the command adds.
        report: Whether to build the report, `report.html` in the folder.

    Returns:
        The path of `results.json`; None if `steps.measure` has left cells for later.

    Raises:
        InputError: The folder is in use or holds something else, a launcher is to search a grid,
            or a step met a problem that the user can fix.
    """
    steps = steps or Steps()
    refuse_shared_search(config, "the launcher" if steps.measure else "")
    if steps.prepare is None and not (run / "config.yaml").exists():
        refuse_no_data(config)
    open_run(config, run, resume=resume)
    steps.check()
    with locked(run):
        if steps.prepare is not None:
            steps.prepare()
        with watch() as update:
            if steps.measure is None:
                measure_all(config, run, jobs=jobs, on_progress=update)
            elif not steps.measure(update):
                return None
        seconds = None if started is None else time.perf_counter() - started
        results = summarise_run(config, run, seconds=seconds)
        steps.conclude(results)
        if report:
            # Workers import this module too, and draw nothing.
            from resect.report import build_report

            build_report(run)
    return results


def measure_all(
    config: RunConfig, run: Path, *, jobs: int, on_progress: OnProgress | None = None
) -> None:
    """Measure every cell that is not done, with `jobs` worker processes.

    Raises:
        InputError: A worker met a problem that the user can fix; it is raised here again.
    """
    cells = plan_run(config)
    report = on_progress or silent
    if is_searched(config):
        search_all(config, run, cells, report, jobs=jobs)
        return
    measure_cells(config, run, cells, keep=needed_keep(config, cells), jobs=jobs, report=report)


def summarise_run(config: RunConfig, run: Path, *, seconds: float | None = None) -> Path:
    """Write what the records say: `results.json`, `manifest.json`, `cuts.json`.

    For a fitted judge `judge.json` too.

    Returns:
        The path of `results.json`.
    """
    measured = measurements_of(config, run, judge_error(config))
    results = [
        over_models(measured, study, config.section(study))
        for study in (STUDIES[name] for name in chosen_studies(config))
    ]
    from resect.report.traced import write_traces

    results = write_traces(run, with_searches(config, run, results), _traced(config, run))
    origin = _facts(config, run, seconds)
    write_json(run / "manifest.json", origin)
    path = run / "results.json"
    write_json(path, _results(config, results, origin))
    write_judge(config, run)
    return path


def _traced(config: RunConfig, run: Path) -> list[TracedMask]:
    """Return the masks that a run keeps, each once; a search makes those that it needs alone."""
    from resect.report.traced import TracedMask

    masks: dict[str, TracedMask] = {}
    for cell in plan_run(config):
        if cell.cut is not None and cell.cut.kind in ("target", "damage"):
            path = mask_path(run, cell.role, cell.seed, cell.cut)
            if is_searched(config) and not path.exists():
                continue
            name = path.name
            masks[name] = TracedMask(name, cell.role, cell.seed, cell.cut.described)
    return list(masks.values())


def _results(
    config: RunConfig, results: list[StudyResult], origin: Mapping[str, object]
) -> dict[str, object]:
    return {
        "name": config.name,
        "quick": config.quick,
        "claims": [plain(claim) for result in results for claim in result.claims],
        "studies": plain(results),
        "provenance": origin,
    }


def _facts(config: RunConfig, run: Path, seconds: float | None) -> dict[str, object]:
    specs = sorted({spec for spec in config.data.values() if "{seed}" not in spec})
    specs += sorted(
        spec.replace("{seed}", str(seed))
        for spec in config.data.values()
        if "{seed}" in spec
        for seed in config.seeds
    )
    models = [read_json(path) for path in sorted((run / "models").glob("*.json"))]
    forced = all_forced(*(model.get("forced", "") for model in models))
    return {
        **provenance(),
        "config": hash_value(config.model_dump(mode="json")),
        "models": {f"{model['role']}-{model['seed']}": model["fingerprint"] for model in models},
        "data": {spec: hash_file(path) for spec in specs if (path := file_of(spec)) is not None},
        **({"forced": forced} if forced else {}),
        **_scored_by(config),
        **_instrument(run),
        **tasks_of(run),
        **facts_of(run, config.evaluation.together),
        **facts_of_search(config, run, plan_run(config)),
        "seeds": list(config.seeds),
        "command": shlex.join(["resect", *sys.argv[1:]]),
        "rebuild": f"resect study run {shlex.quote(str(run / 'config.yaml'))} -o NEW_FOLDER",
        "finished": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "seconds": None if seconds is None else round(seconds, 1),
    }


def _scored_by(config: RunConfig) -> dict[str, str]:
    """Return who scored what the numbers are made of."""
    evaluation = config.evaluation
    if evaluation.measure == "likelihood":
        return {"measure": "likelihood"}
    decoding = {"decoding": evaluation.decoding} if evaluation.decoding == "continuous" else {}
    return {"judge": evaluation.judge, "judge_kind": kind_of_judge(evaluation.judge)} | decoding


def _instrument(run: Path) -> dict[str, object]:
    """Return what a first look said of the instrument, if there was one."""
    path = run / INSTRUMENT_FILE
    return {"instrument": read_json(path)["said"]} if path.exists() else {}
