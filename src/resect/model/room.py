"""The free memory of this machine, and models without weights to plan for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from resect.errors import InputError, unknown_name
from resect.model.checkpoint import weight_files
from resect.model.limits import left_of_group, left_of_limits
from resect.model.load import DTYPES, find_device, refuse_encoder
from resect.model.pieces import entries
from resect.model.plan import GIB, SAFE, Free, Plan, Shape, Streamed, Work, plan, shape_of, streamed
from resect.model.prunable import Coverage
from resect.ranks import ALONE, Ranks, is_sharded
from resect.records import Encoded

# Shapes of published configurations, to plan for a model before it is there.
SHAPES: dict[str, tuple[str, dict[str, int]]] = {
    "llama-8b": ("llama", {"hidden_size": 4096, "intermediate_size": 14336,
                           "num_hidden_layers": 32, "num_attention_heads": 32,
                           "num_key_value_heads": 8, "vocab_size": 128256}),
    "qwen-32b": ("qwen3", {"hidden_size": 5120, "intermediate_size": 25600,
                           "num_hidden_layers": 64, "num_attention_heads": 64,
                           "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}),
    "llama-70b": ("llama", {"hidden_size": 8192, "intermediate_size": 28672,
                            "num_hidden_layers": 80, "num_attention_heads": 64,
                            "num_key_value_heads": 8, "vocab_size": 128256}),
    "llama-405b": ("llama", {"hidden_size": 16384, "intermediate_size": 53248,
                             "num_hidden_layers": 126, "num_attention_heads": 128,
                             "num_key_value_heads": 8, "vocab_size": 128256}),
}  # fmt: skip


def plan_for(
    model: Any,
    coverage: Coverage,
    encoded: Sequence[Encoded],
    *,
    sums: int,
    batch_tokens: int,
    batch_size: int | None = None,
    fixed: bool = False,
    keep: float = 1e-2,
    ranks: Ranks = ALONE,
) -> Plan:
    """Plan a pass of a loaded model on this machine, the same in all processes.

    Args:
        model: A Hugging Face causal LM.
        coverage: Its prunable weights.
        encoded: The examples.
        sums: Kinds of sums that are kept of each weight.
        batch_tokens: Tokens of a batch, padding included.
        batch_size: Examples of a batch instead.
        fixed: Batches are not to be made smaller.
        keep: Fraction of candidates.
        ranks: The processes that share the examples; all call this with the same arguments.

    Raises:
        InputError: Another process has ended.
    """
    longest = max(len(example.input_ids) for example in encoded)
    batch = (batch_size or 0) * longest or max(batch_tokens, longest)
    work = Work(
        tokens=sum(len(example.input_ids) for example in encoded),
        scored=sum(example.scored_tokens for example in encoded),
        batch_tokens=batch,
        longest=batch if fixed or batch_size else longest,
        # Sums of sharded weights are sharded likewise.
        sums=sums / ranks.count if any(map(is_sharded, model.parameters())) else sums,
        keep=keep,
    )
    free = least_free({parameter.device for parameter in model.parameters()}, ranks)
    return plan(shape_of(model, coverage), work, replace(free, holds_model=True))


def least_free(devices: Collection[torch.device], ranks: Ranks) -> Free:
    """Return what every process can have for itself.

    Processes add their sums up weight by weight, so all of them must follow one plan.
    """
    ranks.meet()  # until then some are still loading
    free = free_memory(devices)
    # Processes of one machine have their own GPUs, and share the memory of the CPU.
    shared = 1 if free.host else ranks.neighbours
    device, host = ranks.least([free.device / shared, free.host / ranks.neighbours])
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
    ranks: Ranks = ALONE,
) -> Reading:
    """Choose between a model in memory and one that is read block by block.

    It is read block by block if no plan for the model in memory fits, and less is needed then.

    Args:
        folder: A checkpoint folder with safetensors weights.
        work: Returns what is asked for; not called for a small model.
        keep: Returns the fraction of candidates for a number of prunable weights.
        dtype: Dtype of the weights in memory; None for the one on disk.
        device: Where the model runs; None for a GPU if there is one.
        ranks: The processes that share the examples; all choose the same.

    Raises:
        InputError: The folder cannot be read as a checkpoint of a causal LM.
        CoverageError: The model has block weights of an unknown kind.
    """
    free = least_free({torch.device(find_device(device))}, ranks)
    files = entries(weight_files(folder))
    if sum(entry.size for entry in files.values()) < SMALL * free.device:
        return Reading(stream=False)
    kind = DTYPES.get(dtype or "") or next(iter(files.values())).dtype
    shape = shape_of(empty_model(str(folder), kind))
    asked = replace(work(), keep=keep(shape.total))
    found = plan(shape, asked, free)
    if not _is_streamed(shape, asked, found, free):
        return Reading(stream=False)
    need = streamed(shape, asked, free)
    return Reading(
        stream=True,
        line="the model is read block by block from disk: in memory it needs "
        f"{_size(found.device)} and {_size(free.device)} are free; this way it needs "
        f"{_size(_on_device(need, free))}, and {_size(need.disk)} of scratch "
        "(--no-stream loads it all the same)",
    )


def _is_streamed(shape: Shape, work: Work, found: Plan, free: Free) -> bool:
    """Tell whether scoring reads block by block: nothing else fits, and less is needed so."""
    return not found.fits and _on_device(streamed(shape, work, free), free) < found.device


def _on_device(need: Streamed, free: Free) -> float:
    return need.device + (0.0 if free.host else need.host)


def _size(size: float) -> str:
    return f"{size / GIB:.3g} GiB" if size >= GIB / 10 else f"{size / 2**20:.3g} MiB"


def empty_model(place: str, dtype: torch.dtype | None = None) -> Any:
    """Return a model on the meta device: shapes and dtypes without weights.

    Args:
        place: A name in `SHAPES`, a folder with a `config.json`, or a Hub id.
        dtype: Dtype of its weights; None for that of the configuration.

    Raises:
        InputError: There is no such place, or its configuration is not of a causal LM.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        if place in SHAPES:
            kind, sides = SHAPES[place]
            config = AutoConfig.for_model(kind, **sides, tie_word_embeddings=False)
        elif place.startswith(("./", "../", "/", "~")) and not Path(place).exists():
            raise InputError("no such model folder", got=place, allowed="a folder with config.json")
        elif Path(place).exists() or "/" in place:
            config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        else:
            raise unknown_name("shape", place, list(SHAPES))
        own = getattr(config.get_text_config(), "dtype", None)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype or own or torch.bfloat16)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"cannot read the configuration of a causal language model from {place}",
            got=str(error).strip().splitlines()[0],
            allowed=f"a folder with config.json, a Hub id, or {', '.join(SHAPES)}",
        ) from error
    refuse_encoder(model.config, place)
    return model


