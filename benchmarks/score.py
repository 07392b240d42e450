"""What scoring costs: against a plain pass, and against the published per-layer algorithm.

    python benchmarks/score.py [--quick]

Every measurement runs in a fresh process (`arms.py`); the arms of a case take turns, and ratios are
taken within a round. Results go to `benchmarks/results/` as JSON and, unless quick, into
`docs/benchmarks.md` between two markers. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from safetensors.torch import load_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from arms import REDUCTIONS, Case

from resect.files.reading import read_json
from resect.files.writing import write_json, write_text
from resect.weights.mask import Mask
from resect.weights.scores import Scores
from resect.weights.select import select

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
MARKS = ("<!-- score: begin -->", "<!-- score: end -->")
ARMS = ("naive", *REDUCTIONS)
# An absolute value costs no memory.
HELD = ("signed", "mean_of_abs")
LONGEST = 16

SMALL = Case("10M", 256, 10, 8192, 64)
MIDDLE = Case("60M", 512, 14, 32000, 64)
LARGE = Case("200M", 1024, 13, 32000, 4)
QUICK = Case("10M", 256, 10, 8192, 24)

# Points at which masks are compared with the oracle's.
COMPARED = ((1e-3, 1e-3), (1e-2, 1e-3), (5e-3, 1e-2))
GRID = tuple((q, p) for q in np.geomspace(1e-4, 1e-2, 10) for p in np.geomspace(1e-4, 1e-2, 10))
LINEAR = 1.1


class Effort(NamedTuple):
    """How much is measured.

    Attributes:
        cases: Models, with seconds for their rounds and whether the published algorithm runs. The
            last one has what is left of the whole.
        rounds: Most rounds of a case.
        growth_examples: Examples of the smallest case of growth.
        growth_rounds: Rounds of growth.
        seconds: For everything.
    """

    cases: tuple[tuple[Case, float, bool], ...]
    rounds: int
    growth_examples: int
    growth_rounds: int
    seconds: float


FULL = Effort(((SMALL, 30, True), (LARGE, 0, False), (MIDDLE, 600, True)), 5, 8, 2, 640)
BRIEF = Effort(((QUICK, 30, True),), 1, 2, 1, 100)


def child(threads: int, held: bool = False, **given: Any) -> Any:
    """Run `arms.py` in a fresh process and return what it found.

    Args:
        threads: Of torch.
        held: Give what is freed back to the system at once, so that what is resident is what is
            held. Otherwise glibc keeps freed blocks of up to 32 MB for later, with holes between.
        **given: What is measured.
    """
    command = [sys.executable, str(HERE / "arms.py"), json.dumps({**given, "threads": threads})]
    place = os.environ | ({"MALLOC_MMAP_THRESHOLD_": "65536"} if held else {})
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=place)
    return json.loads(done.stdout.splitlines()[-1])


def measure_case(
    case: Case, ends: float, rounds: int, *, oracle: bool, folder: Path, threads: int
) -> dict[str, Any]:
    """Measure all arms of a case.

    Args:
        case: Model and examples.
        ends: Clock (`time.perf_counter`) at which rounds end: none but the first starts that would
            likely end later.
        rounds: Most rounds.
        oracle: Whether the published algorithm runs too, once, and memory is measured apart.
        folder: Where the scores of the first round go.
        threads: Of torch.
    """
    facts: dict[str, Any] = {"case": case._asdict(), "rounds": []}
    facts["parts"] = child(threads, case=case, arm="parts")
    # The two largest batches, after which nothing new is held.
    facts["held"] = {
        arm: child(threads, held=True, case=case, arm=arm, longest=LONGEST)
        for arm in (HELD if oracle else ())
    }
    if oracle:
        facts["per_layer"] = child(threads, case=case, arm="per_layer", folder=str(folder))
        print(case.name, "per layer", round(facts["per_layer"]["seconds"], 2), flush=True)
    took = 0.0
    while not facts["rounds"] or (
        len(facts["rounds"]) < rounds and time.perf_counter() + took < ends
    ):
        start, first = time.perf_counter(), not facts["rounds"]
        # The absolute value of a mean costs what its sign does; one round shows that.
        arms = ARMS if first else [arm for arm in ARMS[::-1] if arm != "abs_of_mean"]
        if len(facts["rounds"]) % 2 == 0 and not first:
            arms = arms[::-1]
        place = str(folder) if first else None
        found = {arm: child(threads, case=case, arm=arm, folder=place) for arm in arms}
        facts["rounds"].append(found)
        took = time.perf_counter() - start
        print(case.name, {arm: round(one["seconds"], 2) for arm, one in found.items()}, flush=True)
    if oracle:
        facts["masks"] = compare_masks(folder)
    facts["selection"] = time_selection(folder)
    facts["files"] = {
        reduction: file_facts(folder / f"{reduction}.safetensors") for reduction in REDUCTIONS
    }
    return facts


def file_facts(path: Path) -> dict[str, int]:
    """Return bytes of an artefact, of all scores in fp32, and of all weights if it holds any."""
    scores = Scores.load(path)
    tensors = scores.tensors.values()
    return {
        "bytes": path.stat().st_size,
        "scores": 4 * scores.total,
        "weights": sum(
            one.size * one.weight.element_size() for one in tensors if one.weight.numel()
        ),
        "kept": sum(one.index.numel() for one in tensors),
        "total": scores.total,
    }


def top(scores: np.ndarray[Any, Any], count: int) -> np.ndarray[Any, Any]:
    """Return which of the scores [n] are the `count` highest, ties by index."""
    chosen = np.zeros(len(scores), dtype=bool)
    if count:
        edge = np.partition(scores, -count)[-count]
        chosen[scores > edge] = True
        chosen[np.flatnonzero(scores == edge)[: count - int(chosen.sum())]] = True
    return chosen


def oracle_mask(
    target: Mapping[str, Tensor], preserve: Mapping[str, Tensor], q: float, p: float, scope: str
) -> dict[str, np.ndarray[Any, Any]]:
    """Return which weights the definition removes, from dense scores; [n] bool by name."""
    names = list(target)
    ours, theirs = (
        [side[name].reshape(-1).numpy() for name in names] for side in (target, preserve)
    )
    if scope == "model":
        ours, theirs = [np.concatenate(ours)], [np.concatenate(theirs)]
    chosen = [
        top(one, int(q * len(one))) & (one > 0) & ~top(other, int(p * len(other)))
        for one, other in zip(ours, theirs, strict=True)
    ]
    if scope == "model":
        chosen = np.split(chosen[0], np.cumsum([target[name].numel() for name in names])[:-1])
    return dict(zip(names, chosen, strict=True))


def compare_masks(folder: Path) -> list[dict[str, Any]]:
    """Count in how many weights the engine's masks differ from the per-layer algorithm's."""
    target, preserve = (Scores.load(folder / f"{r}.safetensors") for r in ("signed", "mean_of_abs"))
    dense = [load_file(folder / f"oracle-{r}.safetensors") for r in ("signed", "mean_of_abs")]
    for at in (0, 1):  # in the engine's order, which breaks ties over the model
        dense[at] = {name: dense[at][name] for name in target.tensors}
    rows = []
    for q, p in COMPARED:
        for scope in ("tensor", "model"):
            mask = select(target, preserve, q=q, p=p, scope=scope)  # type: ignore[arg-type]
            truth = oracle_mask(*dense, q, p, scope)
            differ = sum(_differ(mask, name, chosen) for name, chosen in truth.items())
            removed = int(sum(chosen.sum() for chosen in truth.values()))
            rows.append({"q": q, "p": p, "scope": scope, "removed": removed, "differ": differ})
    return rows


def _differ(mask: Mask, name: str, chosen: np.ndarray[Any, Any]) -> int:
    ours = np.zeros(len(chosen), dtype=bool)
    ours[mask.tensors[name].index.numpy()] = True
    return int((ours != chosen).sum())


def time_selection(folder: Path) -> dict[str, float]:
    """Return the seconds of loading two artefacts and of 100 selections in each scope."""
    start = time.perf_counter()
    target, preserve = (Scores.load(folder / f"{r}.safetensors") for r in ("signed", "mean_of_abs"))
    found = {"load": time.perf_counter() - start}
    for scope in ("tensor", "model"):
        start = time.perf_counter()
        for q, p in GRID:
            select(target, preserve, q=float(q), p=float(p), scope=scope)  # type: ignore[arg-type]
        found[scope] = time.perf_counter() - start
    return found


def growth_cases(examples: int) -> dict[str, list[tuple[float, Case]]]:
    """Return three sizes along each axis; the vocabulary is small, for it is not scored."""

    def one(hidden: int, layers: int, count: int) -> Case:
        return Case("growth", hidden, layers, 512, count, (96, 96))

    return {
        "tokens": [(n * examples * 96, one(256, 4, n * examples)) for n in (1, 2, 4)],
        "layers": [(n, one(256, n, examples)) for n in (4, 8, 16)],
        "weights": [
            (4 * (4 + 33 / 4) * hidden**2, one(hidden, 4, examples)) for hidden in (256, 384, 512)
        ],
    }


def exponents(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], float]:
    """Return by axis and reduction the slope of log seconds over log size."""
    groups: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in rows:
        groups.setdefault((row["axis"], row["reduction"]), []).append((row["size"], row["seconds"]))
    return {
        key: float(np.polyfit(*np.log(np.array(points)).T, 1)[0]) for key, points in groups.items()
    }


def ratios(facts: Mapping[str, Any], arm: str) -> tuple[float, float, float]:
    """Return median, least and most of an arm's time over the naive one of the same round."""
    rounds = [one for one in facts["rounds"] if arm in one]
    found = [one[arm]["seconds"] / one["naive"]["seconds"] for one in rounds]
    return statistics.median(found), min(found), max(found)


