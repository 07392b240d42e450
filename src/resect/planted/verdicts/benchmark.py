"""The whole benchmark: every scenario of the studies, in blocks of runs, a table and its page."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from resect import files
from resect.errors import InputError
from resect.planted.verdicts.count import Count, Weigh, count_verdicts
from resect.planted.verdicts.order import Order, order_of
from resect.planted.verdicts.scenario import Scenario
from resect.planted.verdicts.scenarios import all_scenarios, scenarios_of
from resect.planted.verdicts.table import Row, Total, rows_of, totals_of
from resect.planted.verdicts.text import filled, markdown
from resect.records import StudyResult
from resect.studies import Measurements, Study
from resect.studies.design import Section

# Runs of a scenario that one process does at a time.
BLOCK = 25
QUICK = 10
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Request:
    """What `resect bench verdicts` is asked for.

    Attributes:
        studies: Names of studies; empty for all.
        draws: Runs of each scenario.
        quick: Ten runs of each scenario with plain answers, and no look at the order.
        jobs: Processes; 0 for one a core, at most 4.
        boundary: Runs of each claim at its boundary, dealt evenly over the worlds that put it
            there, that are weighed without the look at each model alone. That look costs most of
            the time and can only make a verdict weaker, so that these say how often a claim is
            supported at most. With plain answers alone.
    """

    studies: tuple[str, ...] = ()
    draws: int = 200
    quick: bool = False
    jobs: int = 0
    boundary: int = 0


class Outcome(NamedTuple):
    """What was counted: a row a scenario and claim, totals by claim and truth, and the order."""

    rows: list[Row]
    totals: list[Total]
    orders: list[Order]


class _Block(NamedTuple):
    """Some runs of a scenario, which is named so that it need not cross processes."""

    study: str
    scenario: int
    start: int
    stop: int
    pooled: bool = False


def verdicts(
    request: Request,
    output: Path,
    weigh: Weigh,
    on_progress: Progress | None = None,
    *,
    page: Path | None = None,
) -> Outcome:
    """Simulate runs in which the truth is known, and count what is said of them.

    Args:
        request: Which studies, and how many runs.
        output: New folder; gets `results.json` and `verdicts.md`. Until all is done, finished
            blocks lie in `OUTPUT.parts`, so that the same call goes on where it was stopped.
        weigh: What a run does with a study's measurements; a function of a module.
        on_progress: Called with blocks done and blocks in all.
        page: A page of the docs whose marked place is to hold the table; None for none.

    Raises:
        InputError: An unknown study, a number out of range, a full output folder, a page of the
            docs without a marked place.
    """
    files.refuse_full_folder(output)
    if request.draws < 1 or request.jobs < 0 or request.boundary < 0:
        raise InputError(
            "draws and jobs must be positive",
            got=f"{request.draws}, {request.boundary} and {request.jobs}",
        )
    document = "" if page is None else _with_place(page)
    blocks = plan(request)
    parts = output.with_name(f"{output.name}.parts")
    jobs = request.jobs or min(4, os.cpu_count() or 1)
    stamp = files.hash_value(files.provenance())
    studies = [] if request.quick else list(dict.fromkeys(block.study for block in blocks))
    total = len(blocks) + len(studies)
    report = on_progress or (lambda _done, _total: None)
    once = partial(_run_once, parts=parts, weigh=weigh, stamp=stamp)
    counts = _run(blocks, jobs, once, lambda done: report(done, total))
    orders = []
    for number, study in enumerate(studies):
        orders.append(order_of(scenarios_of(study)[0], weigh))
        report(len(blocks) + number + 1, total)
    rows = _rows(blocks, counts)
    outcome = Outcome(rows, totals_of(rows), orders)
    values = {
        "rows": [row.plain() for row in outcome.rows],
        "totals": [summary.plain() for summary in outcome.totals],
        "orders": [asdict(order) for order in outcome.orders],
    }
    table = markdown(values, _made(request))
    with files.atomic_folder(output) as folder:
        provenance = files.provenance() | {"request": asdict(request)}
        files.write_json(folder / "results.json", values | {"provenance": provenance})
        files.write_text(folder / "verdicts.md", table)
    if page is not None:
        files.write_text(page, filled(document, table, str(page)))
    files.remove_folder(parts)
    return outcome


def _rows(blocks: Sequence[_Block], counts: Sequence[list[Count]]) -> list[Row]:
    """Return the rows of all scenarios from the counts of their blocks."""
    rows: list[Row] = []
    for study, number in dict.fromkeys((block.study, block.scenario) for block in blocks):
        same = [
            count
            for block, counted in zip(blocks, counts, strict=True)
            if (block.study, block.scenario) == (study, number)
            for count in counted
        ]
        rows += rows_of(scenarios_of(study)[number], same)
    return rows


def _with_place(page: Path) -> str:
    """Return a page that has a place for the table.

    Raises:
        InputError: It cannot be read, or has no such place.
    """
    try:
        document = page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the page {page}", got=str(error)) from error
    filled(document, "", str(page))
    return document


def _made(request: Request) -> str:
    studies = " --studies " + ",".join(request.studies) if request.studies else ""
    amount = "--quick" if request.quick else f"--draws {request.draws}"
    amount += f" --boundary {request.boundary}" if request.boundary else ""
    return f"Written by `resect bench verdicts {amount}{studies} -o DIR`."


def plan(request: Request) -> list[_Block]:
    """Return the blocks of runs of all scenarios that are asked for.

    Raises:
        InputError: An unknown study.
    """
    draws = min(request.draws, QUICK) if request.quick else request.draws
    blocks = []
    numbers: Counter[str] = Counter()
    for scenario in all_scenarios(request.studies):
        number = numbers[scenario.study]
        numbers[scenario.study] += 1
        if not request.quick or scenario.size.words == 1:
            blocks += _blocks(scenario.study, number, draws)
        if _edges(scenario):
            runs = _at_each_edge(scenario.study, request.boundary)
            blocks += _blocks(scenario.study, number, runs, pooled=True)
    return blocks


def _blocks(study: str, scenario: int, runs: int, *, pooled: bool = False) -> list[_Block]:
    return [
        _Block(study, scenario, start, min(start + BLOCK, runs), pooled)
        for start in range(0, runs, BLOCK)
    ]


def _edges(scenario: Scenario) -> list[int]:
    """Return the positions of the claims that a world puts at their boundary, plain answers."""
    return [
        stated
        for stated, truth in enumerate(scenario.expected)
        # What is true of the drawn models themselves is at no boundary.
        if truth == "boundary"
        and scenario.size.words == 1
        and not (stated == 0 and scenario.realised)
    ]


def _at_each_edge(study: str, runs: int) -> int:
    """Return how many runs each world with a boundary gets, so that each claim has `runs`."""
    worlds = Counter(stated for scenario in scenarios_of(study) for stated in _edges(scenario))
    return math.ceil(runs / min(worlds.values()))


def _run(
    blocks: Sequence[_Block],
    jobs: int,
    run_once: Callable[[_Block], list[Count]],
    on_done: Callable[[int], None],
) -> list[list[Count]]:
    on_done(0)
    if jobs == 1:
        results = []
        for done, block in enumerate(blocks):
            results.append(run_once(block))
            on_done(done + 1)
        return results
    # Fork would copy locked thread pools of torch.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures: list[Future[list[Count]]] = [pool.submit(run_once, block) for block in blocks]
        try:
            for done, future in enumerate(as_completed(futures)):
                future.result()
                on_done(done + 1)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        return [future.result() for future in futures]


def _run_once(block: _Block, parts: Path, weigh: Weigh, stamp: str) -> list[Count]:
    """Count the verdicts of a block, or read what this software gave before it was stopped."""
    name = files.hash_value([*block, stamp])
    path = parts / f"{name}.json"
    if path.exists():
        return [Count(**count) for count in files.read_json(path)]
    scenario = scenarios_of(block.study)[block.scenario]
    draws = range(block.start, block.stop)
    if block.pooled:
        counts = [
            replace(count, statement="pooled")
            for count in count_verdicts(scenario, draws, _together)
            if count.truth == "boundary"
        ]
    else:
        counts = count_verdicts(scenario, draws, weigh)
    files.write_json(path, [asdict(count) for count in counts])
    return counts


def _together(measured: Measurements, study: Study[Any], section: Section) -> StudyResult:
    """Weigh all models together, and none alone."""
    return study.summarise(measured, section)
