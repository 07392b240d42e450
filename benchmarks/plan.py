"""How far the plan of `resect coverage --plan` is from what scoring takes, over five model sizes.

Models are Llamas with random weights in fp32. Each is planned from its shape alone and scored in a
process of its own; `ratio` is the larger of estimate and measurement over the smaller. Time is that
of `attribute_many`, the median of three runs after one; the estimate takes half of a matrix
product's rate, measured in the same process just before. Memory is the most that is resident minus
what is resident before there is a model.

    python benchmarks/plan.py -o plan.json        within 1.5× in time and 1.2× in memory, or exit 1
    python benchmarks/plan.py --quick             the two smallest sizes
"""

from __future__ import annotations

import argparse
import json
import resource
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


def peak() -> int:
    """Return the most bytes that were resident in this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def child(name: str) -> dict[str, Any]:
    import psutil
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from resect.attribution import AttributeSettings, attribute_many
    from resect.model.plan import Work, plan, shape_of
    from resect.model.room import EFFICIENCY, free_memory, matrix_rate
    from resect.records import Encoded
    from resect.stats import rng

    hidden, middle, layers, words = SIZES[name]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=middle,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        vocab_size=words,
        tie_word_embeddings=True,
        max_position_embeddings=LENGTH,
    )
    draw = rng("benchmarks/plan", 0)
    examples = [
        Encoded(f"e{at}", tuple(draw.integers(0, words, LENGTH).tolist()), LENGTH // 2)
        for at in range(EXAMPLES)
    ]
    rate = EFFICIENCY * matrix_rate(torch.float32)
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
    found = plan(shape, work, free_memory())
    before = psutil.Process().memory_info().rss
    model = LlamaForCausalLM(config).eval()
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        attribute_many(model, _Words(), examples, settings=replace(settings))
        seconds.append(time.perf_counter() - start)
    return {
        "model": name,
        "weights": shape.total,
        "planned_seconds": found.operations / rate,
        "seconds": statistics.median(seconds[1:]),
        "planned_bytes": found.device + found.host,
        "bytes": peak() - before,
        "plan": found.summary(),
        "parts": dict(found.memory),
        "gflops": rate / 1e9,
    }


class _Words:
    """Enough of a tokenizer for a fingerprint."""

    backend_tokenizer = None
    chat_template = None

    def get_vocab(self) -> dict[str, int]:
        return {}


def off(one: float, other: float) -> float:
    return max(one, other) / min(one, other)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--child", choices=SIZES)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options.child)))
        return
    rows = []
    print("| model | planned s | s | ratio | planned MB | MB | ratio |")
    print("|---|---|---|---|---|---|---|")
    for name in list(SIZES)[: 2 if options.quick else None]:
        run = subprocess.run(
            [sys.executable, __file__, "--child", name], capture_output=True, text=True, check=True
        )
        row = json.loads(run.stdout.splitlines()[-1])
        row["time_ratio"] = off(row["planned_seconds"], row["seconds"])
        row["memory_ratio"] = off(row["planned_bytes"], row["bytes"])
        rows.append(row)
        print(
            f"| {name} | {row['planned_seconds']:.2f} | {row['seconds']:.2f} | "
            f"{row['time_ratio']:.2f} | {row['planned_bytes'] / 1e6:.0f} | "
            f"{row['bytes'] / 1e6:.0f} | {row['memory_ratio']:.2f} |",
            flush=True,
        )
    if options.output:
        from resect.store import write_json

        write_json(options.output, rows)
    missed = [
        row["model"] for row in rows if row["time_ratio"] > TIME or row["memory_ratio"] > MEMORY
    ]
    print(f"beyond {TIME}× in time or {MEMORY}× in memory: {', '.join(missed) or 'none'}")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
