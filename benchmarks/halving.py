"""How few questions a searched grid asks, and what its verdicts are worth beside the whole grid's.

    python benchmarks/halving.py [--draws 20] [--boundary 400] [-o FILE] [--page PAGE]

Runs are drawn from the worlds of `resect bench verdicts`, in which the truth is known, with plain
answers. Each run is asked twice: the whole grid (`search: full`), and what the rule of
`docs/design/halving.md` asks of it (`resect.studies.halving`, as a run does). Both read the same
replies, so that what differs is what the rule leaves out. Counted are the questions that are asked,
how often each model's cut is the same, and the verdicts of both, over all models of a run.

Worlds that put a claim at its boundary get more runs. Everything is named, so that the same command
gives the same table. With `--page` the table goes to its marked place in a page of the docs.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resect.files.writing import plain, write_json, write_text
from resect.planted.verdicts.count import positions, truth_of
from resect.planted.verdicts.ground import design_of, section_of, write_sets
from resect.planted.verdicts.quick import QuickResampler
from resect.planted.verdicts.scenario import TRUTHS, Scenario, Truth
from resect.planted.verdicts.scenarios import scenarios_of
from resect.planted.verdicts.simulate import Simulated, planned_of
from resect.planted.verdicts.text import filled, share
from resect.records import Claim
from resect.stats import Sample, rng, wilson
from resect.studies import STUDIES
from resect.studies.cells import Cell, Cut
from resect.studies.choice import choose
from resect.studies.design import Design
from resect.studies.halves import Half
from resect.studies.halving import HARM, Searched, answer

HALVES: tuple[Half, ...] = ("selection", "test")
BEGIN, END = "<!-- halving: begin -->", "<!-- halving: end -->"
# What is run: the studies whose cells a run shares.
RUNS = {
    "frontier": ("frontier",),
    "compactness": ("compactness",),
    "specificity": ("specificity",),
    "compactness + specificity": ("compactness", "specificity"),
}


class _Part(NamedTuple):
    """What was asked of a variant."""

    cell: Cell
    probe: str
    half: Half


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

    def rate(
        self,
        cells: Iterable[Cell],
        probe: str,
        category: str = "",
        *,
        half: Half = "",
        other_than: str = "",
        outcomes: Collection[str] = (),
    ) -> Sample:
        """Return what `Simulated.rate` returns, NaN where some of the prompts were not asked."""
        cells = list(cells)
        if not self.covers(cells, probe, half):
            return self.resampler(probe).mean({})
        return super().rate(
            cells, probe, category, half=half, other_than=other_than, outcomes=outcomes
        )

    def ask(self, cells: Iterable[Cell]) -> None:
        """Ask cells of one probe and one half."""
        assert self.parts is not None
        self.parts |= {part_of(cell, cell.probes[0], cell.half) for cell in cells}


def part_of(cell: Cell, probe: str, half: Half) -> _Part:
    return _Part(Cell(cell.role, cell.seed, cell.cut, ()), probe, half)


class Amount(NamedTuple):
    """Questions that were asked, and those of the whole grid."""

    asked: int
    grid: int


@dataclass
class Tally:
    """What was counted over the runs of some studies.

    Attributes:
        amounts: Questions of each run: of harm, of utility, of both.
        cuts: Of each model's choices: how the cut lies to the one of the whole grid.
        verdicts: By claim, truth and world: pairs of whether it was supported, by both searches.
    """

    amounts: dict[str, list[Amount]] = field(default_factory=dict)
    cuts: Counter[str] = field(default_factory=Counter)
    verdicts: dict[_Of, Counter[_Pair]] = field(default_factory=dict)


class _Of(NamedTuple):
    """What a verdict is on."""

    study: str
    stated: int
    truth: Truth
    world: str


class _Pair(NamedTuple):
    """Whether a claim is supported by the whole grid, and by the search."""

    full: bool
    halving: bool


@cache
def resamplers() -> dict[str, QuickResampler]:
    """Return what all runs share, by probe: the bootstrap's weights."""
    return {}


def tally(studies: Sequence[str], scenarios: Iterable[tuple[Scenario, range]]) -> Tally:
    """Return what the runs of some worlds show, each asked in full and searched.

    Args:
        studies: What a run has; its questions are those of all of them.
        scenarios: Worlds of these studies, with the numbers of the runs.
    """
    counted = Tally()
    for scenario, draws in scenarios:
        with tempfile.TemporaryDirectory() as folder:
            write_sets(scenario.size, Path(folder))
            design = design_of(scenario.size, Path(folder))
            for draw in draws:
                _run(counted, studies, scenario, design, draw)
    return counted


