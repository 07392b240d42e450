"""What the portable mode costs: products, square roots and training on three paths.

    python benchmarks/common_path.py

native: as torch chooses; compatible: MKL's COMPATIBLE branch for all products; common: the path
that is taken (docs/design/organism.md). One thread, processor time, each path in a process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace

PATHS = ("native", "compatible", "common")
STEPS, CALLS, NUMBERS = 40, 300, 1_000_000


def seconds(call: Callable[[], object], times: int) -> float:
    """Return the processor seconds of one call, the mean of many."""
    start = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - start) / times


def measure(path: str) -> str:
    """Return the row of a path; the first to load torch in its process."""
    if path == "common":
        from resect.machine.portable import pin

        pin()
    import torch

    from resect.model import LoadedModel, take_path
    from resect.organism.recipe import Recipe
    from resect.organism.tokenizer import make_tokenizer
    from resect.organism.training import new_model, pretrain
    from resect.organism.world import World

    torch.set_num_threads(1)
    take_path()
    draw = torch.Generator().manual_seed(0)
    inputs, weights = (torch.randn(rows, 128, generator=draw) for rows in (290, 384))
    product = seconds(lambda: torch.nn.functional.linear(inputs, weights), CALLS)
    numbers = torch.rand(NUMBERS, generator=draw)
    off = float((numbers.sqrt() != numbers.double().sqrt().float()).float().mean())
    recipe, world = replace(Recipe(), steps=STEPS), World(0)
    tokenizer = make_tokenizer(world)
    loaded = LoadedModel(new_model(tokenizer, recipe, 0), tokenizer)
    training = seconds(lambda: pretrain(loaded, world, recipe, lambda _done, _of: None), 1)
    return f"| {path} | {1e3 * product:.2f} ms | {training:.1f} s | {100 * off:.1f} % |"


def main() -> None:
    """Print the table, or a row of it."""
    if len(sys.argv) > 1:
        print(measure(sys.argv[1]))
        return
    print(f"| path | 290 × 128 by 128 × 384 | {STEPS} steps of `base` | roots not the nearest |")
    print("|---|--:|--:|--:|", flush=True)
    for path in PATHS:
        compatible = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "COMPATIBLE"}
        settings = os.environ | (compatible if path == "compatible" else {})
        subprocess.run([sys.executable, __file__, path], env=settings, check=True)


if __name__ == "__main__":
    main()
