"""How few questions a searched grid asks, and what its verdicts are worth beside the whole grid's.

    python benchmarks/halving.py [--draws 4] [--boundary 200] [--lines FILE] [-o FILE] [--page PAGE]

Runs are drawn from the worlds of `resect bench verdicts`, in which the truth is known, with plain
answers. Each run is asked twice: the whole grid (`search: full`), and what the rule of
`docs/design/halving.md` asks of it (`resect.studies.halving`, as a run does). Both read the same
replies, so that what differs is what the rule leaves out. Counted are the questions that are asked,
how often each model's cut is the same, and the verdicts of both.

A run has two models of 250 prompts and 670 questions of utility each, as many in all as the table
of verdicts has of five, and its bounds rest on 399 draws, so that there are more runs in the same
time. Verdicts are those before each model is looked at alone, which can only make them weaker. Each
world has `--draws` runs, and those that put a claim at its boundary so many that each claim has
`--boundary` of them. Everything is named, so that the same command gives the same table. `--lines`
keeps what each run shows, so that a stopped command goes on. With `--page` the table goes to its
marked place in a page of the docs.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resect.files.writing import plain, write_json, write_text
from resect.planted.verdicts.count import positions, truth_of
from resect.planted.verdicts.ground import design_of, section_of, write_sets
from resect.planted.verdicts.quick import QuickResampler
from resect.planted.verdicts.scenario import TRUTHS, Scenario, Truth
from resect.planted.verdicts.scenarios import scenarios_of
from resect.planted.verdicts.simulate import Simulated, Size, planned_of
from resect.planted.verdicts.text import filled, share
from resect.stats import Resampler, rng, wilson
from resect.studies import STUDIES
from resect.studies.cells import Cell, Cut
from resect.studies.choice import choose
from resect.studies.halves import Half
from resect.studies.halving import HARM, Searched, answer

HALVES: tuple[Half, ...] = ("selection", "test")
BEGIN, END = "<!-- halving: begin -->", "<!-- halving: end -->"
DRAWS = 399
SIZE = Size(models=2, prompts=250, tasks=670)
# A world that is false of three models or more.
OF_THREE = "one model of three shows it"
SEARCHES = ("full", "halving")
# `resect sweep` and `resect run` by replies are a frontier. With compactness in its run specificity
# has the same grid, and one more control is asked.
SEARCHED = ("frontier", "compactness", "specificity")


class _Part(NamedTuple):
    """What was asked of a variant."""

    cell: Cell
    probe: str
    half: Half


class FewDraws(QuickResampler):
    """A resampler whose bounds are whole draws of fewer ones."""

    def __init__(self, label: str, *, together: bool = False):
        """Name the draws by `label`."""
        super().__init__(label, together=together)
        Resampler.__init__(self, label, DRAWS, together=together)


class Halved(Simulated):
    """A drawn run of which everything was asked, or some parts.

    Attributes:
        parts: What was asked; None for everything.
    """

    parts: set[_Part] | None = None

    def of_seed(self, seed: int) -> Halved:
        """Return what the same run has measured of one seed."""
        alone = copy.copy(self)
        alone.config = self.config.model_copy(update={"seeds": (seed,)})
        return alone

    def covers(self, cells: Iterable[Cell], probe: str, half: Half = "") -> bool:
        """Return whether all variants were asked a probe on a half of its prompts, or on both."""
        halves = (half,) if half else HALVES
        return self.parts is None or all(
            part_of(cell, probe, name) in self.parts
            for cell in cells
            if cell.cut is not None
            for name in halves
        )

    def resampler(self, probe: str) -> QuickResampler:
        """Return what resamples a probe's prompts."""
        if probe not in self._quick:
            self._quick[probe] = FewDraws(probe, together=super().resampler(probe).together)
        return self._quick[probe]

    def ask(self, cells: Iterable[Cell]) -> None:
        """Ask cells of one probe and one half."""
        assert self.parts is not None
        self.parts |= {part_of(cell, cell.probes[0], cell.half) for cell in cells}