def _run(
    counted: Tally, studies: Sequence[str], scenario: Scenario, design: Design, draw: int
) -> None:
    cells = [c for name in studies for c in STUDIES[name].plan(design, section_of(name))]
    planned = planned_of(cells)
    measured = Halved(
        design, scenario.world, size=scenario.size, planned=planned, label=scenario.label, draw=draw
    ).with_resamplers(resamplers())
    assert isinstance(measured, Halved)
    study, section = STUDIES[scenario.study], section_of(scenario.study)
    choices = [choice for name in studies for choice in choices_of(name, design)]
    full = study.summarise(measured, section).claims
    before = _chosen(measured, choices)
    measured.parts = set()
    for seed in design.seeds:
        answer(measured, choices, seed, measured.ask)
    halving = study.summarise(measured, section).claims
    _count_amounts(counted, measured, planned)
    for cut, usual in zip(_chosen(measured, choices), before, strict=True):
        counted.cuts[_lies(cut, usual)] += 1
    for claim, searched, stated in zip(full, halving, positions(study, full), strict=True):
        truth = truth_of(scenario, stated, measured)
        of = _Of(scenario.study, stated, truth, f"{scenario.name}, {len(design.seeds)} models")
        pair = _Pair(_supported(claim), _supported(searched))
        counted.verdicts.setdefault(of, Counter())[pair] += 1


def choices_of(name: str, design: Design) -> list[Searched]:
    study = STUDIES[name]
    assert study.searched is not None
    return study.searched(design, section_of(name))


def _supported(claim: Claim) -> bool:
    return claim.verdict == "supported"


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


def _count_amounts(
    counted: Tally, measured: Halved, planned: Mapping[Cell, tuple[str, ...]]
) -> None:
    """Count the questions of a run."""
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
    for name, probes in (("harm", (HARM,)), ("utility", ("utility",)), ("both", tuple(grid))):
        amount = Amount(sum(asked[p] for p in probes), sum(grid[p] for p in probes))
        counted.amounts.setdefault(name, []).append(amount)


def _sizes(measured: Halved) -> dict[tuple[int, str, Half], int]:
    """Return how many prompts a half has, by model and probe."""
    sizes: dict[tuple[int, str, Half], int] = Counter()  # type: ignore[assignment]
    for seed in measured.config.seeds:
        intact = Cell(measured.config.subject, seed, None, ())
        for probe in (HARM, "utility"):
            for row in measured.asked(intact, probe):
                sizes[seed, probe, row.half] += 1
    return sizes