def median(facts: Mapping[str, Any], arm: str, what: str = "seconds") -> float:
    """Return the median of an arm over rounds: `seconds`, or bytes of `peak` above the base."""
    found = [one[arm] for one in facts["rounds"] if arm in one]
    if what == "peak":
        return statistics.median(one["peak"] - one["base"] for one in found)
    return statistics.median(one["seconds"] for one in found)


class Target(NamedTuple):
    """A promise, what was measured, and whether it is kept."""

    what: str
    wanted: str
    measured: str
    met: bool


def targets(results: Mapping[str, Any]) -> list[Target]:
    """Compare with what was promised, on the model of 60M or, if quick, on what there is."""
    cases = {one["case"]["name"]: one for one in results["cases"]}
    facts = cases.get(MIDDLE.name) or results["cases"][0]
    rows = []
    for arm, most in (("signed", 1.0), ("mean_of_abs", 1.5)):
        middle, least, largest = ratios(facts, arm)
        found = f"{middle:.2f} [{least:.2f}, {largest:.2f}]"
        rows.append(Target(f"{arm}, time over naive", f"≤ {most:.1f}", found, middle <= most))
    if "per_layer" in facts:
        least = 0.65 * facts["case"]["layers"]
        for arm in ("signed", "mean_of_abs"):
            gain = facts["per_layer"]["seconds"] / median(facts, arm)
            rows.append(
                Target(f"per-layer time over {arm}", f"≥ {least:.1f}", f"{gain:.1f}", gain >= least)
            )
        differ, removed = (sum(row[key] for row in facts["masks"]) for key in ("differ", "removed"))
        found = f"{differ:,} of {removed:,} removed weights differ"
        rows.append(Target("masks of the per-layer algorithm", "0 differ", found, differ == 0))
    bound = sum(facts["parts"]["bytes"].values())
    for arm, one in facts["held"].items():
        peak, wanted = one["peak"] - one["base"], f"≤ {bound / 1e6:.0f} MB"
        rows.append(
            Target(f"{arm}, most memory held", wanted, f"{peak / 1e6:.0f} MB", peak <= bound)
        )
    for scope in ("tensor", "model"):
        took = facts["selection"][scope]
        rows.append(Target(f"100 selections per {scope}", "≤ 1 s", f"{took:.2f} s", took <= 1))
    for arm in REDUCTIONS:
        size = facts["files"][arm]
        share = size["bytes"] / (size["scores"] + size["weights"])
        dense = "dense scores and weights" if size["weights"] else "dense scores"
        found = f"{100 * share:.2f} %"
        rows.append(Target(f"{arm}, file over {dense}", "≤ 2 %", found, share <= 0.02))
    for (axis, arm), slope in exponents(results["growth"]).items():
        rows.append(
            Target(f"{arm}, exponent in {axis}", f"≤ {LINEAR}", f"{slope:.2f}", slope <= LINEAR)
        )
    return rows


