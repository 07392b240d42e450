"""What a GPU does and costs: checks and ratios in one run, for docs/benchmarks.md.

    benchmarks/device.sh [--page PAGE] [-o FILE]

Five parts, each with a check that can fail:

    kernel     sums of |g| and g² by the Triton kernel, against the formula in float64
    scores     a small fp32 model scored on the device and on the CPU: the masks are the same
    scoring    a random Llama of the 8B shape in bfloat16: time over a plain forward and backward,
               with the kernel and without, and peak memory
    cuts       64 cuts asked one by one and together (benchmarks/together.py): tokens that differ
    organism   `resect demo --quick --native --study compactness` to its report

A part that fails is named, the others go on, and the page is written only if none failed. Without a
GPU nothing is measured or written. `--small` shows on a CPU that the parts run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).parent))
import arms
import together

from resect.attribution import kernel
from resect.attribution.engine import attribute_many
from resect.attribution.settings import AttributeSettings
from resect.errors import InputError
from resect.files.writing import write_json, write_text
from resect.model.shapes import SHAPES
from resect.weights.select import select

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
MARKS = ("<!-- device: begin -->", "<!-- device: end -->")
# Sums of the same products in another order.
CLOSE = {torch.float32: 1e-4, torch.bfloat16: 1e-3, torch.float16: 1e-3}
# Of the weights that either mask removes, the share that both do; and of tokens, those that differ.
SAME, DIFFERENT = 0.999, 1e-3


class CheckError(Exception):
    """A check did not hold."""


class Finding(NamedTuple):
    """A line of the table.

    Attributes:
        part: Of the run.
        what: Was measured or checked.
        value: In words.
    """

    part: str
    what: str
    value: str


class Place(NamedTuple):
    """Where it is measured, and how much.

    Attributes:
        device: Of torch.
        name: Of the device, for the page.
        small: Tiny sizes, which show that a part runs.
    """

    device: torch.device
    name: str
    small: bool

    def wait(self) -> None:
        """Return when the device has done what it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object]) -> float:
        """Return how long something takes, once it has been done before."""
        work()
        self.wait()
        start = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - start


def kernel_part(place: Place) -> Iterator[Finding]:
    """Compare the kernel's sums with the formula."""
    draw = torch.Generator().manual_seed(0)
    rows, columns, lengths = (70, 131, (5, 33)) if place.small else (1030, 4100, (5, 33, 1, 96, 64))
    for dtype, tolerance in CLOSE.items():
        left, right = (
            [torch.randn(t, size, generator=draw).to(place.device, dtype) for t in lengths]
            for size in (rows, columns)
        )
        if not kernel.usable(left[0]):
            yield Finding("kernel", "not used", "no Triton for this device: sums by tiles instead")
            return
        each = [a.double().T @ b.double() for a, b in zip(left, right, strict=True)]
        wanted = {
            "absolute": sum((g.abs() for g in each), torch.zeros_like(each[0])),
            "square": sum((g.square() for g in each), torch.zeros_like(each[0])),
        }
        sums = {name: torch.zeros(rows, columns, device=place.device) for name in wanted}
        kernel.add_sums(left, right, **sums)
        error = max(
            float(((sums[name] - truth).abs() / (1 + truth.abs())).max())
            for name, truth in wanted.items()
        )
        if not error <= tolerance:
            raise CheckError(f"the kernel is off by {error:.2g} in {dtype}, at most {tolerance:g}")
        kind = str(dtype).removeprefix("torch.")
        yield Finding("kernel", f"largest error of a sum, {kind}, of 1 + sum", f"{error:.1e}")


def scores_part(place: Place) -> Iterator[Finding]:
    """Compare masks of scores that were made on the device with those of the CPU."""
    case = arms.Case("check", *((64, 2, 512, 6) if place.small else (256, 10, 8192, 16)))
    masks = []
    for device in ("cpu", place.device):
        scores = attribute_many(
            arms.build(case).to(device),
            arms.tokenizer(),
            arms.examples(case),
            reductions=("signed", "mean_of_abs"),
            settings=AttributeSettings(keep=2e-2),
        )
        masks.append(select(scores["signed"], scores["mean_of_abs"], q=5e-3, p=1e-2))
    same = masks[0].overlap(masks[1])
    if not same >= SAME:
        raise CheckError(f"masks of device and CPU share {same:.4f}, at least {SAME} is wanted")
    yield Finding(
        "scores", f"{masks[0].count:,} weights removed: shared with the CPU's", f"{same:.4f}"
    )


@contextmanager
def _without_kernel() -> Iterator[None]:
    usable, kernel.usable = kernel.usable, lambda _tensor: False
    try:
        yield
    finally:
        kernel.usable = usable