def part_of(cell: Cell, probe: str, half: Half) -> _Part:
    return _Part(Cell(cell.role, cell.seed, cell.cut, ()), probe, half)


class Verdict(NamedTuple):
    """Whether a claim is supported by the whole grid, and by the search.

    Attributes:
        study: Name of its study.
        stated: Its position among the study's claims.
        truth: What is true of it.
        world: Name of the world.
        full: Whether it is supported by the whole grid.
        halving: Whether it is by the search.
    """

    study: str
    stated: int
    truth: Truth
    world: str
    full: bool
    halving: bool


class Outcome(NamedTuple):
    """What one run shows.

    Attributes:
        study: Its study.
        label: Name of its draws.
        draw: Its number.
        amounts: Questions that were asked and those of the grid: of harm, of utility, of both.
        cuts: How the chosen cuts lie to those of the whole grid.
        verdicts: The claims of its world.
    """

    study: str
    label: str
    draw: int
    amounts: dict[str, list[int]]
    cuts: dict[str, int]
    verdicts: list[Verdict]


@cache
def resamplers() -> dict[str, QuickResampler]:
    """Return what all runs share, by probe: the bootstrap's weights."""
    return {}


def outcome_of(scenario: Scenario, draw: int) -> Outcome:
    """Return what a run shows, asked in full and searched.

    Args:
        scenario: The world.
        draw: Number of the run.
    """
    study, section = STUDIES[scenario.study], section_of(scenario.study)
    with tempfile.TemporaryDirectory() as folder:
        write_sets(scenario.size, Path(folder))
        design = design_of(scenario.size, Path(folder))
        planned = planned_of(study.plan(design, section))
        measured = Halved(
            design,
            scenario.world,
            size=scenario.size,
            planned=planned,
            label=scenario.label,
            draw=draw,
        )
        measured.with_resamplers(resamplers())
        assert study.searched is not None
        choices = study.searched(design, section)
        full = study.summarise(measured, section).claims
        before = _chosen(measured, choices)
        measured.parts = set()
        for seed in design.seeds:
            answer(measured, choices, seed, measured.ask)
        halving = study.summarise(measured, section).claims
        after = _chosen(measured, choices)
    verdicts = [
        Verdict(
            scenario.study,
            stated,
            truth_of(scenario, stated, measured),
            scenario.name,
            claim.verdict == "supported",
            searched.verdict == "supported",
        )
        for claim, searched, stated in zip(full, halving, positions(study, full), strict=True)
    ]
    cuts = Counter(map(_lies, after, before))
    amounts = _amounts(measured, planned)
    return Outcome(scenario.study, scenario.label, draw, amounts, cuts, verdicts)


def _chosen(measured: Halved, choices: Iterable[Searched]) -> list[Cut | None]:
    """Return the chosen cut of each model, choice by choice."""
    return [
        cut
        for choice in choices
        for cut in choose(measured, choice.role, choice.cuts, choice.budget).cuts.values()
    ]


def _lies(cut: Cut | None, usual: Cut | None) -> str:
    """Return how a chosen cut lies to that of the whole grid."""
    if cut == usual:
        return "the same"
    if cut is None:
        return "none"
    if usual is None:
        return "one where the grid has none"
    if cut.q == usual.q:
        return "of the same q"
    return "smaller" if cut.q < usual.q else "larger"


def _amounts(measured: Halved, planned: Mapping[Cell, tuple[str, ...]]) -> dict[str, list[int]]:
    """Return how many questions were asked of a run, and how many the grid has."""
    assert measured.parts is not None
    sizes = _sizes(measured)
    asked: Counter[str] = Counter()
    grid: Counter[str] = Counter()
    for cell, probes in planned.items():
        for probe in probes:
            whole = sum(sizes[cell.seed, probe, half] for half in HALVES)
            grid[probe] += whole
            asked[probe] += whole if cell.cut is None else 0
    for part in measured.parts:
        asked[part.probe] += sizes[part.cell.seed, part.probe, part.half]
    amounts = {"harm": [asked[HARM], grid[HARM]], "both": [asked.total(), grid.total()]}
    return amounts | {"utility": [asked["utility"], grid["utility"]]}