def machine() -> dict[str, Any]:
    """Return what the times depend on."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {
        "cpu": name,
        "cores": os.cpu_count(),
        "memory": psutil.virtual_memory().total,
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
    }


def table(head: str, rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table; columns of the head are separated by commas."""
    names = head.split(",")
    lines = [names, ["---"] * len(names), *rows]
    return ["", *(f"| {' | '.join(map(str, line))} |" for line in lines), ""]


def page(results: Mapping[str, Any]) -> str:
    """Return everything that is shown, as Markdown."""
    here = results["machine"]
    lines = [
        f"{here['cpu']}, {here['cores']} cores, {here['memory'] / 2**30:.0f} GiB, "
        f"{here['system']}, torch {here['torch']}, Python {here['python']}, "
        f"{results['threads']} threads, fp32. "
        f"Load average at the start: {here['load']:.1f}; "
        f"took {results['seconds'] / 60:.1f} minutes.",
    ]
    if here["load"] > 0.5:
        lines += ["", "**The machine was busy: times and ratios below mean little.**"]
    rows = [(t.what, t.wanted, t.measured, "met" if t.met else "MISSED") for t in targets(results)]
    lines += table("target,wanted,measured,", rows)
    rows = []
    for facts in results["cases"]:
        for arm in ARMS:
            ratio = f"{ratios(facts, arm)[0]:.2f}"
            rows.append(_row(facts, arm, median(facts, arm), median(facts, arm, "peak"), ratio))
        if "per_layer" in facts:
            one = facts["per_layer"]
            ratio = f"{one['seconds'] / median(facts, 'naive'):.1f}"
            rows.append(_row(facts, "per_layer", one["seconds"], one["peak"] - one["base"], ratio))
    lines += table("model,examples (tokens),rounds,arm,s,over naive,held MB,resident MB", rows)
    rows = []
    for facts in results["cases"]:
        parts = {name: f"{size / 1e6:.0f}" for name, size in facts["parts"]["bytes"].items()}
        chosen = facts["selection"]
        took = [f"{chosen[what]:.2f}" for what in ("load", "tensor", "model")]
        rows.append(
            (facts["case"]["name"], f"{facts['parts']['prunable']:,}", *parts.values(), *took)
        )
    names = ",".join(f"{name} MB" for name in results["cases"][0]["parts"]["bytes"])
    chosen = "load two files s,100 selections per tensor s,100 per model s"
    lines += table(f"model,prunable weights,{names},{chosen}", rows)
    rows = []
    for facts in results["cases"]:
        for arm, size in facts["files"].items():
            over = (size["scores"] + size["weights"], size["scores"])
            shares = [f"{100 * size['bytes'] / one:.2f}" for one in over]
            kept = f"{100 * size['kept'] / size['total']:.2f}"
            each = f"{size['bytes'] / size['kept']:.2f}"
            rows.append(
                (facts["case"]["name"], arm, kept, each, f"{size['bytes'] / 1e6:.2f}", *shares)
            )
    lines += table(
        "model,arm,candidates % of weights,bytes each,file MB,% of dense,% of dense scores alone",
        rows,
    )
    masks = [
        (
            facts["case"]["name"],
            row["q"],
            row["p"],
            row["scope"],
            f"{row['removed']:,}",
            row["differ"],
        )
        for facts in results["cases"]
        for row in facts.get("masks", [])
    ]
    lines += table("model,q,p,scope,removed per layer,differ from ours", masks)
    rows = [
        (row["axis"], f"{row['size']:,.0f}", row["reduction"], f"{row['seconds']:.3f}")
        for row in results["growth"]
    ]
    lines += table("grows,size,reduction,s", rows)
    return "\n".join(lines)


