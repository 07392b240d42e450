"""What products of float32 matrices cost on this CPU: torch's own choice against oneDNN.

    python benchmarks/products.py [--threads 1] [--packed] [--quick]

The shapes are those of layers with their rows: forward, and the gradients of inputs and of weights.
Each time is the best of several; a row has the rate of torch and how many times as fast oneDNN is.
--packed compares oneDNN with itself instead: how many times as fast a forward product is with a
weight that was packed before.
Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from resect.model import packed, products

# Name -> outputs and inputs of a layer.
LAYERS = {
    "organism, 384 × 128": (384, 128),
    "SmolLM2, 576 × 576": (576, 576),
    "SmolLM2, 1536 × 576": (1536, 576),
    "SmolLM2's head, 49152 × 576": (49152, 576),
    "8192 × 2048": (8192, 2048),
}
ROWS = (1, 16, 64, 512)
PACKED_ROWS = (4, 16, 64, 128, 512)


def seconds_of(multiply: Callable[[], Tensor], least: float) -> float:
    """Return the seconds that one call takes, the best of three series of `least` seconds."""
    multiply()
    best = float("inf")
    for _ in range(3):
        start, calls = time.perf_counter(), 0
        while time.perf_counter() - start < least:
            multiply()
            calls += 1
        best = min(best, (time.perf_counter() - start) / calls)
    return best


def row_of(name: str, rows: int, least: float) -> str:
    """Return a row of the table."""
    outputs, inputs = LAYERS[name]
    states, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs)
    slopes = torch.randn(rows, outputs)
    ways = [(states, weight.t()), (slopes, weight), (slopes.t(), states)]
    cells = []
    for left, right in ways:
        torchs = seconds_of(partial(torch.mm, left, right), least)
        ours = seconds_of(partial(products._by_onednn, left, right), least)
        rate = 2e-9 * rows * inputs * outputs / torchs
        cells.append(f"{rate:.0f} | {torchs / ours:.2f}")
    return f"| {name} | {rows} | {' | '.join(cells)} |"


def packed_row(name: str, rows: int, least: float) -> str:
    """Return a row of the table of packed weights, of each dtype."""
    cells = []
    for dtype in packed.DTYPES:
        sizes = (rows, LAYERS[name][1]), LAYERS[name]
        states, weight = (torch.randn(size).to(dtype) for size in sizes)
        ordered = packed._reordered(weight)
        plain, ready = (
            seconds_of(partial(packed.multiplied, states, matrix), least)
            for matrix in (weight, ordered)
        )
        cells.append(f"{plain / ready:.2f}")
    return f"| {name} | {rows} | {' | '.join(cells)} |"


def main(arguments: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--packed", action="store_true", help="packed weights against plain ones")
    parser.add_argument("--quick", action="store_true", help="one shape, to show that it runs")
    options = parser.parse_args(arguments)
    if not products._works():
        print("oneDNN cannot multiply here")
        return 1
    torch.set_num_threads(options.threads)
    least = 0.002 if options.quick else 0.1
    names = list(LAYERS)[: 1 if options.quick else None]
    if options.packed:
        print("| layer | rows | float32, times | bfloat16, times |\n|---|--:|--:|--:|")
        for name in names:
            for rows in PACKED_ROWS:
                print(packed_row(name, rows, least), flush=True)
        return 0
    heads = ("forward", "of inputs", "of weights")
    print("| layer | rows | " + " | ".join(f"{head}, GFLOP/s | times" for head in heads) + " |")
    print("|---|--:" + "|--:" * 6 + "|")
    for name in names:
        for rows in ROWS:
            print(row_of(name, rows, least), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