def free_memory(devices: Collection[torch.device] | None = None) -> Free:
    """Return what is free on this machine.

    Args:
        devices: Where a loaded model is; None for all GPUs, or the CPU if there is none.
    """
    import psutil

    available = float(psutil.virtual_memory().available)
    host = min(available, left_of_group(), left_of_limits())
    if devices is None:
        devices = [torch.device("cuda", at) for at in range(torch.cuda.device_count())]
    gpus = {device for device in devices if device.type == "cuda"}
    if not gpus:
        return Free(device=host, host=0.0)
    return Free(device=float(sum(torch.cuda.mem_get_info(at)[0] for at in gpus)), host=host)


def matrix_rate(dtype: torch.dtype) -> float:
    """Return floating-point operations a second of a matrix product here, measured in a moment."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    side = 8192 if device == "cuda" else 512
    one = torch.ones(side, side, dtype=dtype, device=device)
    begin, seconds = time.perf_counter(), math.inf
    # Short ones, of which the best is the one that nobody else was beside.
    for _ in range(20):
        start = time.perf_counter()
        # A CPU that has no bf16 products of its own takes seconds for one.
        if start - begin > 1:
            break
        torch.mm(one, one)[0, 0].item()  # waits for a GPU
        seconds = min(seconds, time.perf_counter() - start)
    return 2.0 * side**3 / seconds


def scoring_rate(dtype: torch.dtype) -> tuple[float, str]:
    """Return the operations a second that scoring will do here, and where that is from."""
    share = EFFICIENCY["cuda" if torch.cuda.is_available() else "cpu"]
    return share * matrix_rate(dtype), f"{share:g} of a matrix product's, measured here"


class Report(NamedTuple):
    """A plan for people: rows of a table, and lines below it."""

    rows: list[dict[str, Any]]
    lines: list[str]


# What a large accelerator does of bf16 products in practice, and a bus between it and the host.
ASSUMED_RATE = 3e14
ASSUMED_BUS = 2e10
# Share of a matrix product's rate that scoring reaches: on a CPU .57 to .74, over models of 3M to
# 330M parameters (benchmarks/plan.py, docs/scale.md); on a GPU nothing has been measured.
EFFICIENCY = {"cpu": 0.65, "cuda": 0.5}


def plan_report(
    place: str, *, examples: int, length: int, memory: float = 0, tflops: float = 0
) -> Report:
    """Plan for a model of which the configuration is enough.

    Args:
        place: As in `empty_model`.
        examples: Number of examples.
        length: Tokens of each, half of them scored.
        memory: GiB of the device; 0 for what is free on this machine.
        tflops: 10¹² operations a second; 0 to measure here, or to assume for another device.

    Raises:
        InputError: The configuration cannot be read or used.
    """
    shape = shape_of(empty_model(place))
    free = free_memory()
    if memory:
        free = Free(device=memory * GIB, host=free.host or free.device)
    large = memory or torch.cuda.is_available()
    work = Work(
        tokens=examples * length,
        scored=examples * length // 2,
        batch_tokens=8192 if large else 1024,
        longest=length,
        keep=1e-3 if shape.total > 1e9 else 1e-2,
    )
    found = plan(shape, work, free)
    dtype = torch.float32 if shape.itemsize == 4 else torch.bfloat16
    rate, source = tflops * 1e12, "given"
    if not rate and memory:
        rate, source = ASSUMED_RATE, "assumed for a large accelerator"
    if not rate:
        rate, source = scoring_rate(dtype)
    seconds = found.operations / rate + found.moved / ASSUMED_BUS
    rows = [{"what": what, "GiB": size / GIB} for what, size in found.memory.items()]
    rows += [
        {"what": "all on the device", "GiB": found.device / GIB},
        {"what": "sums and candidates in CPU memory", "GiB": found.host / GIB},
        {"what": "free on the device", "GiB": free.device / GIB},
        {"what": "free in CPU memory", "GiB": free.host / GIB},
    ]
    lines = [
        ("fits: " if found.fits else "DOES NOT FIT; the least is: ") + found.summary(),
        _chosen(shape, work, found, free),
        f"time: {seconds / 60:.3g} min at {rate / 1e12:.3g} TFLOP/s ({source}); "
        f"{found.operations:.3g} operations, {found.moved / GIB:.3g} GiB moved to CPU memory "
        f"at {ASSUMED_BUS / 1e9:.3g} GB/s",
        f"files: at most {found.sparse / 1e6:.4g} MB of scores at keep {work.keep:g}, "
        f"{found.dense / 1e6:.4g} MB if dense; {shape.total:,} prunable weights",
        f"assumed: {examples} examples of {length} tokens, half scored; one kind of sum in fp32; "
        "attention that does not keep its weights; nine tenths of free memory",
    ]
    lines.insert(2, _from_disk(shape, work, rate))
    return Report(rows, lines)


def _chosen(shape: Shape, work: Work, found: Plan, free: Free) -> str:
    if not _is_streamed(shape, work, found, free):
        return "resect score will hold the model in memory"
    enough = _on_device(streamed(shape, work, free), free) <= SAFE * free.device
    return "resect score will read it block by block from disk" + (
        "" if enough else ", for which memory does not suffice either"
    )


def _from_disk(shape: Shape, work: Work, rate: float) -> str:
    least = streamed(shape, work)
    return (
        f"block by block from disk (resect score --stream): {least.device / GIB:.3g} GiB on the "
        f"device, {least.host / GIB:.3g} GiB of candidates in CPU memory, "
        f"{least.disk / GIB:.3g} GiB of scratch, {least.moved / GIB:.4g} GiB of traffic, "
        f"{least.operations / rate / 60:.3g} min of products"
    )