def _row(facts: Mapping[str, Any], arm: str, seconds: float, peak: float, ratio: str) -> list[str]:
    held = facts["held"].get(arm)
    return [
        facts["case"]["name"],
        f"{facts['case']['examples']} ({facts['rounds'][0]['naive']['tokens']:,})",
        "1" if arm == "per_layer" else str(sum(arm in one for one in facts["rounds"])),
        arm,
        f"{seconds:.2f}",
        ratio,
        f"{(held['peak'] - held['base']) / 1e6:.0f}" if held else "",
        f"{peak / 1e6:.0f}",
    ]


def fill(text: str, content: str) -> str:
    """Return a page with what stands between the markers replaced."""
    before, rest = text.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    return f"{before}{MARKS[0]}\n{content}\n{MARKS[1]}{after}"


def run(effort: Effort, threads: int) -> dict[str, Any]:
    """Measure everything."""
    start = time.perf_counter()
    results: dict[str, Any] = {"machine": machine(), "threads": threads, "cases": []}
    results["growth"] = child(
        threads, growth=growth_cases(effort.growth_examples), repeats=effort.growth_rounds
    )
    for case, seconds, oracle in effort.cases:
        ends = min(time.perf_counter() + seconds, start + effort.seconds)
        with tempfile.TemporaryDirectory() as folder:
            found = measure_case(
                case, ends, effort.rounds, oracle=oracle, folder=Path(folder), threads=threads
            )
        results["cases"].append(found)
    results["cases"].sort(key=lambda facts: facts["parts"]["prunable"])
    results["seconds"] = time.perf_counter() - start
    return results


def main() -> None:
    """Measure and write, or write again what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one small model, one round")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--page", type=Path, help="page to fill; docs/benchmarks.md unless quick")
    parser.add_argument("--again", action="store_true", help="only write the page of the last run")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    place = HERE / "results" / ("score-quick.json" if given.quick else "score.json")
    if not given.again:
        write_json(place, run(BRIEF if given.quick else FULL, given.threads))
    content = page(read_json(place))
    print(content)
    goal = given.page or (None if given.quick else PAGE)
    if goal is not None:
        write_text(goal, fill(goal.read_text(encoding="utf-8"), content))


if __name__ == "__main__":
    main()
