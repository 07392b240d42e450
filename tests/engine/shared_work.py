"""What `test_invariance` has three processes do: score together, and write the scores.

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
import transformers
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.spawn import start_processes

import tiny
from resect.attribution import AttributeSettings, attribute_many
from resect.errors import InputError
from resect.model import room
from resect.model.plan import Free
from resect.model.prunable import blocks
from resect.ranks import ALONE, Ranks, joined
from resect.scores import METHODS
from resect.store import write_text

MODELS = ("qwen3", "mixtral")
REDUCTIONS = tuple(METHODS["snip"])
EXAMPLES = 7
FEW = 2  # so that the third process has none


def write(folder: Path, name: str, ranks: Ranks, model: Any, **options: Any) -> None:
    """Score with all processes of `ranks` and write what this one gets."""
    settings = AttributeSettings(dense=True, method=options.get("method", "snip"))
    found = attribute_many(
        model,
        tiny.tokenizer(),
        tiny.examples(options.get("examples", EXAMPLES)),
        reductions=options.get("reductions", REDUCTIONS),
        settings=settings,
        ranks=ranks,
    )
    for reduction, scores in found.items():
        scores.save(folder / f"{name}-{reduction}-{dist.get_rank()}.scores.safetensors")


def sharded(architecture: str) -> Any:
    """Return a model whose weights lie on all processes."""
    model = tiny.build(architecture)
    for block in blocks(model):
        fully_shard(block)
    return fully_shard(model)


def work(rank: int, folder: Path) -> None:
    """Score in every way that takes several processes."""
    os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(rank)
    with joined() as ranks:
        pair = dist.new_group([0, 1])
        for architecture in MODELS:
            model = tiny.build(architecture)
            write(folder, f"{architecture}-3", ranks, model)
            if ranks.rank < 2:
                write(folder, f"{architecture}-2", Ranks(ranks.rank, 2, pair), model)
            write(
                folder,
                f"{architecture}-sharded",
                # Sharded weights are run by all processes, so this must not matter.
                ALONE if architecture == "qwen3" else ranks,
                sharded(architecture),
                reductions=("signed", "opposite", "abs_of_mean"),
            )
        model = tiny.build("qwen3")
        write(folder, "few", ranks, model, examples=FEW)
        signed = ("signed",)
        write(folder, "wanda", ranks, model, examples=FEW, method="wanda", reductions=signed)
        # The last process has next to no memory: alone, it would score one layer a pass.
        scarce = Free(1e12 if rank < 2 else 1e3, 0.0)
        with mock.patch.object(room, "free_memory", return_value=scarce):
            write(folder, "uneven", ranks, model)
            write(folder, "uneven-sharded", ranks, sharded("qwen3"), reductions=signed)
        try:
            write(folder, "refused", ranks, sharded("qwen3"))
        except InputError as error:
            write_text(folder / f"refused-{ranks.rank}.txt", str(error))
        ranks.meet()


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    os.environ |= {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for module in MODELS:  # before the fork, so that it is done once
        tiny.configuration(module)
        getattr(transformers, tiny.ARCHITECTURES[module][0])
    start_processes(  # type: ignore[no-untyped-call]
        work, (Path(sys.argv[1]),), nprocs=3, start_method="fork"
    )
