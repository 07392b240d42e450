"""What `test_invariance` has several processes do: score together, and write the scores.

All of them write, because all are promised the same scores. They are forked from one process that
has imported everything, which takes longer than the work; `test_processes` uses torchrun.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.spawn import start_processes

import tiny
from resect.attribution import choices
from resect.attribution.engine import attribute_many
from resect.attribution.methods import METHODS
from resect.attribution.offloaded import attribute_streamed
from resect.attribution.settings import Pass
from resect.errors import InputError
from resect.files.writing import write_text
from resect.machine.memory import Free
from resect.machine.processes import ALONE, Processes, process_group
from resect.model.on_disk import open_shelf
from resect.model.prunable import blocks
from resect.records import CausalModel

MODELS = ("qwen3", "mixtral")
REDUCTIONS = tuple(METHODS["snip"])
EXAMPLES = 7
COUNTS = (2, 4)
FEW = 2  # so that the last process has none


def write(
    folder: Path, name: str, processes: Processes, model: CausalModel, **options: Any
) -> None:
    """Score with all processes and write what this one gets."""
    settings = Pass(dense=True, method=options.get("method", "snip"))
    scored = attribute_many(
        model,
        tiny.tokenizer(),
        tiny.examples(options.get("examples", EXAMPLES)),
        reductions=options.get("reductions", REDUCTIONS),
        settings=settings,
        processes=processes,
    )
    for reduction, scores in scored.items():
        scores.save(folder / f"{name}-{reduction}-{dist.get_rank()}.scores.safetensors")


def sharded(architecture: str) -> Any:
    """Return a model whose weights lie on all processes."""
    model = tiny.build(architecture)
    for block in blocks(model):
        fully_shard(block)
    return fully_shard(model)


def write_streamed(folder: Path, architecture: str, processes: Processes) -> None:
    """Score a model that each process reads block by block, and write what this one gets."""
    scored = attribute_streamed(
        open_shelf(folder / architecture),
        tiny.examples(EXAMPLES),
        reductions=REDUCTIONS,
        settings=Pass(dense=True, batch_size=2),
        processes=processes,
    )
    for reduction, scores in scored.items():
        name = f"{architecture}-streamed-{processes.count}-{reduction}-{processes.rank}"
        scores.save(folder / f"{name}.scores.safetensors")


def work(rank: int, folder: Path, count: int, port: int) -> None:
    """Score in every way that takes several processes."""
    os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(rank)
    os.environ["WORLD_SIZE"], os.environ["MASTER_PORT"] = str(count), str(port)
    with process_group() as processes:
        for architecture in MODELS:
            model = tiny.build(architecture)
            write(folder, f"{architecture}-shared-{count}", processes, model)
            write(
                folder,
                f"{architecture}-sharded-{count}",
                # Sharded weights are run by all processes, so this must not matter.
                ALONE if architecture == "qwen3" else processes,
                sharded(architecture),
                reductions=("signed", "opposite", "abs_of_mean"),
            )
            write_streamed(folder, architecture, processes)
        if count == max(COUNTS):
            odd_work(folder, processes)
        processes.meet()


def odd_work(folder: Path, processes: Processes) -> None:
    """Score with idle processes, with one that has next to no memory, and what is refused."""
    model = tiny.build("qwen3")
    write(folder, "few", processes, model, examples=FEW)
    signed = ("signed",)
    write(folder, "wanda", processes, model, examples=FEW, method="wanda", reductions=signed)
    # The last process has next to no memory: alone, it would score one layer a pass.
    scarce = Free(1e12 if processes.rank < processes.count - 1 else 1e3, 0.0)
    with mock.patch.object(choices, "free_memory", return_value=scarce):
        write(folder, "uneven", processes, model)
        write(folder, "uneven-sharded", processes, sharded("qwen3"), reductions=signed)
    try:
        write(folder, "refused", processes, sharded("qwen3"))
    except InputError as error:
        write_text(folder / f"refused-{processes.rank}.txt", str(error))


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    folder_ = Path(sys.argv[1])
    for name in MODELS:  # before the fork, so that it is done once
        tiny.save(name, folder_ / name)
    for processes in COUNTS:
        start_processes(  # type: ignore[no-untyped-call]
            work, (folder_, processes, free_port()), nprocs=processes, start_method="fork"
        )