def scoring_part(place: Place) -> Iterator[Finding]:
    """Time what scoring costs at the 8B shape."""
    model = _eight_billion(place)
    words = model.config.vocab_size
    case = arms.Case("8B", 0, 0, words, 4 if place.small else 64)
    encoded = arms.examples(case)
    tokens = sum(len(row.input_ids) for row in encoded)
    plain = place.seconds(lambda: arms.naive(model, encoded))
    yield Finding("scoring", f"plain pass over {tokens:,} tokens", f"{plain:.2f} s")
    model.zero_grad(set_to_none=True)

    def scored(reduction: str) -> float:
        settings = AttributeSettings(keep=1e-3)
        return place.seconds(
            lambda: attribute_many(
                model, arms.tokenizer(), encoded, reductions=(reduction,), settings=settings
            )
        )

    for reduction in ("signed", "mean_of_abs"):
        if place.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        took = scored(reduction)
        peak = ""
        if place.device.type == "cuda":
            peak = f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB at most"
        yield Finding(
            "scoring", f"{reduction}, time over the plain pass", f"{took / plain:.2f}{peak}"
        )
        if reduction == "mean_of_abs":
            with _without_kernel():
                tiles = scored(reduction)
            yield Finding("scoring", "the same without the kernel, over it", f"{tiles / took:.2f}")


def _eight_billion(place: Place) -> Any:
    """Return a random Llama of that shape in bfloat16, or a tiny one."""
    from transformers import LlamaConfig, LlamaForCausalLM

    values = dict(SHAPES["llama-8b"].sides)
    if place.small:
        values |= {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2}
        values |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512}
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with place.device:
            return LlamaForCausalLM(LlamaConfig(**values)).eval()
    finally:
        torch.set_default_dtype(usual)


def cuts_part(place: Place) -> Iterator[Finding]:
    """Ask many cuts one by one and together."""
    size = together.TINY if place.small else together.Size()
    loaded = together.build(size)
    loaded.model.to(place.device)
    masks = together.cuts(loaded.model, size)
    for case in together.cases(size):
        row = together.measure(loaded, masks, case, size)
        if row["different"] > DIFFERENT * row["tokens"]:
            raise CheckError(f"{row['different']} of {row['tokens']} tokens differ: {case.name}")
        spread = f"{row['ratio']:.2f} ({row['least']:.2f} to {row['largest']:.2f})"
        counted = (
            f", {row['different']} of {row['tokens']:,} tokens differ" if row["tokens"] else ""
        )
        yield Finding("cuts", f"{case.name}, together: times as fast", spread + counted)


def organism_part(place: Place) -> Iterator[Finding]:
    """Run a quick demonstration to its report."""
    if place.small:
        return
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "resect", "demo", "--quick", "--native"]
        start = time.perf_counter()
        done = subprocess.run(
            [*command, "--study", "compactness", "-o", str(run)],
            capture_output=True,
            text=True,
            env=os.environ | {"RESECT_CACHE": str(Path(folder) / "cache")},
            check=False,
        )
        if done.returncode or not (run / "report.html").is_file():
            raise CheckError(
                f"the demonstration ended with {done.returncode}: {done.stderr[-400:]}"
            )
        yield Finding(
            "organism", "quick demonstration, one study", f"{time.perf_counter() - start:.0f} s"
        )


PARTS: Mapping[str, Callable[[Place], Iterator[Finding]]] = {
    "kernel": kernel_part,
    "scores": scores_part,
    "scoring": scoring_part,
    "cuts": cuts_part,
    "organism": organism_part,
}


def table(place: Place, findings: list[Finding]) -> str:
    """Return the page's part as Markdown."""
    lines = [
        f"{place.name}, torch {torch.__version__}.",
        "",
        "| part | what | value |",
        "|---|---|---|",
    ]
    lines += [f"| {row.part} | {row.what} | {row.value} |" for row in findings]
    return "\n".join(lines)


def fill(text: str, content: str) -> str:
    """Return a page with what stands between the marks replaced."""
    before, tail = text.split(MARKS[0])
    return f"{before}{MARKS[0]}\n{content}\n{MARKS[1]}{tail.split(MARKS[1])[1]}"


def main(arguments: list[str] | None = None) -> int:
    """Measure all parts; 1 if a check failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="tiny sizes on the CPU, no page")
    parser.add_argument("--page", type=Path, default=PAGE, help="page to fill")
    parser.add_argument("-o", "--output", type=Path, help="write the table there too, as JSON")
    options = parser.parse_args(arguments)
    if options.small:
        place = Place(torch.device("cpu"), "CPU", small=True)
    elif torch.cuda.is_available():
        place = Place(torch.device("cuda"), torch.cuda.get_device_name(), small=False)
    else:
        print("no GPU is here: nothing was measured or written")
        return 0
    findings: list[Finding] = []
    failures: list[str] = []
    for name, part in PARTS.items():
        try:
            for finding in part(place):
                print(*finding, sep=": ", flush=True)
                findings.append(finding)
        # Errors of a device are RuntimeErrors; the other parts still go on.
        except (CheckError, InputError, OSError, RuntimeError) as error:
            failures.append(f"{name}: {type(error).__name__}: {error}")
            print("FAILED", failures[-1], flush=True)
    if options.output is not None:
        rows = [finding._asdict() for finding in findings]
        write_json(options.output, {"device": place.name, "rows": rows, "failures": failures})
    if not failures and not place.small:
        page = options.page.read_text(encoding="utf-8")
        write_text(options.page, fill(page, table(place, findings)))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
