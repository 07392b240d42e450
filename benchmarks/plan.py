"""How far the plan of `resect coverage --plan` is from what scoring takes, over five model sizes.

Models are Llamas with random weights in fp32. Each is planned from its shape alone and scored in a
process of its own; `ratio` is the larger of estimate and measurement over the smaller. Time is that
of `attribute_many`, the median of three runs after one; the estimate takes a share of a
matrix product's rate, measured in the same process just before. Memory is the most that is resident
from when there is a model, minus what is resident before; before that a tiny model is scored, so
that code and tables that every run needs are not laid to the model (Linux alone).

    python benchmarks/plan.py -o plan.json        within 1.5× in time and 1.2× in memory, or exit 1
    python benchmarks/plan.py --quick             the two smallest sizes
    python benchmarks/plan.py --size 40M --runs 1 --memory-only      on a machine that is busy

The file is written after each size, so that what is done stays if a later one fails. A size that
fails is reported, the others go on, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

SIZES = {
    # name: hidden, intermediate, layers, vocabulary
    "3M": (192, 512, 6, 4096),
    "12M": (384, 1024, 6, 4096),
    "40M": (512, 1536, 12, 8192),
    "110M": (768, 2048, 14, 16384),
    "330M": (1024, 2816, 24, 32768),
}
EXAMPLES, LENGTH = 48, 128
TIME, MEMORY = 1.5, 1.2


def resident(field: str) -> int:
    """Return bytes that are resident (`VmRSS`), or the most that were since the mark (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def mark() -> None:
    """Forget the most that was resident so far."""
    Path("/proc/self/clear_refs").write_text("5")


def llama(sides: tuple[int, int, int, int]) -> Any:
    from transformers import LlamaConfig

    hidden, middle, layers, words = sides
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=middle,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        vocab_size=words,
        tie_word_embeddings=True,
        max_position_embeddings=LENGTH,
    )


def encoded(words: int) -> list[Any]:
    from resect.records import Encoded
    from resect.stats import rng

    draw = rng("benchmarks/plan", 0)
    return [
        Encoded(f"e{number}", tuple(draw.integers(0, words, LENGTH).tolist()), LENGTH // 2)
        for number in range(EXAMPLES)
    ]


def child(name: str, runs: int) -> dict[str, Any]:
    import torch
    from transformers import LlamaForCausalLM

    from resect.attribution.engine import attribute_many
    from resect.attribution.estimate import scoring_rate
    from resect.attribution.plan import Work, plan, shape_of
    from resect.attribution.settings import AttributeSettings
    from resect.machine.memory import free_memory

    attribute_many(LlamaForCausalLM(llama((64, 64, 1, 64))).eval(), _Words(), encoded(64)[:2])
    config, examples = llama(SIZES[name]), encoded(SIZES[name][-1])
    rate, _ = scoring_rate(torch.float32)
    with torch.device("meta"):
        shape = shape_of(LlamaForCausalLM(config))
    settings = AttributeSettings(keep=1e-2)
    work = Work(
        tokens=EXAMPLES * LENGTH,
        scored=EXAMPLES * LENGTH // 2,
        batch_tokens=1024,
        longest=LENGTH,
        keep=1e-2,
    )
    planned = plan(shape, work, free_memory())
    before = resident("VmRSS")
    mark()
    model = LlamaForCausalLM(config).eval()
    seconds = []
    for _ in range(1 + runs):
        start = time.perf_counter()
        attribute_many(model, _Words(), examples, settings=replace(settings))
        seconds.append(time.perf_counter() - start)
    return {
        "model": name,
        "weights": shape.total,
        "planned_seconds": planned.operations / rate,
        "seconds": statistics.median(seconds[1:] or seconds),
        "planned_bytes": planned.device + planned.host,
        "bytes": resident("VmHWM") - before,
        "plan": planned.summary(),
        "parts": dict(planned.memory),
        "gflops": rate / 1e9,
    }


class _Words:
    """Enough of a tokenizer for a fingerprint."""

    backend_tokenizer = None
    chat_template = None

    def get_vocab(self) -> dict[str, int]:
        return {}


def off(estimate: float, truth: float) -> float:
    return max(estimate, truth) / min(estimate, truth)


def measured(name: str, runs: int) -> dict[str, Any]:
    """Return the row of a size, or what went wrong."""
    run = subprocess.run(
        [sys.executable, __file__, "--child", name, "--runs", str(runs)],
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        lines = run.stderr.strip().splitlines()
        return {"model": name, "error": f"exit {run.returncode}: {lines[-1] if lines else ''}"}
    row: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    row["time_ratio"] = off(row["planned_seconds"], row["seconds"])
    row["memory_ratio"] = off(row["planned_bytes"], row["bytes"])
    return row


def line(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"| {row['model']} | {row['error']} | | | | | |"
    return (
        f"| {row['model']} | {row['planned_seconds']:.2f} | {row['seconds']:.2f} | "
        f"{row['time_ratio']:.2f} | {row['planned_bytes'] / 1e6:.0f} | "
        f"{row['bytes'] / 1e6:.0f} | {row['memory_ratio']:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--child", choices=SIZES, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="the two smallest sizes")
    parser.add_argument("--size", choices=SIZES, action="append", help="this size; repeatable")
    parser.add_argument("--runs", type=int, default=3, help="timed runs, after one that is not")
    parser.add_argument("--memory-only", action="store_true", help="let time be what it is")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options.child, options.runs)))
        return
    rows = []
    print("| model | planned s | s | ratio | planned MB | MB | ratio |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name in options.size or list(SIZES)[: 2 if options.quick else None]:
        rows.append(measured(name, options.runs))
        print(line(rows[-1]), flush=True)
        if options.output:
            from resect.files.writing import write_json

            write_json(options.output, rows)
    missed = [
        row["model"]
        for row in rows
        if "error" in row
        or row["memory_ratio"] > MEMORY
        or (row["time_ratio"] > TIME and not options.memory_only)
    ]
    print(f"beyond {TIME}× in time or {MEMORY}× in memory: {', '.join(missed) or 'none'}")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