def _sizes(measured: Halved) -> Counter[tuple[int, str, Half]]:
    """Return how many prompts a half has, by model and probe."""
    sizes: Counter[tuple[int, str, Half]] = Counter()
    for seed in measured.config.seeds:
        intact = Cell(measured.config.subject, seed, None, ())
        for probe in (HARM, "utility"):
            for row in measured.asked(intact, probe):
                sizes[seed, probe, row.half] += 1
    return sizes


def runs_of(study: str, draws: int, boundary: int) -> list[partial[Outcome]]:
    """Return the runs of the worlds of a study, world by world and then again.

    Args:
        study: Its name.
        draws: Runs of each world.
        boundary: Runs of each claim at its boundary, dealt evenly over the worlds with it.
    """
    # What is true of the drawn models themselves needs more of them.
    worlds = [
        replace(world, size=replace(SIZE, same_prompts=world.size.same_prompts))
        for world in scenarios_of(study)
        if world.size.words == 1 and world.realised is None and world.name != OF_THREE
    ]
    edges = Counter(
        stated
        for world in worlds
        for stated, truth in enumerate(world.expected)
        if truth == "boundary"
    )
    each = math.ceil(boundary / min(edges.values()))
    numbers = [max(draws, each * ("boundary" in world.expected)) for world in worlds]
    return [
        partial(outcome_of, world, draw)
        for draw in range(max(numbers))
        for world, number in zip(worlds, numbers, strict=True)
        if draw < number
    ]


def simulate(runs: Iterable[partial[Outcome]], lines: Path | None) -> list[Outcome]:
    """Return what runs show, from a file of lines as far as they are there, and write the others.

    Args:
        runs: The runs.
        lines: A file with one outcome a line; None keeps nothing.
    """
    known: dict[tuple[str, str, int], Outcome] = {}
    if lines is not None and lines.exists():
        for line in lines.read_text(encoding="utf-8").splitlines():
            *columns, verdicts = json.loads(line)
            outcome = Outcome._make([*columns, [Verdict(*verdict) for verdict in verdicts]])
            known[outcome[:3]] = outcome
    outcomes = []
    for once in runs:
        world, draw = once.args
        key = (world.study, world.label, draw)
        if key not in known:
            known[key] = once()
            if lines is not None:
                with lines.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(known[key]) + "\n")
        outcomes.append(known[key])
    return outcomes


