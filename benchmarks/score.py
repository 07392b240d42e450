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
from arms import NAIVE, NAIVE_BY_OURS, REDUCTIONS, Case

from resect.files.reading import read_json
from resect.files.writing import write_json, write_text
from resect.machine.products import ONEDNN, TORCH, are_by_onednn, choose_products
from resect.weights.mask import Mask
from resect.weights.scores import Scores
from resect.weights.select import select

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
MARKS = ("<!-- score: begin -->", "<!-- score: end -->")
ARMS = (NAIVE, NAIVE_BY_OURS, *REDUCTIONS)
SAID_OF_PRODUCTS = (
    "On this processor oneDNN makes the products of our arms, and torch those of *naive* and of "
    "*per_layer*, as for a user without resect."
)
# An absolute value costs no memory.
# Load average over a minute above which times mean little.
BUSY = 0.5
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
# Of the naive arm's time.
LIMITS = {"signed": 0.55, "mean_of_abs": 0.60}


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


def child(threads: int, pinned: bool = False, **request: Any) -> Any:
    """Run `arms.py` in a fresh process and return what it found.

    Args:
        threads: Of torch.
        pinned: Give what is freed back to the system at once, so that what is resident is what is
            held. Otherwise glibc keeps freed blocks of up to 32 MB for later, with holes between.
        **request: What is measured.
    """
    command = [sys.executable, str(HERE / "arms.py"), json.dumps({**request, "threads": threads})]
    environment = os.environ | ({"MALLOC_MMAP_THRESHOLD_": "65536"} if pinned else {})
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
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
    measured: dict[str, Any] = {"case": case._asdict(), "rounds": []}
    measured["parts"] = child(threads, case=case, arm="parts")
    if oracle:
        found = child(threads, case=case, arm="operations")
        measured["operations"] = found["operations"]
    # The two largest batches, after which nothing new is held.
    measured["held"] = {
        arm: child(threads, pinned=True, case=case, arm=arm, longest=LONGEST)
        for arm in (HELD if oracle else ())
    }
    if oracle:
        measured["per_layer"] = child(threads, case=case, arm="per_layer", folder=str(folder))
        print(case.name, "per layer", round(measured["per_layer"]["seconds"], 2), flush=True)
    took = 0.0
    while not measured["rounds"] or (
        len(measured["rounds"]) < rounds and time.perf_counter() + took < ends
    ):
        start, is_first = time.perf_counter(), not measured["rounds"]
        # The absolute value of a mean costs what its sign does; one round shows that.
        arms = [arm for arm in ARMS if is_first or arm != "abs_of_mean"]
        if not are_by_onednn():
            arms.remove(NAIVE_BY_OURS)
        arms = arms if is_first else arms[::-1]
        if len(measured["rounds"]) % 2 == 0 and not is_first:
            arms = arms[::-1]
        destination = str(folder) if is_first else None
        timings = {arm: child(threads, case=case, arm=arm, folder=destination) for arm in arms}
        measured["rounds"].append(timings)
        took = time.perf_counter() - start
        print(
            case.name,
            {arm: round(timing["seconds"], 2) for arm, timing in timings.items()},
            flush=True,
        )
    if oracle:
        measured["masks"] = compare_masks(folder)
    measured["selection"] = time_selection(folder)
    measured["files"] = {
        reduction: file_facts(folder / f"{reduction}.safetensors") for reduction in REDUCTIONS
    }
    return measured


def file_facts(path: Path) -> dict[str, int]:
    """Return bytes of an artefact, of all scores in fp32, and of all weights if it holds any."""
    scores = Scores.load(path)
    tensors = scores.tensors.values()
    return {
        "bytes": path.stat().st_size,
        "scores": 4 * scores.total,
        "weights": sum(
            tensor.size * tensor.weight.element_size()
            for tensor in tensors
            if tensor.weight.numel()
        ),
        "kept": sum(tensor.index.numel() for tensor in tensors),
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
        top(mine, int(q * len(mine))) & (mine > 0) & ~top(reference, int(p * len(reference)))
        for mine, reference in zip(ours, theirs, strict=True)
    ]
    if scope == "model":
        chosen = np.split(chosen[0], np.cumsum([target[name].numel() for name in names])[:-1])
    return dict(zip(names, chosen, strict=True))


def compare_masks(folder: Path) -> list[dict[str, Any]]:
    """Count in how many weights the engine's masks differ from the per-layer algorithm's."""
    target, preserve = (Scores.load(folder / f"{r}.safetensors") for r in ("signed", "mean_of_abs"))
    dense = [load_file(folder / f"oracle-{r}.safetensors") for r in ("signed", "mean_of_abs")]
    for number in (0, 1):  # in the engine's order, which breaks ties over the model
        dense[number] = {name: dense[number][name] for name in target.tensors}
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
    seconds = {"load": time.perf_counter() - start}
    for scope in ("tensor", "model"):
        start = time.perf_counter()
        for q, p in GRID:
            select(target, preserve, q=float(q), p=float(p), scope=scope)  # type: ignore[arg-type]
        seconds[scope] = time.perf_counter() - start
    return seconds


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