def worlds(study: str, draws: int, boundary: int) -> Iterator[tuple[Scenario, range]]:
    """Yield the worlds of a study with plain answers, and how many runs each gets.

    Args:
        study: Its name.
        draws: Runs of each world.
        boundary: Runs of each claim at its boundary, dealt evenly over the worlds with it.
    """
    plain_answers = [world for world in scenarios_of(study) if world.size.words == 1]
    # What is true of the drawn models themselves is at no boundary.
    at_edge = [w for w in plain_answers if "boundary" in w.expected and w.realised is None]
    edges = Counter(
        number
        for world in at_edge
        for number, truth in enumerate(world.expected)
        if truth == "boundary"
    )
    each = -(-boundary // min(edges.values())) if edges and boundary else 0
    for world in plain_answers:
        yield world, range(max(draws, each if world in at_edge else 0))


def rows_of(counted: Tally) -> list[dict[str, Any]]:
    """Return a row a claim and truth, and the world in which the two searches differ most."""
    rows = []
    keys = dict.fromkeys((of.study, of.stated, of.truth) for of in counted.verdicts)
    for study, stated, truth in sorted(keys, key=lambda key: (TRUTHS.index(key[2]), *key[:2])):
        worlds_of = {
            of.world: pairs
            for of, pairs in counted.verdicts.items()
            if (of.study, of.stated, of.truth) == (study, stated, truth)
        }
        pairs = sum(worlds_of.values(), Counter())
        runs = sum(pairs.values())
        row: dict[str, Any] = {
            "study": study,
            "claim": STUDIES[study].stated[stated].claim,
            "truth": truth,
            "worlds": len(worlds_of),
            "runs": runs,
        }
        for name in _Pair._fields:
            count = sum(number for pair, number in pairs.items() if getattr(pair, name))
            bounds = wilson(count, runs)
            row |= {name: count / runs, f"{name}_low": bounds.low, f"{name}_high": bounds.high}
        row["by_full_alone"] = pairs[_Pair(full=True, halving=False)]
        row["by_halving_alone"] = pairs[_Pair(full=False, halving=True)]
        shares = {
            world: sum(n for pair, n in counts.items() if pair.halving) / sum(counts.values())
            for world, counts in worlds_of.items()
        }
        pick: Callable[..., str] = min if truth == "true" else max
        row["worst"] = pick(shares, key=lambda world: shares[world])
        row["worst_share"] = shares[row["worst"]]
        rows.append(row)
    return rows


def amounts_of(name: str, counted: Tally) -> dict[str, Any]:
    """Return the shares of the questions that were asked, and of choices that are the same."""
    row: dict[str, Any] = {"run": name, "runs": len(counted.amounts["both"])}
    for probe, amounts in counted.amounts.items():
        shares = np.array([amount.asked / amount.grid for amount in amounts])
        draws = rng(f"halving/{name}/{probe}").choice(shares, (1999, len(shares))).mean(axis=1)
        low, high = np.quantile(draws, (0.025, 0.975))
        row[probe] = {
            "share": float(shares.mean()),
            "low": float(low),
            "high": float(high),
            "most": float(shares.max()),
        }
    total = counted.cuts.total()
    row["choices"] = total
    row["cuts"] = {
        how: {"share": count / total, **wilson(count, total)._asdict()}
        for how, count in counted.cuts.most_common()
    }
    return row


def markdown(results: Mapping[str, Any], made: str) -> str:
    """Return the tables."""
    lines = [
        made,
        "",
        "| run | runs | questions asked, of the grid's | at most | of harm | of utility |",
        "|---|--:|---|--:|---|---|",
    ]
    for row in results["amounts"]:
        both, harm, utility = row["both"], row["harm"], row["utility"]
        lines.append(
            f"| {row['run']} | {row['runs']} | {_share(both)} | {100 * both['most']:.1f} % | "
            f"{_share(harm)} | {_share(utility)} |"
        )
    names = list(dict.fromkeys(how for row in results["amounts"] for how in row["cuts"]))
    lines += ["", f"| run | choices | {' | '.join(names)} |", f"|---|--:{'|---' * len(names)}|"]
    for row in results["amounts"]:
        cells = [_share(row["cuts"][how]) if how in row["cuts"] else "0" for how in names]
        lines.append(f"| {row['run']} | {row['choices']} | {' | '.join(cells)} |")
    lines += [
        "",
        "| study | claim | truth | worlds | runs | supported: full | supported: halving | "
        "by full alone | by halving alone | halving at worst |",
        "|---|---|---|--:|--:|---|---|--:|--:|---|",
    ]
    for row in results["verdicts"]:
        shares = [
            share(row[name], row[f"{name}_low"], row[f"{name}_high"]) for name in _Pair._fields
        ]
        lines.append(
            f"| {row['study']} | {row['claim']} | {row['truth']} | {row['worlds']} | {row['runs']} "
            f"| {' | '.join(shares)} | {row['by_full_alone']} | {row['by_halving_alone']} | "
            f"{100 * row['worst_share']:.1f} % ({row['worst']}) |"
        )
    return "\n".join(lines) + "\n"


def _share(row: Mapping[str, float]) -> str:
    return share(row["share"], row["low"], row["high"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate, print the tables, and write them where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--boundary", type=int, default=400)
    parser.add_argument("--run", nargs="*", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--page", type=Path)
    options = parser.parse_args(arguments)
    results: dict[str, Any] = {"amounts": [], "verdicts": []}
    for name in options.run:
        studies = RUNS[name]
        # Together they claim what they claim apart; only their questions differ.
        boundary = options.boundary if len(studies) == 1 else 0
        cases = [case for study in studies for case in worlds(study, options.draws, boundary)]
        counted = tally(studies, cases)
        results["amounts"].append(amounts_of(name, counted))
        if len(studies) == 1:
            results["verdicts"] += rows_of(counted)
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
