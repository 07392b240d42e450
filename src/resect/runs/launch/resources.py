"""What a job asks for, from the plan where the user leaves it open."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from resect.errors import ResectError
from resect.runs.config import RunConfig
from resect.runs.forecast import forecast
from resect.studies.cells import Cell

GIB = 2**30
# Time beyond the plan: loading, a crowded file system, and what the plan does not know of.
SPARE_TIME = 2.0
START_MINUTES = 15
UNPLANNED_MINUTES = 24 * 60
PYTHON_GIB = 4


@dataclass(frozen=True)
class Resources:
    """What each job asks for.

    Attributes:
        partition: Slurm partition; "" for the usual one.
        minutes: Most time; 0 for twice what the plan says, or a day if it says nothing.
        gpus: GPUs a job; None for one on Slurm.
        memory: GiB of CPU memory; 0 for what the plan says, or whatever the cluster gives.
        cpus: CPU cores a job.
        extra: Further `sbatch` options by name, for instance account or qos.
    """

    partition: str = ""
    minutes: int = 0
    gpus: int | None = None
    memory: float = 0
    cpus: int = 1
    extra: tuple[tuple[str, str], ...] = ()


def planned(
    config: RunConfig, cells: Iterable[Cell], request: Resources, launcher: str, parts: int
) -> Resources:
    """Fill up what a job asks for from the plan of the cells.

    Args:
        config: The run's configuration.
        cells: The cells that are not done.
        request: What the user asks for; it wins.
        launcher: The scheduler.
        parts: Number of jobs that share the work.
    """
    minutes, memory = float(UNPLANNED_MINUTES), 0.0
    if not (request.minutes and request.memory) and launcher == "slurm":
        try:
            needs = forecast(config, cells)
        except ResectError:
            # The models can be read by the nodes alone; a day, and the memory that the cluster
            # gives, must do.
            needs = []
        if needs:
            seconds = sum(need.seconds for need in needs) / parts
            minutes = START_MINUTES + SPARE_TIME * seconds / 60
            # Two bytes a weight pass through CPU memory on their way to the device.
            largest = max(2.0 * need.parameters + need.scoring.host for need in needs)
            memory = PYTHON_GIB + 1.25 * largest / GIB
    gpus = request.gpus if request.gpus is not None else int(launcher == "slurm")
    return replace(
        request,
        minutes=request.minutes or int(minutes) + 1,
        memory=request.memory or float(int(memory + 0.999)),
        gpus=gpus,
    )