def ratios(case: Mapping[str, Any], arm: str, base: str = NAIVE) -> tuple[float, float, float]:
    """Return median, least and most of an arm's time over a naive one of the same round."""
    rounds = [row for row in case["rounds"] if arm in row]
    shares = [row[arm]["seconds"] / row[base]["seconds"] for row in rounds]
    return statistics.median(shares), min(shares), max(shares)


def median(case: Mapping[str, Any], arm: str, figure: str = "seconds") -> float:
    """Return the median of an arm over rounds: `seconds`, or bytes of `peak` above the base."""
    timings = [timing[arm] for timing in case["rounds"] if arm in timing]
    if figure == "peak":
        return statistics.median(timing["peak"] - timing["base"] for timing in timings)
    return statistics.median(timing["seconds"] for timing in timings)


class Target(NamedTuple):
    """A promise, what was measured, and whether it is kept."""

    what: str
    wanted: str
    measured: str
    met: bool


def targets(results: Mapping[str, Any]) -> list[Target]:
    """Compare with what was promised, on the model of 60M or, if quick, on what there is."""
    cases = {case["case"]["name"]: case for case in results["cases"]}
    chosen = cases.get(MIDDLE.name) or results["cases"][0]
    rows = []
    for base in [base for base in (NAIVE, NAIVE_BY_OURS) if base in chosen["rounds"][0]]:
        for arm, limit in LIMITS.items():
            middle, lowest, largest = ratios(chosen, arm, base)
            got = f"{middle:.2f} [{lowest:.2f}, {largest:.2f}]"
            wanted = f"≤ {limit:.2f}"
            rows.append(Target(f"{arm}, time over {base}", wanted, got, middle <= limit))
    if "per_layer" in chosen:
        lowest = 0.65 * chosen["case"]["layers"]
        for arm in ("signed", "mean_of_abs"):
            gain = chosen["per_layer"]["seconds"] / median(chosen, arm)
            rows.append(
                Target(
                    f"per-layer time over {arm}", f"≥ {lowest:.1f}", f"{gain:.1f}", gain >= lowest
                )
            )
        differ, removed = (
            sum(row[key] for row in chosen["masks"]) for key in ("differ", "removed")
        )
        got = f"{differ:,} of {removed:,} removed weights differ"
        rows.append(Target("masks of the per-layer algorithm", "0 differ", got, differ == 0))
    bound = sum(chosen["parts"]["bytes"].values())
    for arm, case in chosen["held"].items():
        peak, wanted = case["peak"] - case["base"], f"≤ {bound / 1e6:.0f} MB"
        rows.append(
            Target(f"{arm}, most memory held", wanted, f"{peak / 1e6:.0f} MB", peak <= bound)
        )
    for scope in ("tensor", "model"):
        took = chosen["selection"][scope]
        rows.append(Target(f"100 selections per {scope}", "≤ 1 s", f"{took:.2f} s", took <= 1))
    for arm in REDUCTIONS:
        size = chosen["files"][arm]
        share = size["bytes"] / (size["scores"] + size["weights"])
        dense = "dense scores and weights" if size["weights"] else "dense scores"
        got = f"{100 * share:.2f} %"
        rows.append(Target(f"{arm}, file over {dense}", "≤ 2 %", got, share <= 0.02))
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
    host = results["machine"]
    lines = [
        f"{host['cpu']}, {host['cores']} cores, {host['memory'] / 2**30:.0f} GiB, "
        f"{host['system']}, torch {host['torch']}, Python {host['python']}, "
        f"{results['threads']} threads, fp32. "
        f"Load average at the start: {host['load']:.1f}; "
        f"took {results['seconds'] / 60:.1f} minutes.",
    ]
    if host["load"] > BUSY:
        lines += ["", "**The machine was busy: times and ratios below mean little.**"]
    if results.get("products") == ONEDNN:
        lines += ["", SAID_OF_PRODUCTS]
    rows = [(t.what, t.wanted, t.measured, "met" if t.met else "MISSED") for t in targets(results)]
    lines += table("target,wanted,measured,", rows)
    rows = []
    for case in results["cases"]:
        for arm in [arm for arm in ARMS if arm in case["rounds"][0]]:
            ratio = f"{ratios(case, arm)[0]:.2f}"
            rows.append(_row(case, arm, median(case, arm), median(case, arm, "peak"), ratio))
        if "per_layer" in case:
            base = case["per_layer"]
            ratio = f"{base['seconds'] / median(case, 'naive'):.1f}"
            rows.append(
                _row(case, "per_layer", base["seconds"], base["peak"] - base["base"], ratio)
            )
    lines += table(
        "model,examples (tokens),rounds,arm,s,over naive,products over naive's,held MB,resident MB",
        rows,
    )
    rows = []
    for case in results["cases"]:
        parts = {name: f"{size / 1e6:.0f}" for name, size in case["parts"]["bytes"].items()}
        chosen = case["selection"]
        took = [f"{chosen[step]:.2f}" for step in ("load", "tensor", "model")]
        rows.append(
            (case["case"]["name"], f"{case['parts']['prunable']:,}", *parts.values(), *took)
        )
    names = ",".join(f"{name} MB" for name in results["cases"][0]["parts"]["bytes"])
    chosen = "load two files s,100 selections per tensor s,100 per model s"
    lines += table(f"model,prunable weights,{names},{chosen}", rows)
    rows = []
    for case in results["cases"]:
        for arm, size in case["files"].items():
            over = (size["scores"] + size["weights"], size["scores"])
            shares = [f"{100 * size['bytes'] / base:.2f}" for base in over]
            density = f"{100 * size['kept'] / size['total']:.2f}"
            bytes_each = f"{size['bytes'] / size['kept']:.2f}"
            rows.append(
                (
                    case["case"]["name"],
                    arm,
                    density,
                    bytes_each,
                    f"{size['bytes'] / 1e6:.2f}",
                    *shares,
                )
            )
    lines += table(
        "model,arm,candidates % of weights,bytes each,file MB,% of dense,% of dense scores alone",
        rows,
    )
    masks = [
        (
            case["case"]["name"],
            row["q"],
            row["p"],
            row["scope"],
            f"{row['removed']:,}",
            row["differ"],
        )
        for case in results["cases"]
        for row in case.get("masks", [])
    ]
    lines += table("model,q,p,scope,removed per layer,differ from ours", masks)
    rows = [
        (row["axis"], f"{row['size']:,.0f}", row["reduction"], f"{row['seconds']:.3f}")
        for row in results["growth"]
    ]
    lines += table("grows,size,reduction,s", rows)
    return "\n".join(lines)


