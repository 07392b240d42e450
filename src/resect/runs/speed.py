"""From what is counted to seconds: what a machine does, assumed of another one or measured here."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

import torch

from resect.attribution.estimate import ASSUMED_RATE, scoring_rate
from resect.attribution.plan import GIB, Shape
from resect.machine.memory import free_memory
from resect.runs.passes import Passes, RowSize, SetSize

# What a CPU does beside products (docs/design/plans.md): small operations of a call of a block and
# of a reply that is encoded, judged and written, and how often what the linear layers of a block
# read and write goes through memory again in norms, turns, attention and gates.
OPERATIONS_A_BLOCK = 120
OPERATIONS_A_ROW = 180
TRAFFIC = 7.0


@dataclass(frozen=True)
class Assumed:
    """What is not in the configuration.

    Attributes:
        memory: GiB of the device, all GPUs of a run together.
        host: GiB of CPU memory for sums that the device has no room for.
        rate: Floating-point operations a second that whole passes reach.
        bandwidth: Bytes a second at which weights are read while a reply is written.
        step: Seconds of a call of a block, whatever its size: the time it takes to start its work.
        overlaps: Whether work is started while other work is done, as on a GPU; else both add up.
        traffic: How often the inputs and outputs of linear layers go through memory again; 0 where
            that is part of the rate.
        row: Seconds of a reply outside of the model.
        cell: Seconds of a cell whatever it asks: masks, cutting, files.
        training: Seconds before the first step of a training.
        length: Tokens of an example, half of them scored.
        examples: Examples of a set without a limit.
        prompts: Prompts of a probe without a limit.
    """

    memory: float = 80.0
    host: float = 128.0
    rate: float = ASSUMED_RATE
    bandwidth: float = 1.5e12
    step: float = 1e-3
    overlaps: bool = True
    traffic: float = 0.0
    row: float = 7e-4
    cell: float = 0.05
    training: float = 0.5
    length: int = 256
    examples: int = 412
    prompts: int = 500

    def size(self, limit: int | None) -> SetSize:
        """Return the rows of a set that is not known, of which a probe asks at most so many."""
        row = RowSize(self.length - self.length // 2, self.length // 2)
        return SetSize((row,) * self.examples, (row,) * (limit or self.prompts))

    def seconds(self, passes: Passes, shape: Shape) -> float:
        """Return the time of passes through a model."""
        operations = 2.0 * (
            shape.active * passes.tokens + shape.hidden * shape.vocabulary * passes.places
        )
        moved = self.traffic * shape.itemsize * sum(shape.features.values()) * passes.tokens
        # A slow device is bound by its products, a quick one by what it reads.
        work = max(operations / self.rate, passes.calls * shape.parameters / self.bandwidth)
        work += moved / self.bandwidth
        started = passes.calls * len(shape.prunable) * self.step
        return (max(work, started) if self.overlaps else work + started) + passes.rows * self.row


def here(jobs: int = 1) -> Assumed:
    """Return what this machine does in each of so many processes, measured in about a second.

    These are the rate of a matrix product and that at which memory is read, with the threads that a
    process has, and the time of a small operation, of which the rest is counted.
    """
    free, gpu = free_memory(), torch.cuda.is_available()
    with _threads(jobs):
        rate, bandwidth, small = scoring_rate(torch.float32).operations, _bandwidth(), _small()
    return Assumed(
        memory=free.device / GIB,
        host=(free.host or free.device) / GIB,
        rate=rate,
        bandwidth=bandwidth,
        step=OPERATIONS_A_BLOCK * small,
        overlaps=gpu,
        traffic=0.0 if gpu else TRAFFIC,
        row=OPERATIONS_A_ROW * small,
    )


@contextlib.contextmanager
def _threads(jobs: int) -> Iterator[None]:
    """Run the block with the threads of a worker, if there are several."""
    before = torch.get_num_threads()
    try:
        if jobs > 1:
            torch.set_num_threads(max(1, before // jobs))
        yield
    finally:
        torch.set_num_threads(before)


def _small() -> float:
    """Return the seconds of a small operation."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    number, seconds = torch.ones(64, device=device), inf
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(100):
            number = number * 1.0
        seconds = min(seconds, time.perf_counter() - start)
    return seconds / 100


def _bandwidth() -> float:
    """Return the bytes a second that this machine reads, measured in a moment."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    read = torch.ones(2**24, dtype=torch.float32, device=device)
    seconds = inf
    # The best of several, as others may use the machine meanwhile.
    for _ in range(10):
        start = time.perf_counter()
        read.sum().item()  # waits for a GPU
        seconds = min(seconds, time.perf_counter() - start)
    return read.nbytes / seconds
