"""What the user left open about a pass, chosen by the free memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from resect.attribution.plan import (
    GIB,
    Plan,
    Shape,
    Streamed,
    Work,
    activations_a_token,
    plan,
    shape_of,
    streamed,
)
from resect.attribution.settings import Pass
from resect.errors import InputError
from resect.machine.devices import is_accelerator
from resect.machine.memory import Free, free_memory
from resect.machine.processes import ALONE, Processes, is_sharded
from resect.model.files import entries, weight_files
from resect.model.load import DTYPES, find_device
from resect.model.prunable import Coverage
from resect.model.shapes import empty_model
from resect.records import CausalModel, Encoded

# Measured on two CPU cores: batches of 4 to 8 rows of 128 tokens are quickest, 32 are slower.
CPU_TOKENS = 1024
# On a CPU activations of a batch take so many bytes at most, or those of one example: from about a
# hundred million weights on, larger batches cost memory and save no time that could be told.
CPU_ACTIVATIONS = 2**29
GPU_TOKENS = 8192
_log = logging.getLogger(__name__)


def device_of(model: CausalModel) -> torch.device:
    """Return where a model takes its tokens in: the device of its embeddings."""
    return next(model.get_input_embeddings().parameters()).device


def _usual_tokens(device: torch.device) -> int:
    """Return how many tokens of a batch suit a device."""
    return GPU_TOKENS if is_accelerator(device) else CPU_TOKENS


def planned(
    model: CausalModel,
    encoded: Sequence[Encoded],
    settings: Pass,
    coverage: Coverage,
    sums: int,
    processes: Processes = ALONE,
) -> Pass:
    """Return settings with nothing left open that depends on the free memory.

    Args:
        model: A Hugging Face causal LM.
        encoded: All examples of the job.
        settings: What the user has chosen.
        coverage: The model's prunable weights.
        sums: Kinds of sums that are kept of each weight.
        processes: The processes that share the examples; all get the same settings.
    """
    tokens = settings.batch_tokens
    if tokens == "auto":
        on_gpu = is_accelerator(device_of(model))
        tokens = GPU_TOKENS if on_gpu else cpu_tokens(shape_of(model, coverage))
    if settings.accumulator != "auto":
        return replace(settings, batch_tokens=tokens)
    chosen = plan_for(
        model, coverage, encoded, settings, tokens=tokens, sums=sums, processes=processes
    )
    if processes.rank == 0:
        _log.log(logging.INFO if chosen.fits else logging.WARNING, "%s", chosen.summary())
    return replace(
        settings,
        accumulator="cpu" if chosen.accumulator == "cpu" else "device",
        layers_per_pass=settings.layers_per_pass or chosen.layers,
        checkpoint=settings.checkpoint or chosen.checkpoint,
        batch_tokens=chosen.batch_tokens,
    )


def cpu_tokens(shape: Shape) -> int:
    """Return the most tokens of a batch of a model on a CPU."""
    return max(1, min(CPU_TOKENS, int(CPU_ACTIVATIONS / activations_a_token(shape))))


def streamed_tokens(
    model: CausalModel,
    encoded: Sequence[Encoded],
    settings: Pass,
    coverage: Coverage,
    *,
    sums: int,
    processes: Processes = ALONE,
) -> int:
    """Return the most tokens of a batch for a model that is read block by block.

    Args:
        model: The model; where it runs is where its embeddings are.
        encoded: All examples of the job.
        settings: What the user has chosen.
        coverage: The model's prunable weights.
        sums: Kinds of sums that are kept of each weight.
        processes: The processes that share the examples; all get the same.
    """
    if settings.batch_tokens != "auto":
        return settings.batch_tokens
    device = device_of(model)
    work = _work(encoded, settings, _usual_tokens(device), sums)
    work = replace(work, keep=settings.fraction(coverage.total))
    return streamed(shape_of(model, coverage), work, least_free({device}, processes)).tokens


def _work(examples: Sequence[Encoded], settings: Pass, tokens: int, sums: int) -> Work:
    longest = max(len(example.input_ids) for example in examples)
    return Work(
        tokens=sum(len(example.input_ids) for example in examples),
        scored=sum(example.scored_tokens for example in examples),
        batch_tokens=(settings.batch_size or 0) * longest or tokens,
        longest=(settings.batch_size or 1) * longest,
        sums=sums,
    )


def reading(
    folder: Path,
    encoded: Callable[[], Sequence[Encoded]],
    settings: Pass,
    *,
    sums: int,
    dtype: str | None = None,
    device: str | None = None,
    processes: Processes = ALONE,
) -> Reading:
    """Choose whether a checkpoint folder is loaded or read block by block (`how_to_read`).

    Args:
        folder: A checkpoint folder with safetensors weights.
        encoded: Returns all examples of the job; not called for a small model.
        settings: What the user has chosen.
        sums: Kinds of sums that are kept of each weight.
        dtype: Dtype of the weights in memory; None for the one on disk.
        device: Where the model runs; None for a GPU if there is one.
        processes: The processes that share the examples; all choose the same.

    Raises:
        InputError: There is no example, or the folder is no checkpoint of a causal LM.
        CoverageError: The model has block weights of an unknown kind.
    """
    tokens = _usual_tokens(torch.device(find_device(device)))

    def work() -> Work:
        examples = encoded()
        if not examples:
            raise InputError("there is no example to score")
        return _work(examples, settings, tokens, sums)

    keep = settings.fraction
    return how_to_read(folder, work, keep=keep, dtype=dtype, device=device, processes=processes)


def plan_for(
    model: CausalModel,
    coverage: Coverage,
    encoded: Sequence[Encoded],
    settings: Pass,
    *,
    tokens: int,
    sums: int,
    processes: Processes = ALONE,
) -> Plan:
    """Plan a pass of a loaded model on this machine, the same in all processes.

    Args:
        model: A Hugging Face causal LM.
        coverage: Its prunable weights.
        encoded: The examples.
        settings: What the user has chosen.
        tokens: Tokens of a batch, padding included, unless the settings say its examples.
        sums: Kinds of sums that are kept of each weight.
        processes: The processes that share the examples; all call this with the same arguments.

    Raises:
        InputError: Another process has ended.
    """
    longest = max(len(example.input_ids) for example in encoded)
    batch = (settings.batch_size or 0) * longest or max(tokens, longest)
    # What the user has chosen is not made smaller before it has failed.
    fixed = settings.batch_size or settings.batch_tokens != "auto"
    work = Work(
        tokens=sum(len(example.input_ids) for example in encoded),
        scored=sum(example.scored_tokens for example in encoded),
        batch_tokens=batch,
        longest=batch if fixed else longest,
        # Sums of sharded weights are sharded likewise.
        sums=sums / processes.count if any(map(is_sharded, model.parameters())) else sums,
        keep=settings.fraction(coverage.total),
    )
    free = least_free({parameter.device for parameter in model.parameters()}, processes)
    return plan(shape_of(model, coverage), work, replace(free, holds_model=True))


def least_free(devices: Collection[torch.device], processes: Processes) -> Free:
    """Return what every process can have for itself.

    Processes add their sums up weight by weight, so all of them must follow one plan.
    """
    processes.meet()  # until then some are still loading
    free = free_memory(devices)
    # Processes of one machine have their own GPUs, and share the memory of the CPU.
    shared = 1 if free.host else processes.neighbours
    device, host = processes.least([free.device / shared, free.host / processes.neighbours])
    return Free(device, host)


class Reading(NamedTuple):
    """How a model is to be read, and one line that says so if it is not read as usual."""

    stream: bool
    line: str = ""


# What is smaller than this part of the free memory is not planned for: of each weight there are at
# most a few sums of 4 bytes.
SMALL = 1 / 50


def how_to_read(
    folder: Path,
    work: Callable[[], Work],
    *,
    keep: Callable[[int], float],
    dtype: str | None = None,
    device: str | None = None,
    processes: Processes = ALONE,
) -> Reading:
    """Choose between a model in memory and one that is read block by block.

    It is read block by block if no plan for the model in memory fits, and less is needed then.

    Args:
        folder: A checkpoint folder with safetensors weights.
        work: Returns what is asked for; not called for a small model.
        keep: Returns the fraction of candidates for a number of prunable weights.
        dtype: Dtype of the weights in memory; None for the one on disk.
        device: Where the model runs; None for a GPU if there is one.
        processes: The processes that share the examples; all choose the same.

    Raises:
        InputError: The folder cannot be read as a checkpoint of a causal LM.
        CoverageError: The model has block weights of an unknown kind.
    """
    free = least_free({torch.device(find_device(device))}, processes)
    files = entries(weight_files(folder))
    if sum(entry.size for entry in files.values()) < SMALL * free.device:
        return Reading(stream=False)
    stored = DTYPES.get(dtype or "") or next(iter(files.values())).dtype
    shape = shape_of(empty_model(str(folder), stored))
    request = replace(work(), keep=keep(shape.total))
    in_memory = plan(shape, request, free)
    if not is_streamed(shape, request, in_memory, free):
        return Reading(stream=False)
    need = streamed(shape, request, free)
    return Reading(
        stream=True,
        line="the model is read block by block from disk: in memory it needs "
        f"{_size(in_memory.device)} and {_size(free.device)} are free; this way it needs "
        f"{_size(on_device(need, free))}, and {_size(need.disk)} of scratch "
        "(--no-stream loads it all the same)",
    )


def is_streamed(shape: Shape, work: Work, in_memory: Plan, free: Free) -> bool:
    """Tell whether scoring reads block by block: nothing else fits, and less is needed so."""
    return not in_memory.fits and on_device(streamed(shape, work, free), free) < in_memory.device


def on_device(need: Streamed, free: Free) -> float:
    """Return the bytes that a model read block by block needs where `free.device` is."""
    return need.device + (0.0 if free.host else need.host)


def _size(size: float) -> str:
    return f"{size / GIB:.3g} GiB" if size >= GIB / 10 else f"{size / 2**20:.3g} MiB"