def rows_of(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """Return a row a claim and truth, with the world that is furthest from it."""
    groups: dict[tuple[int, str, int], list[Verdict]] = {}
    for outcome in outcomes:
        for verdict in outcome.verdicts:
            key = (TRUTHS.index(verdict.truth), verdict.study, verdict.stated)
            groups.setdefault(key, []).append(verdict)
    return [_row(verdicts) for _, verdicts in sorted(groups.items())]


def _row(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    study, stated, truth = verdicts[0][:3]
    by_world: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        by_world.setdefault(verdict.world, []).append(verdict)
    runs = len(verdicts)
    row: dict[str, Any] = {
        "study": study,
        "claim": STUDIES[study].stated[stated].claim,
        "truth": truth,
        "worlds": len(by_world),
        "runs": runs,
    }
    for name in SEARCHES:
        count = sum(getattr(verdict, name) for verdict in verdicts)
        bounds = wilson(count, runs)
        row |= {name: count / runs, f"{name}_low": bounds.low, f"{name}_high": bounds.high}
    row["by_full_alone"] = sum(v.full and not v.halving for v in verdicts)
    row["by_halving_alone"] = sum(v.halving and not v.full for v in verdicts)
    shares = {
        world: sum(verdict.halving for verdict in inside) / len(inside)
        for world, inside in by_world.items()
    }
    pick: Callable[..., str] = min if truth == "true" else max
    row["worst"] = pick(shares, key=lambda world: shares[world])
    row["worst_share"] = shares[row["worst"]]
    return row


def amounts_of(study: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the shares of the questions that were asked, and of choices that are the same."""
    row: dict[str, Any] = {"study": study, "runs": len(outcomes)}
    for probe in ("both", "harm", "utility"):
        amounts = np.array([outcome.amounts[probe] for outcome in outcomes])
        shares = amounts[:, 0] / amounts[:, 1]
        draws = rng(f"halving/{study}/{probe}").choice(shares, (1999, len(shares))).mean(axis=1)
        low, high = np.quantile(draws, (0.025, 0.975))
        row[probe] = {
            "share": float(shares.mean()),
            "low": float(low),
            "high": float(high),
            "most": float(shares.max()),
        }
    cuts: Counter[str] = Counter()
    for outcome in outcomes:
        cuts.update(outcome.cuts)
    row["choices"] = cuts.total()
    row["cuts"] = {
        how: {"share": count / cuts.total(), **wilson(count, cuts.total())._asdict()}
        for how, count in cuts.most_common()
    }
    return row


def markdown(results: Mapping[str, Any], made: str) -> str:
    """Return the tables."""
    lines = [
        made,
        "",
        "| study | runs | questions asked, of the grid's | at most | of harm | of utility |",
        "|---|--:|---|--:|---|---|",
    ]
    for row in results["amounts"]:
        both, harm, utility = row["both"], row["harm"], row["utility"]
        lines.append(
            f"| {row['study']} | {row['runs']} | {_share(both)} | {100 * both['most']:.1f} % | "
            f"{_share(harm)} | {_share(utility)} |"
        )
    names = list(dict.fromkeys(how for row in results["amounts"] for how in row["cuts"]))
    lines += ["", f"| study | choices | {' | '.join(names)} |", f"|---|--:{'|---' * len(names)}|"]
    for row in results["amounts"]:
        cells = [_share(row["cuts"][how]) if how in row["cuts"] else "0" for how in names]
        lines.append(f"| {row['study']} | {row['choices']} | {' | '.join(cells)} |")
    lines += [
        "",
        "| study | claim | truth | worlds | runs | supported: full | supported: halving | "
        "by full alone | by halving alone | halving at worst |",
        "|---|---|---|--:|--:|---|---|--:|--:|---|",
    ]
    for row in results["verdicts"]:
        shares = [share(row[name], row[f"{name}_low"], row[f"{name}_high"]) for name in SEARCHES]
        lines.append(
            f"| {row['study']} | {row['claim']} | {row['truth']} | "
            f"{row['worlds']} | {row['runs']} | {' | '.join(shares)} | "
            f"{row['by_full_alone']} | {row['by_halving_alone']} | "
            f"{100 * row['worst_share']:.1f} % ({row['worst']}) |"
        )
    return "\n".join(lines) + "\n"


def _share(row: Mapping[str, float]) -> str:
    return share(row["share"], row["low"], row["high"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate, print the tables, and write them where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--boundary", type=int, default=200)
    parser.add_argument("--study", nargs="*", default=list(SEARCHED), choices=list(SEARCHED))
    parser.add_argument("--lines", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--page", type=Path)
    options = parser.parse_args(arguments)
    results: dict[str, Any] = {"amounts": [], "verdicts": []}
    for study in options.study:
        outcomes = simulate(runs_of(study, options.draws, options.boundary), options.lines)
        results["amounts"].append(amounts_of(study, outcomes))
        results["verdicts"] += rows_of(outcomes)
    words = ["python benchmarks/halving.py", f"--draws {options.draws}"]
    words.append(f"--boundary {options.boundary}")
    table = markdown(results, f"Written by `{' '.join(words)} --page PAGE`.")
    sys.stdout.write(table)
    if options.output is not None:
        write_json(options.output, plain(results))
    if options.page is not None:
        page = options.page.read_text(encoding="utf-8")
        write_text(options.page, filled(page, table, str(options.page), BEGIN, END))
    return 0


if __name__ == "__main__":
    sys.exit(main())
