"""What a pass will cost, for people: the plan behind `resect coverage --plan`."""

from __future__ import annotations

import math
import time
from typing import NamedTuple

import torch

from resect.attribution.choices import is_streamed, on_device
from resect.attribution.plan import GIB, SAFE, Plan, Shape, Work, plan, shape_of, streamed
from resect.machine.memory import Free, free_memory
from resect.machine.products import are_by_onednn
from resect.model import take_path
from resect.model.shapes import empty_model


def matrix_rate(dtype: torch.dtype) -> float:
    """Return floating-point operations a second of a matrix product here, measured in a moment."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    side = 8192 if device == "cuda" else 512
    square = torch.ones(side, side, dtype=dtype, device=device)
    begin, seconds = time.perf_counter(), math.inf
    # The best of several short ones, since others may use the machine meanwhile.
    for _ in range(20):
        start = time.perf_counter()
        torch.mm(square, square)[0, 0].item()  # waits for a GPU
        end = time.perf_counter()
        seconds = min(seconds, end - start)
        # A CPU without bf16 instructions takes seconds for a single product. One is timed in any
        # case: a busy machine may let a process wait that long before it begins.
        if end - begin > 1:
            break
    return 2.0 * side**3 / seconds


class Rate(NamedTuple):
    """Operations a second, and how they are known."""

    operations: float
    source: str


def scoring_rate(dtype: torch.dtype) -> Rate:
    """Return the operations a second that scoring will do here."""
    take_path()
    by = "cpu, oneDNN" if are_by_onednn() else "cpu"
    share = EFFICIENCY["cuda" if torch.cuda.is_available() else by]
    return Rate(share * matrix_rate(dtype), f"{share:g} of a matrix product's, measured here")


class Report(NamedTuple):
    """A plan for people: rows of a table, and lines below it."""

    rows: list[dict[str, object]]
    lines: list[str]


# What a large accelerator does of bf16 products in practice, and a bus between it and the host.
ASSUMED_RATE = 3e14
ASSUMED_BUS = 2e10
# Share of a matrix product's rate that scoring reaches: on a CPU .57 to .74, over models of 3M to
# 330M parameters (benchmarks/plan.py, docs/scale.md). Where oneDNN multiplies, the rest takes a
# larger part: .34 to .52 at 10M and 60M (docs/benchmarks.md). On a GPU nothing has been measured.
EFFICIENCY = {"cpu": 0.65, "cpu, oneDNN": 0.46, "cuda": 0.5}


def plan_report(
    model: str, *, examples: int, length: int, memory: float = 0, tflops: float = 0
) -> Report:
    """Plan for a model of which the configuration is enough.

    Args:
        model: As in `empty_model`.
        examples: Number of examples.
        length: Tokens of each, half of them scored.
        memory: GiB of the device; 0 for what is free on this machine.
        tflops: 10¹² operations a second; 0 to measure here, or to assume for another device.

    Raises:
        InputError: The configuration cannot be read or used.
    """
    shape = shape_of(empty_model(model))
    free = free_memory()
    if memory:
        free = Free(device=memory * GIB, host=free.host or free.device)
    large = memory or torch.cuda.is_available()
    work = Work(
        tokens=examples * length,
        scored=examples * length // 2,
        batch_tokens=8192 if large else 1024,
        longest=length,
        keep=1e-3 if shape.total > 1e9 else 1e-2,
    )
    choice = plan(shape, work, free)
    dtype = torch.float32 if shape.itemsize == 4 else torch.bfloat16
    rate, source = tflops * 1e12, "given"
    if not rate and memory:
        rate, source = ASSUMED_RATE, "assumed for a large accelerator"
    if not rate:
        rate, source = scoring_rate(dtype)
    seconds = choice.operations / rate + choice.moved / ASSUMED_BUS
    rows: list[dict[str, object]] = [
        {"what": purpose, "GiB": size / GIB} for purpose, size in choice.memory.items()
    ]
    rows += [
        {"what": "all on the device", "GiB": choice.device / GIB},
        {"what": "sums and candidates in CPU memory", "GiB": choice.host / GIB},
        {"what": "free on the device", "GiB": free.device / GIB},
        {"what": "free in CPU memory", "GiB": free.host / GIB},
    ]
    lines = [
        ("fits: " if choice.fits else "DOES NOT FIT; the least is: ") + choice.summary(),
        _chosen(shape, work, choice, free),
        f"time: {seconds / 60:.3g} min at {rate / 1e12:.3g} TFLOP/s ({source}); "
        f"{choice.operations:.3g} operations, {choice.moved / GIB:.3g} GiB moved to CPU memory "
        f"at {ASSUMED_BUS / 1e9:.3g} GB/s",
        f"files: at most {choice.sparse / 1e6:.4g} MB of scores at keep {work.keep:g}, "
        f"{choice.dense / 1e6:.4g} MB if dense; {shape.total:,} prunable weights",
        f"assumed: {examples} examples of {length} tokens, half scored; one kind of sum in fp32; "
        "attention that does not keep its weights; nine tenths of free memory",
    ]
    lines.insert(2, _from_disk(shape, work, rate))
    return Report(rows, lines)


def _chosen(shape: Shape, work: Work, choice: Plan, free: Free) -> str:
    if not is_streamed(shape, work, choice, free):
        return "resect score will hold the model in memory"
    enough = on_device(streamed(shape, work, free), free) <= SAFE * free.device
    return "resect score will read it block by block from disk" + (
        "" if enough else ", for which memory does not suffice either"
    )


def _from_disk(shape: Shape, work: Work, rate: float) -> str:
    need = streamed(shape, work)
    return (
        f"block by block from disk (resect score --stream): {need.device / GIB:.3g} GiB on the "
        f"device, {need.host / GIB:.3g} GiB of candidates in CPU memory, "
        f"{need.disk / GIB:.3g} GiB of scratch, {need.moved / GIB:.4g} GiB of traffic, "
        f"{need.operations / rate / 60:.3g} min of products"
    )