def _row(case: Mapping[str, Any], arm: str, seconds: float, peak: float, ratio: str) -> list[str]:
    pinned, counts = case["held"].get(arm), case.get("operations", {})
    return [
        case["case"]["name"],
        f"{case['case']['examples']} ({case['rounds'][0]['naive']['tokens']:,})",
        "1" if arm == "per_layer" else str(sum(arm in timings for timings in case["rounds"])),
        arm,
        f"{seconds:.2f}",
        ratio,
        f"{counts[arm] / counts['naive']:.2f}" if arm in counts else "",
        f"{(pinned['peak'] - pinned['base']) / 1e6:.0f}" if pinned else "",
        f"{peak / 1e6:.0f}",
    ]


def fill(text: str, content: str) -> str:
    """Return a page with what stands between the markers replaced."""
    before, tail = text.split(MARKS[0])
    after = tail.split(MARKS[1])[1]
    return f"{before}{MARKS[0]}\n{content}\n{MARKS[1]}{after}"


def busy(load: float) -> str:
    """Return why times of this machine would mean nothing, "" if they mean something."""
    if load <= BUSY:
        return ""
    return (
        f"the machine is busy: its load average over a minute is {load:.1f}, and at most {BUSY} is "
        "allowed for a page of times. Nothing was measured or written. Next step: wait until it is "
        "idle, or take --quick, which writes no page."
    )


def run(effort: Effort, threads: int) -> dict[str, Any]:
    """Measure everything."""
    start = time.perf_counter()
    choose_products()
    results: dict[str, Any] = {"machine": machine(), "threads": threads, "cases": []}
    results["products"] = ONEDNN if are_by_onednn() else TORCH
    results["growth"] = child(
        threads, growth=growth_cases(effort.growth_examples), repeats=effort.growth_rounds
    )
    for case, seconds, oracle in effort.cases:
        ends = min(time.perf_counter() + seconds, start + effort.seconds)
        with tempfile.TemporaryDirectory() as folder:
            measured = measure_case(
                case, ends, effort.rounds, oracle=oracle, folder=Path(folder), threads=threads
            )
        results["cases"].append(measured)
    results["cases"].sort(key=lambda measured_case: measured_case["parts"]["prunable"])
    results["seconds"] = time.perf_counter() - start
    return results


def main() -> int:
    """Measure and write, or write again what was measured; 2 if the machine is busy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one small model, one round")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--page", type=Path, help="page to fill; docs/benchmarks.md unless quick")
    parser.add_argument("--again", action="store_true", help="only write the page of the last run")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    output = HERE / "results" / ("score-quick.json" if options.quick else "score.json")
    goal = options.page or (None if options.quick else PAGE)
    if goal is not None and not options.again and (why := busy(os.getloadavg()[0])):
        print(why, file=sys.stderr)
        return 2
    if not options.again:
        write_json(output, run(BRIEF if options.quick else FULL, options.threads))
    content = page(read_json(output))
    print(content)
    if goal is not None:
        write_text(goal, fill(goal.read_text(encoding="utf-8"), content))
    return 0


if __name__ == "__main__":
    sys.exit(main())
