"""Several processes that share one job: each takes some of the examples, and sums are added up.

`torchrun` starts the processes; each loads the whole model and is given all examples, of which it
runs its share. A model whose weights are sharded over the processes (FSDP2) is run by all of them
at the same time, and adds up gradients by itself.

A process that fails ends the job: it says why, and the others, which then cannot go on, are silent.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from resect.errors import InputError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Processes:
    """The processes of a job, seen from one of them; the default is a process of its own.

    Attributes:
        rank: Number of this process, from 0; process 0 writes what the job makes.
        count: Number of processes.
        group: Their process group, None for that of all processes.
    """

    rank: int = 0
    count: int = 1
    group: dist.ProcessGroup | None = None

    @property
    def neighbours(self) -> int:
        """Number of processes on this machine, this one included."""
        return 1 if self.count == 1 else int(os.environ.get("LOCAL_WORLD_SIZE", self.count))

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return what this process does of a list that all have in the same order."""
        return items[self.rank :: self.count]

    def add(self, total: Tensor) -> None:
        """Add a sum [*] up over all processes, in place; all call this in the same order.

        Raises:
            InputError: Another process has ended, or the processes cannot exchange tensors.
        """
        if is_sharded(total):
            # FSDP2 has taken the mean of the gradients over the processes already.
            total.mul_(self.count)
        elif self.count > 1:
            self._reduce(total, dist.ReduceOp.SUM)

    def either(self, flags: Sequence[bool]) -> list[bool]:
        """Return for each flag whether any process has it set."""
        if self.count == 1:
            return list(flags)
        any_set = torch.tensor([int(flag) for flag in flags], dtype=torch.int32)
        self._reduce(any_set, dist.ReduceOp.MAX)
        return [bool(flag) for flag in any_set.tolist()]

    def least(self, numbers: Sequence[float]) -> list[float]:
        """Return the least that any process has of each number."""
        if self.count == 1:
            return list(numbers)
        smallest = torch.tensor(list(numbers), dtype=torch.float64)
        self._reduce(smallest, dist.ReduceOp.MIN)
        values: list[float] = smallest.tolist()
        return values

    def meet(self) -> None:
        """Wait until all processes are here, so that none of them has failed before."""
        self.either([True])

    def _reduce(self, tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> None:
        try:
            dist.all_reduce(tensor, op=operation, group=self.group)
        except RuntimeError as error:
            raise InputError(
                "a process of this job has ended, or cannot exchange its sums with the others",
                got=str(error).splitlines()[0],
                fix="look for its message above; without one it was killed, mostly for lack of "
                "memory. A process group of your own needs the backend cpu:gloo,cuda:nccl",
            ) from error


ALONE = Processes()


def is_sharded(tensor: Tensor) -> bool:
    """Tell whether each process holds a part of the tensor."""
    # DTensor is not imported for this, because most jobs have none.
    return hasattr(tensor, "full_tensor")


def sharded_modules(modules: Iterable[torch.nn.Module]) -> list[Any]:
    """Return those of the modules of a model that FSDP2 shards.

    After a pass their parameters may be copies that were gathered for it, which look like any other
    parameter; what is written to those is lost.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return []
    # Told by its name, because importing FSDP takes a while.
    return [
        module
        for module in modules
        if "FSDPModule" in {base.__name__ for base in type(module).__mro__}
    ]


def gathered(tensor: Tensor) -> Tensor:
    """Return a tensor itself, or gather a sharded one; all processes call this in the same order.

    The result is on the CPU, since weights are sharded for want of memory elsewhere.
    """
    if not is_sharded(tensor):
        return tensor
    gathered: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
    return gathered.cpu()


def processes_of(weights: Iterable[Tensor], chosen: Processes) -> Processes:
    """Return the processes that run a model: those given, or those that its weights lie on.

    Raises:
        InputError: The weights are sharded in a way that this package does not know.
    """
    sharded: Any = next((weight for weight in weights if is_sharded(weight)), None)
    if sharded is None:
        return chosen
    count = dist.get_world_size()
    if sharded.device_mesh.size() != count or sharded.device_mesh.ndim != 1:
        raise InputError(
            "the weights are sharded in a way that cannot be scored",
            got=f"a mesh of {tuple(sharded.device_mesh.shape)} for {count} processes",
            allowed="fully_shard over all processes",
            fix="shard with fully_shard(model) alone, without tensor parallelism or replicas",
        )
    return Processes(dist.get_rank(), count)


def launched() -> int:
    """Return how many processes `torchrun` started, 1 without it."""
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR")
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in names) else 1


def refuse_processes(work: str, fix: str) -> None:
    """Refuse to do in each of several processes what a single one is meant to do.

    Raises:
        InputError: `torchrun` started several.
    """
    if launched() > 1:
        raise InputError(
            f"{work} is not shared by processes", got=f"{launched()} of torchrun", fix=fix
        )


@contextlib.contextmanager
def process_group() -> Iterator[Processes]:
    """Join the processes that `torchrun` started; without it, be alone.

    If the block fails in several processes, or in one and then in those that wait for it, the
    first keeps its exception and the others leave with `SystemExit`.

    Raises:
        InputError: There are more processes on this machine than GPUs.
    """
    if launched() == 1:
        yield ALONE
        return
    on_gpu = torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if on_gpu and local >= torch.cuda.device_count():
        raise InputError(
            "there are more processes than GPUs on this machine",
            got=f"process {local + 1} of it",
            allowed=f"≤ {torch.cuda.device_count()}",
            fix="lower --nproc-per-node",
        )
    if on_gpu:
        torch.cuda.set_device(local)
    store, rank, count = next(rendezvous("env://"))
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=count)
    fine = False
    try:
        yield Processes(rank, count)
        fine = True
    finally:
        if fine:
            dist.destroy_process_group()
        elif not _first_to_fail(store, rank):
            stopped = isinstance(sys.exception(), KeyboardInterrupt)
            raise SystemExit(130 if stopped else 2)


class _Store(Protocol):
    """The key-value store that the processes of a job share."""

    def add(self, key: str, amount: int, /) -> int:
        """Add to a counter and return its value."""


def _first_to_fail(store: _Store, rank: int) -> bool:
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        return bool(store.add(f"resect/failed/{attempt}", 1) == 1)
    except RuntimeError:
        # The launcher, which keeps the store, is gone.
        return rank == 0
