"""How a plan is shown before a run: its cells, memory and time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resect.cli.show import note, table

if TYPE_CHECKING:
    from resect.runs.config import RunConfig
    from resect.runs.forecast import Need
    from resect.studies.cells import Cell


def show_plan(
    config: RunConfig, *, memory: float = 0.0, tflops: float = 0.0, jobs: int = 1
) -> None:
    """Print the cells of a run and what they need.

    Args:
        config: The run.
        memory: GiB of the device to plan for; 0 for a large accelerator.
        tflops: 10¹² operations a second; 0 for what a large accelerator is assumed to do.
        jobs: Processes of this machine that share the cells.
    """
    from dataclasses import replace

    from resect.errors import ResectError
    from resect.runs.forecast import forecast
    from resect.runs.run import plan_run
    from resect.runs.searching import is_searched, most_questions
    from resect.runs.speed import Assumed

    cells = plan_run(config)
    table(f"{len(cells)} cells", [_cell_row(cell) for cell in cells])
    if not (memory or tflops):
        _say_here(config, jobs)
    assumed = replace(Assumed(), memory=memory) if memory else Assumed()
    if is_searched(config):
        limit = config.evaluation.limit
        counted = "" if limit else f", with {assumed.prompts} prompts of each probe"
        questions = most_questions(config, cells, lambda _probe: limit or assumed.prompts)
        note(
            f"search {config.evaluation.search}: of the questions of these cells at most "
            f"{questions} are asked{counted}; time below is that of so many"
        )
    if tflops:
        assumed = replace(assumed, rate=tflops * 1e12)
    try:
        needs = forecast(config, cells, assumed)
    except ResectError as error:
        note(f"no estimate of memory and time: {error.what} ({error.got})")
        return
    _show_needs(needs)
    for need in needs:
        note(f"{need.role}: {need.scoring.summary()}")
    note(
        f"all: {sum(need.seconds for need in needs) / 3600:.3g} h on one device of "
        f"{assumed.memory:g} GiB, assumed, not measured: {assumed.rate / 1e12:g} TFLOP/s, weights "
        f"read at {assumed.bandwidth / 1e12:g} TB/s while replying, {assumed.length} tokens an "
        f"example, {assumed.examples} examples and {assumed.prompts} prompts where no limit is set"
    )


def _show_needs(needs: list[Need]) -> None:
    """Print what the cells of each role need."""
    gib = 2**30
    table(
        "estimate",
        [
            {
                "model": need.role,
                "parameters": f"{need.parameters / 1e9:.3g} B",
                "cells": need.cells,
                "scored sets": need.scorings,
                "scoring GiB": need.scoring.device / gib,
                "most GiB": need.memory / gib,
                "fits": need.fits,
                "scoring min": need.scoring_seconds / 60,
                "tuning min": need.tuning_seconds / 60,
                "asking min, at most": need.asking_seconds / 60,
            }
            for need in needs
        ],
    )


def _say_here(config: RunConfig, jobs: int) -> None:
    """Say how long a run takes on this machine, if its sets and models are here."""
    from resect.errors import ResectError
    from resect.runs.expected import expected_locally

    try:
        line = expected_locally(config, jobs)
    except ResectError as error:
        line = f"no estimate of the time on this machine: {error.what} ({error.got})"
    if line:
        note(line)


def _cell_row(cell: Cell) -> dict[str, object]:
    cut = cell.cut
    varied = []
    if cut is not None:
        values = {name: getattr(cut, name) for name in ("p", "scope", "examples", "draw")}
        varied = [f"{name} {value}" for name, value in values.items() if value]
        if cut.rounds > 1:
            varied.append(f"{cut.rounds} rounds")
    return {
        "model": cell.role,
        "seed": str(cell.seed),
        "cut": "intact" if cut is None else cut.kind,
        "behaviour": "" if cut is None else " ".join(filter(None, (cut.target, cut.category))),
        "q": 0.0 if cut is None else cut.q,
        "with": ", ".join(varied),
        "then": _after(cell),
        "probes": " ".join(cell.probes),
    }


def _after(cell: Cell) -> str:
    """Return what is done to a variant after its cut: tuning, an attack, a frame."""
    tuning = cell.tuning
    steps = [cell.attack] if cell.attack else []
    if tuning is not None:
        suffix = ", held" if tuning.hold else ""
        steps.append(f"{tuning.steps} steps on {tuning.data}{suffix}")
    steps += ["asked in the frame"] if cell.frame else []
    return "; ".join(steps)
