"""Build the organisms of several seeds at once, each stage in a process of its own.

A stage is trained by one thread, so that its weights do not depend on the number of cores. The
cores are used all the same: stages that do not wait for each other are trained side by side.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from ctypes import c_double
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from resect.organism.recipe import Recipe
from resect.organism.stages import PARENTS, OnProgress, Organism, build, organism_root, with_parents


@dataclass(frozen=True)
class Order:
    """An organism to build: its seed, its stages and its recipe."""

    seed: int
    stages: tuple[str, ...]
    recipe: Recipe = field(default_factory=Recipe)

    @property
    def organism(self) -> Organism:
        """Where it is in the cache."""
        return Organism(organism_root(self.recipe) / f"seed-{self.seed}", self.seed)


class Job(NamedTuple):
    """One stage to train."""

    order: Order
    stage: str


class Shares(Protocol):
    """How much of each stage is done, by slot, in [0, 1]; shared by all processes."""

    def __getitem__(self, slot: int, /) -> float:
        """Return the share of a stage."""

    def __setitem__(self, slot: int, share: float, /) -> None:
        """Note the share of a stage."""


# Set in a worker when it starts.
_done: Shares | None = None


def build_many(
    orders: Sequence[Order], *, jobs: int = 1, on_progress: OnProgress | None = None
) -> None:
    """Train every stage that is not in the cache, `jobs` of them at a time.

    Args:
        orders: What to build; the stages that others are trained from are built as well.
        jobs: Worker processes, of one thread each.
        on_progress: Called with a label, documents trained on and documents in all.

    Raises:
        InputError: A stage is unknown, or a folder of the cache holds something else.
    """
    missing = [
        Job(order, stage)
        for order in orders
        for stage in with_parents(order.stages)
        if not order.organism.stage(stage).exists()
    ]
    if missing:
        _train(missing, jobs, on_progress)


def _train(missing: list[Job], jobs: int, on_progress: OnProgress | None) -> None:
    # The longest chain first: all other stages of an organism wait for its base.
    waiting = sorted(missing, key=lambda job: PARENTS[job.stage] is not None)
    context = multiprocessing.get_context("spawn")
    shares = context.Array(c_double, len(waiting), lock=False)
    slots = {job: slot for slot, job in enumerate(waiting)}
    sizes = [job.order.recipe.documents(job.stage) for job in waiting]
    running: dict[Future[None], Job] = {}
    with ProcessPoolExecutor(
        min(jobs, len(waiting)), mp_context=context, initializer=_start, initargs=(shares,)
    ) as pool:
        while waiting or running:
            blocked = {*waiting, *running.values()}
            for job in [job for job in waiting if _parent(job) not in blocked]:
                waiting.remove(job)
                running[pool.submit(_build_one, job, slots[job])] = job
            finished, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in finished:
                job = running.pop(future)
                future.result()
                shares[slots[job]] = 1.0
            if on_progress is not None:
                done = sum(shares[slot] * size for slot, size in enumerate(sizes))
                on_progress("organisms", round(done), sum(sizes))


def _parent(job: Job) -> Job | None:
    """Return the stage that must be there before this one."""
    parent = PARENTS[job.stage]
    return None if parent is None else Job(job.order, parent)


def _start(shares: Shares) -> None:
    """Keep the shared array in a worker."""
    global _done
    _done = shares


def _build_one(job: Job, slot: int) -> None:
    def report(_label: str, done: int, total: int) -> None:
        if _done is not None:
            _done[slot] = done / total

    order = job.order
    build(seed=order.seed, stages=(job.stage,), recipe=order.recipe, on_progress=report)
